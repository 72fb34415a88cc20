// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package flagvalue

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kingpin/v2"
)

// A wrong value is one line that names flag, variable and value. A right one is stored, and what
// target has before is the default.
func TestValues(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--number=x"}, `--number (NUMBER): "x" is not a number`},
		{[]string{"--short=4294967296"}, `--short: "4294967296" is not a whole number from 0`},
		{[]string{"--long=-1"}, `--long: "-1" is not a whole number`},
		{[]string{"--time=3"}, `--time: "3" is not a duration such as`},
		{[]string{"--time=250us", "--text=word"}, ""},
	} {
		number, short, long, duration, text := 1.5, uint32(2), uint64(3), time.Second, "none"
		app := kingpin.New("test", "").UsageWriter(io.Discard).Terminate(nil)
		Add(app, "number", "NUMBER", "", &number, Number)
		Add(app, "short", "", "", &short, Uint32)
		Add(app, "long", "", "", &long, Uint64)
		Add(app, "time", "", "", &duration, Duration)
		Add(app, "text", "", "", &text, Text)
		_, err := app.Parse(test.args)
		if test.want != "" {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v: %v, want %q", test.args, err, test.want)
			}
			continue
		}
		if err != nil || number != 1.5 || short != 2 || long != 3 || duration != 250*time.Microsecond || text != "word" {
			t.Errorf("%v: %v, and %v, %v, %v, %v, %v", test.args, err, number, short, long, duration, text)
		}
	}
}
