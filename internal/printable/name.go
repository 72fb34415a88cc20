// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package printable turns what comes from outside into text for labels, logs, files and terminals:
// names of network devices, and messages.
//
// The kernel's names are bytes. [Name] writes each byte that cannot be shown as % and two
// hexadecimal digits, and also %, which no name of a device has. So each name has a text of its
// own, the text of an ordinary name is the name, and [RawName] returns the bytes.
package printable

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The maximum lengths in bytes: IFNAMSIZ and ALTIFNAMSIZ of linux/if.h, less the final zero.
const (
	MaxName    = 15
	MaxAltName = 127
)

// Name returns the text of the bytes of a name: valid UTF-8 without spaces and control characters.
// The texts of two names differ.
func Name(raw string) string {
	return escape(raw, func(r rune) bool { return r != '%' && unicode.IsGraphic(r) && !unicode.IsSpace(r) })
}

// escape writes the bytes of characters that are not kept, and bytes that are not UTF-8, as % and
// two hexadecimal digits.
func escape(s string, keeps func(rune) bool) string {
	var text strings.Builder
	for i, size := 0, 0; i < len(s); i += size {
		var r rune
		r, size = utf8.DecodeRuneInString(s[i:])
		if (r != utf8.RuneError || size > 1) && keeps(r) {
			text.WriteString(s[i : i+size])
			continue
		}
		for _, b := range []byte(s[i : i+size]) {
			fmt.Fprintf(&text, "%%%02x", b)
		}
	}
	return text.String()
}

// RawName returns the bytes of a text of [Name], or of another text of the same name. Each % must
// have two hexadecimal digits.
func RawName(text string) (string, error) {
	return unescape(text, "")
}

// unescape replaces each % and two hexadecimal digits by prefix and the byte.
func unescape(text, prefix string) (string, error) {
	var raw strings.Builder
	for {
		before, after, isEscaped := strings.Cut(text, "%")
		raw.WriteString(before)
		if !isEscaped {
			return raw.String(), nil
		}
		var b uint64
		err := strconv.ErrSyntax
		if len(after) >= 2 {
			b, err = strconv.ParseUint(after[:2], 16, 8)
		}
		if err != nil {
			return "", errors.New("% has no two hexadecimal digits: write %25 for a % of the name")
		}
		raw.WriteString(prefix)
		raw.WriteByte(byte(b))
		text = after[2:]
	}
}

// ParseName returns the text that [Name] gives to the name of a device or to an alternative
// name, of any text of it. It is an error if no device can have the name.
func ParseName(text string) (string, error) {
	raw, err := RawName(text)
	if err != nil {
		return "", err
	}
	if raw == "" || len(raw) > MaxAltName || strings.ContainsAny(raw, "\x00/ \t\n\v\f\r") {
		return "", fmt.Errorf("use 1 to %d bytes without spaces and slashes", MaxAltName)
	}
	return Name(raw), nil
}

// Glob returns the pattern of [path.Match] for a pattern in which % and two hexadecimal digits
// stand for a byte. Such a byte is never a special character. The pattern matches raw names.
func Glob(text string) (string, error) {
	return unescape(text, `\`)
}

// FlagValue returns a text of a name for a list of names and globs that are separated by
// commas: one in which commas and the special characters of globs are escaped.
func FlagValue(name string) string {
	return escape(name, func(r rune) bool { return !strings.ContainsRune(",*?[]", r) })
}
