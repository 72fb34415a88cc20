// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package printable

import (
	"encoding/json"
	"os/exec"
	"path"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestName(t *testing.T) {
	for _, test := range []struct{ description, raw, want string }{
		{"an ordinary name", "enp3s0f1np1", "enp3s0f1np1"},
		{"special characters that can be shown", "a,b[1]*\\\"=$;é", "a,b[1]*\\\"=$;é"},
		{"a byte that is not UTF-8", "ba\xffd0", "ba%ffd0"},
		{"the text of that name", "ba%ffd0", "ba%25ffd0"},
		{"a character that is cut short", "a\xe2\x82", "a%e2%82"},
		{"the replacement character itself", "a\uFFFD", "a\uFFFD"},
		{"control characters of ASCII", "\x1b[31m\x7f\a", "%1b[31m%7f%07"},
		{"a control character of ISO 6429", "a\u009b1m", "a%c2%9b1m"},
		{"a change of direction", "a\u202eb", "a%e2%80%aeb"},
		{"spaces", "a b\u00a0c", "a%20b%c2%a0c"},
	} {
		if got := Name(test.raw); got != test.want {
			t.Errorf("%s: got %q, want %q", test.description, got, test.want)
		}
	}
}

func TestParseName(t *testing.T) {
	for _, test := range []struct{ text, want, err string }{
		{"eth0", "eth0", ""},
		{"ba%ffd0", "ba%ffd0", ""},
		{"ba%FFd0", "ba%ffd0", ""},
		{"%65th0", "eth0", ""},
		{"a%2cb", "a,b", ""},
		{"x%5b1%5d", "x[1]", ""},
		{"ba\xffd0", "ba%ffd0", ""},
		{"%25", "%25", ""},
		{strings.Repeat("a", MaxAltName), strings.Repeat("a", MaxAltName), ""},
		{strings.Repeat("a", MaxAltName+1), "", "1 to 127 bytes"},
		{"", "", "1 to 127 bytes"},
		{"a/b", "", "slashes"},
		{"a%2fb", "", "slashes"},
		{"a%20b", "", "spaces"},
		{"a%00", "", "spaces"},
		{"a%", "", "%25"},
		{"a%f", "", "%25"},
		{"a%+1", "", "%25"},
		{"a%zz", "", "%25"},
	} {
		got, err := ParseName(test.text)
		if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
			t.Errorf("%q: got %q and %v, want %q and %q", test.text, got, err, test.want, test.err)
		}
	}
}

// isSafe reports whether a text can be a label value and harms no terminal.
func isSafe(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) })
}

// Each name has a safe text of its own, from which the bytes are recovered.
func FuzzName(f *testing.F) {
	for _, raw := range []string{"eth0", "ba\xffd0", "ba%ffd0", "\x1b[31m", "a,b", "x[1]", `a\b`, "$(id)", "it's", "\u202e\u009b\U000e0001", "%", "%%", "%25", ""} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		text := Name(raw)
		if back, err := RawName(text); back != raw || err != nil {
			t.Errorf("%q becomes %q, and that %q: %v", raw, text, back, err)
		}
		if !isSafe(text) || strings.ContainsFunc(text, unicode.IsSpace) {
			t.Errorf("%q becomes %q", raw, text)
		}
		value := FlagValue(text)
		if back, err := RawName(value); back != raw || err != nil || strings.ContainsAny(value, ",*?[") {
			t.Errorf("%q becomes %q in a flag, and that %q: %v", raw, value, back, err)
		}
		pattern, err := Glob(value)
		if isMatched, malformed := path.Match(pattern, raw); err != nil || malformed == nil && !isMatched && !strings.Contains(raw, `\`) {
			t.Errorf("the glob %q does not match %q: %v", value, raw, err)
		}
		if parsed, err := ParseName(value); err == nil && parsed != text {
			t.Errorf("%q is parsed as %q, want %q", value, parsed, text)
		}
	})
}

// Any bytes are one word of a shell, and the word is these bytes.
func TestShellWord(t *testing.T) {
	names := []string{"eth0", "eth0.100", "a;reboot", "$(reboot)", "`id`", "it's", "x[1]", "*", "~", "a\\b", "ba\xffd0", "\x1b[31m", "a%b", "'\xff", "é", "#a", "a=b\"c", "a b", "a{b,c}", "!x", "/sys/fs/bpf/a b"}
	for _, raw := range names {
		word := ShellWord(raw)
		if !isSafe(word) {
			t.Errorf("%q becomes %q", raw, word)
		}
		out, err := exec.Command("bash", "-c", "printf '%s|' "+word).Output()
		if err != nil || string(out) != raw+"|" {
			t.Errorf("%q becomes %s, which is %q to the shell: %v", raw, word, out, err)
		}
	}
	for name, want := range map[string]string{"eth0": "eth0", "a,b": "a,b", "ba%ffd0": `$'ba\xffd0'`, "x[1]": "'x[1]'"} {
		if got := ShellName(name); got != want {
			t.Errorf("%s becomes %s, want %s", name, got, want)
		}
	}
}

func TestLine(t *testing.T) {
	for _, test := range []struct{ message, want string }{
		{"", ""},
		{`device eth0 "é" 100 % \ done`, `device eth0 "é" 100 % \ done`},
		{"a\x1b[31mb\x7f\n", `a\u001b[31mb\u007f\u000a`},
		{"a\xff\xe2\x82b", `a\xff\xe2\x82b`},
		{"\u009b\u202e\U000e0001", `\u009b\u202e\udb40\udc01`},
	} {
		if got := Line(test.message); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

// A line of JSON stays one with the same value.
func FuzzLine(f *testing.F) {
	for _, s := range []string{"eth0", "\x1b[31m", "\u202e\u009b\U000e0001\u2028", "\xff", `a"\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if line := Line(s); !isSafe(line) {
			t.Errorf("%q becomes %q", s, line)
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if err := json.Unmarshal([]byte(Line(string(text))), &got); err != nil || got != strings.ToValidUTF8(s, "\uFFFD") && utf8.ValidString(s) {
			t.Errorf("%q becomes %q: %v", s, got, err)
		}
	})
}
