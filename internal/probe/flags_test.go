// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each wrong flag is one line, which names the flag and the value, before anything is sent.
func TestWrongFlags(t *testing.T) {
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, []byte("GET\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const url = "--url=http://127.0.0.1:1"
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "--url is missing"},
		{[]string{"--url=example.org"}, `--url: "example.org"`},
		{[]string{"--url=ftp://example.org"}, `--url: "ftp://example.org"`},
		{[]string{"--url=http://"}, "--url"},
		{[]string{"--url=http://user:secret@127.0.0.1:1"}, "--header"},
		{[]string{"--url=http://127.0.0.1:1"}, "refused"},
		{[]string{"--url=http://127.0.0.1:99999"}, "--url"},
		{[]string{"--url=tcp://127.0.0.1:1"}, "--x.raw"},
		{[]string{"--url=tcp://127.0.0.1", "--x.raw=" + raw, "--y.raw=" + raw}, "has no port"},
		{[]string{"--url=tcp://127.0.0.1:1", "--x.raw=" + raw, "--y.raw=none"}, "none"},
		{[]string{"--url=tcp://127.0.0.1:1", "--x.raw=" + raw, "--y.raw=" + raw, "--x.path=/x"}, "need http"},
		{[]string{"--url=tcp://127.0.0.1:1", "--x.raw=" + raw, "--y.raw=" + raw, `--raw.end=\q`}, `--raw.end: "\\q"`},
		{[]string{url, "--x.raw=" + raw}, "--x.raw"},
		{[]string{"--url=tcp://127.0.0.1:1/path", "--x.raw=" + raw, "--y.raw=" + raw}, "such as tcp://host:1234"},
		{[]string{"--url=tcp://127.0.0.1:1", "--x.raw=" + raw, "--y.raw=/dev/zero"}, "/dev/zero has more than"},
		{[]string{url, "--header=X Token: a"}, `--header: "X Token"`},
		{[]string{url, "--x.header=X-Token: a\nX-Other: b"}, `--x.header: "a\nX-Other: b"`},
		{[]string{url, "--y.header=Host: a b"}, `--y.header: "a b"`},
		{[]string{url, "--header=transfer-encoding: chunked"}, "--header: transfer-encoding"},
		{[]string{url, "--x.header=Content-Length: 5"}, "--x.header: Content-Length"},
		{[]string{url, "--y.dscp=8"}, "--y.dscp: 8"},
		{[]string{url, "--x.dscp=0"}, "0 is the DSCP of packets without a mark"},
		{[]string{url, "--json=" + raw, "--junit=" + raw}, "--junit: "},
		{[]string{url, "--json=/none/result.json"}, "--json: "},
		{[]string{url, "--junit=/none/result.xml"}, "--junit: "},
		{[]string{url, "--report=ftp://me:secret@127.0.0.1:1"}, "ftp://me:xxxxx@127.0.0.1:1"},
		{[]string{url, "--raw.quiet=0s"}, "--raw.quiet: 0s"},
		{[]string{url, "--x.data=a"}, "--y.data"},
		{[]string{url, "--data=c", "--x.data=a", "--y.data=b"}, "--data"},
		{[]string{url, "--x.path=x"}, `--x.path: "x"`},
		{[]string{url, "--x.path=/{{random}}"}, "--x.path"},
		{[]string{url, "--y.path=/{{random -1}}"}, "random -1"},
		{[]string{url, "--y.path=/{{random"}, "--y.path"},
		{[]string{"--url=http://{{random 3}}.example.org/"}, "--url"},
		{[]string{url, "--header=none"}, `--header: "none"`},
		{[]string{url, "--method=GET /"}, `--method: "GET /"`},
		{[]string{url, "--tls.ca=none"}, "--tls"},
		{[]string{"--url=https://127.0.0.1:1", "--tls.ca=/none"}, "/none"},
		{[]string{"--url=https://127.0.0.1:1", "--tls.cert=/none"}, "key"},
		{[]string{url, "--order=both"}, "--order: order \"both\""},
		{[]string{url, "--label=vlan"}, `--label: "vlan"`},
		{[]string{url, "--label=none", "--report=http://127.0.0.1:1"}, "--label=none"},
		{[]string{url, "--label=port", "--order=blocks"}, "--order=random"},
		{[]string{url, "--label=port", "--x.port=20000"}, "--x.port: 20000"},
		{[]string{"--url=https://127.0.0.1:1", "--label=port"}, "--order=observed"},
		{[]string{url, "--x.port=2-1"}, `--x.port: "2-1"`},
		{[]string{url, "--x.dscp=64"}, "--x.dscp: 64"},
		{[]string{url, "--y.dscp=-1"}, `--y.dscp: "-1"`},
		{[]string{url, "--target=-1us"}, "--target: -1µs"},
		{[]string{url, "--target=1"}, `--target: "1"`},
		{[]string{url, "--alpha=1"}, "--alpha: 1"},
		{[]string{url, "--alpha=NaN"}, "--alpha: NaN"},
		{[]string{url, "--requests=0"}, "--requests: 0"},
		{[]string{url, "--duration=-1s"}, "--duration: -1s"},
		{[]string{url, "--rate=0"}, "--rate: 0"},
		{[]string{url, "--rate=NaN"}, "--rate: NaN"},
		{[]string{url, "--rate=2001"}, "--rate.unsafe"},
		{[]string{url, "--rate=1e9", "--rate.unsafe"}, "--rate: 1e+09"},
		{[]string{url, "--connections=101"}, "--connections: 101"},
		{[]string{url, "--connections=0"}, "--connections: 0"},
		{[]string{url, "--warmup=10001"}, "--warmup: 10001"},
		{[]string{url, "--timeout=0s"}, "--timeout: 0s"},
		{[]string{url, "--timeout=6m"}, "--timeout: 6m0s"},
		{[]string{url, "--assessment=login"}, "--report"},
		{[]string{url, "--report=server:9400"}, `--report: "server:9400"`},
		{[]string{url, "--report=http://127.0.0.1:1"}, "--report"},
		{[]string{url, "--report=http://127.0.0.1:1", "--report.http-config=/none"}, "/none"},
		{[]string{url, "--junit"}, "--junit"},
		{[]string{url, "--frobnicate"}, "--frobnicate"},
		{[]string{url, "more"}, "more"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(test.args, &stdout, &stderr)
		got := stderr.String()
		if code != exitError || stdout.Len() > 0 || strings.Count(got, "\n") != 1 || !strings.Contains(got, test.want) {
			t.Errorf("%v: exit code %d, want %d and one line with %q, got:\n%s%s", test.args, code, exitError, test.want, got, &stdout)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"--version"}} {
		var stdout, stderr bytes.Buffer
		if code := Main(args, &stdout, &stderr); code != 0 || stderr.Len() > 0 || !strings.Contains(stdout.String(), Name) {
			t.Errorf("%v: exit code %d:\n%s%s", args, code, &stdout, &stderr)
		}
		if args[0] == "--help" && !strings.Contains(strings.Join(strings.Fields(stdout.String()), " "), "services that you are allowed to test") {
			t.Errorf("--help does not say whom to test:\n%s", &stdout)
		}
	}
}

