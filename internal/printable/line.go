// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package printable

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Line returns a message without line ends and without characters that a terminal may act on:
// control characters and those that change the direction of text. They are written as \u and four
// hexadecimal digits, or two times that, as in JSON, and bytes that are not UTF-8 as \x and two.
// The message may be a line of JSON.
func Line(message string) string {
	isPlain := func(r rune, size int) bool { return unicode.IsGraphic(r) && (r != utf8.RuneError || size > 1) }
	for i, size := 0, 0; ; i += size {
		if i == len(message) {
			return message
		}
		var r rune
		if r, size = utf8.DecodeRuneInString(message[i:]); !isPlain(r, size) {
			break
		}
	}
	var line strings.Builder
	for i, size := 0, 0; i < len(message); i += size {
		var r rune
		switch r, size = utf8.DecodeRuneInString(message[i:]); {
		case isPlain(r, size):
			line.WriteString(message[i : i+size])
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&line, `\x%02x`, message[i])
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&line, `\u%04x`, unit)
			}
		}
	}
	return line.String()
}
