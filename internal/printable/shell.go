// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package printable

import (
	"fmt"
	"regexp"
	"strings"
)

var plainWord = regexp.MustCompile(`^[\w.,:@%+=/^-]+$`)

// ShellWord returns any bytes as a word of a command that bash, ksh and zsh can run: quoted if it
// has characters that are special in a shell.
func ShellWord(raw string) string {
	switch {
	case plainWord.MatchString(raw):
		return raw
	case raw == Line(raw):
		return "'" + strings.ReplaceAll(raw, "'", `'\''`) + "'"
	}
	var word strings.Builder
	for _, b := range []byte(raw) {
		if b >= ' ' && b < 0x7f && b != '\'' && b != '\\' {
			word.WriteByte(b)
			continue
		}
		fmt.Fprintf(&word, `\x%02x`, b)
	}
	return "$'" + word.String() + "'"
}

// ShellName is [ShellWord] for the bytes of a name of [Name].
func ShellName(name string) string {
	raw, err := RawName(name)
	if err != nil {
		raw = name
	}
	return ShellWord(raw)
}
