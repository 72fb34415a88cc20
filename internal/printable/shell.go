// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package printable

import (
	"fmt"
	"regexp"
	"strings"
)

// ShellWord returns a name of [Name] as a word of a command that bash, ksh and zsh can run: quoted
// if it has characters that are special in a shell.
func ShellWord(name string) string {
	raw, err := RawName(name)
	switch {
	case err != nil:
		raw = name
	case regexp.MustCompile(`^[\w.:@+=^-]+$`).MatchString(raw):
		return raw
	case raw == name:
		return "'" + strings.ReplaceAll(raw, "'", `'\''`) + "'"
	}
	var word strings.Builder
	for _, b := range []byte(raw) {
		if b > ' ' && b < 0x7f && b != '\'' && b != '\\' {
			word.WriteByte(b)
			continue
		}
		fmt.Fprintf(&word, `\x%02x`, b)
	}
	return "$'" + word.String() + "'"
}