// docs/probe.md has each flag with its default.
func TestFlagsAreDocumented(t *testing.T) {
	var help bytes.Buffer
	if code := Main([]string{"--help"}, &help, io.Discard); code != 0 {
		t.Fatal(code)
	}
	guide, err := os.ReadFile("../../docs/probe.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{} // rows by flag
	for line := range strings.Lines(string(guide)) {
		if cells := strings.Split(line, "|"); strings.HasPrefix(line, "| `--") && len(cells) == 5 {
			for name := range strings.SplitSeq(strings.TrimSpace(cells[1]), ", ") {
				documented[strings.Trim(name, "`")] = cells[2]
			}
		}
	}
	flag := regexp.MustCompile(`(?m)^ {2,6}(?:-h, )?(--)(?:\[no-\])?([a-z0-9.-]+)(?:=(\S+))?`)
	placeholder := regexp.MustCompile(`^[A-Z:]+$`)
	found := flag.FindAllStringSubmatch(help.String(), -1)
	if len(found) < 40 {
		t.Fatalf("only %d flags in\n%s", len(found), &help)
	}
	for _, f := range found {
		name, value := "--"+f[2], f[3]
		if name == "--help" || name == "--version" {
			continue
		}
		want := "" // a placeholder is in capitals
		if value != "" && !placeholder.MatchString(value) {
			want = "`" + value + "`"
		}
		if got, isListed := documented[name]; !isListed || strings.TrimSpace(got) != want {
			t.Errorf("docs/probe.md has the default %q of %s, want %q", got, name, want)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/probe.md has %s, which is not a flag", name)
	}
}
