// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What is wrong in a command line or in the environment is named with its value, its flag or
// variable, and the remedy, in one line.
func TestMessages(t *testing.T) {
	l := newLab(t)
	config := filepath.Join(t.TempDir(), "web.yml")
	const users = "basic_auth_users:\n  alice: $2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n  bob: letmein\n"
	if err := os.WriteFile(config, []byte(users), 0o600); err != nil {
		t.Fatal(err)
	}
	const audit = "--audit.device=" + device
	for _, test := range []struct {
		description string
		environment []string
		args        []string
		want        []string // parts of the line
	}{
		{"a variable that is not a boolean", []string{"XDP_AUDIT_FOLLOW=yes"}, []string{audit},
			[]string{"--audit.follow", "XDP_AUDIT_FOLLOW", `"yes"`, "true or false"}},
		{"a variable with an unknown mode", []string{"XDP_MODE=DRV"}, []string{audit},
			[]string{"--audit.mode", "XDP_MODE", `"DRV"`, "drv, hw, skb and auto"}},
		{"a variable outside of its limits", []string{"XDP_AUDIT_THRESHOLD=1"}, []string{audit},
			[]string{"--audit.threshold", "XDP_AUDIT_THRESHOLD", "1 ", "between 2"}},
		{"a variable with a damaged glob", []string{"XDP_INTERFACE=eth["}, nil,
			[]string{"--audit.device", "XDP_INTERFACE", `"eth["`, "bracket"}},
		{"a variable with a pin path that is not one", []string{"XDP_AUDIT_PIN_PATH=/etc/pins"}, []string{audit},
			[]string{"--bpf.pin-path", "XDP_AUDIT_PIN_PATH", "/etc/pins", "mount -t bpf"}},
		{"a variable with a baseline file that is not one", []string{"XDP_AUDIT_BASELINE_FILE=/"}, []string{audit},
			[]string{"--audit.baseline-file", "XDP_AUDIT_BASELINE_FILE", "regular file"}},
		{"pins without a path", nil, []string{"--bpf.unpin"}, []string{"--bpf.unpin", "--bpf.pin-path", "XDP_AUDIT_PIN_PATH"}},
		{"a misspelled variable", []string{"XDP_AUDIT_TRESHOLD=4"}, []string{audit}, []string{"XDP_AUDIT_TRESHOLD", "use XDP_AUDIT_THRESHOLD"}},
		{"a variable that one would expect", []string{"XDP_AUDIT_MODE=skb"}, []string{audit}, []string{"XDP_AUDIT_MODE", "use XDP_MODE"}},
		{"a misspelled flag", nil, []string{"--audit.devise=" + device}, []string{"--audit.devise", "did you mean --audit.device?"}},
		{"a misspelled flag that is negated", nil, []string{audit, "--no-audit.folow"}, []string{"--no-audit.folow", "did you mean --no-audit.follow?"}},
		{"the last part of a flag", nil, []string{"--device=" + device}, []string{"--device", "did you mean --audit.device?"}},
		{"a flag with one dash", nil, []string{"-audit.device=" + device}, []string{"-audit.device", "use " + audit}},
		{"a boolean flag with a value", nil, []string{audit, "--audit.follow=false"},
			[]string{"--audit.follow", `"false"`, "use --audit.follow or --no-audit.follow"}},
		{"a device without its flag", nil, []string{device}, []string{`"` + device + `"`, audit}},
		{"no device", nil, nil, []string{"no device", "--audit.device", "XDP_INTERFACE", "the devices are", "lo", device}},
		{"more flows than there may be for a collector that is disabled", nil, []string{audit, "--collector.covert.flows=300"},
			[]string{"--collector.covert.flows", "300", "between 1 and 255"}},
		{"a port alone", nil, []string{audit, "--web.listen-address=9407"}, []string{"--web.listen-address", `"9407"`, "use :9407"}},
		{"a host alone", nil, []string{audit, "--web.listen-address=localhost"}, []string{"--web.listen-address", `"localhost"`, "use localhost:9400"}},
		{"an address of IPv6 alone", nil, []string{audit, "--web.listen-address=::1"}, []string{"--web.listen-address", `"::1"`, "use [::1]:9400"}},
		{"a URL", nil, []string{audit, "--web.listen-address=http://127.0.0.1:9400/metrics"}, []string{"--web.listen-address", "use 127.0.0.1:9400\n"}},
		{"the path of a socket", nil, []string{audit, "--web.listen-address=/run/a/web.sock"}, []string{"--web.listen-address", "use unix:/run/a/web.sock"}},
		{"a port that cannot be", nil, []string{audit, "--web.listen-address=:99999"}, []string{"--web.listen-address", "99999", "65535"}},
		{"an address of another host", nil, []string{audit, "--web.listen-address=203.0.113.1:9400"}, []string{"--web.listen-address", "203.0.113.1", "choose an address of this host"}},
		{"a socket in no directory", nil, []string{audit, "--web.listen-address=unix:/missing/web.sock"}, []string{"--web.listen-address", "/missing", "create it first"}},
		{"a check of a port alone", nil, []string{"--healthcheck", "--web.listen-address=9407"}, []string{"--web.listen-address", `"9407"`, "use :9407"}},
		{"a password that is not a hash", nil, []string{audit, "--web.config.file=" + config},
			[]string{"--web.config.file", config, `"bob"`, "bcrypt", "htpasswd"}},
		{"an unknown format of the log", nil, []string{audit, "--log.format=jsn"}, []string{"--log.format", `"jsn"`, "logfmt and json"}},
		{"an unknown level of the log", nil, []string{audit, "--log.level=loud"}, []string{"--log.level", `"loud"`, "debug"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			in := *l
			in.t = t
			run := func(args ...string) *process {
				return in.start(binaries.exporter, args, func(cmd *exec.Cmd) { cmd.Env = append(os.Environ(), test.environment...) })
			}
			p := run(test.args...)
			p.expectRefusal(test.want...)
			if strings.Contains(p.stderr.String(), "letmein") {
				t.Error("the line has a password")
			}
			// The same error is a line of the log where that is JSON, whichever it is.
			p = run(append(test.args, "--log.format=json")...)
			if strings.Contains(strings.Join(test.args, " "), "--log.format") {
				return
			}
			p.expectRefusal()
			var line struct{ Level, Msg, Err string }
			if err := json.Unmarshal([]byte(p.stderr.String()), &line); err != nil {
				t.Fatalf("%v: %s", err, &p.stderr)
			}
			for _, part := range test.want {
				if !strings.Contains(line.Err+"\n", part) || line.Level != "ERROR" || line.Msg == "" {
					t.Errorf("the line does not contain %q: %+v", part, line)
				}
			}
		})
	}
}

// Errors that have nothing to do with flags are JSON, too, if the log is.
func TestErrorsAreJSON(t *testing.T) {
	l := newLab(t)
	defer l.occupyAddress().Close()
	for _, args := range [][]string{
		{"--audit.device=" + device, "--web.listen-address=" + address},
		{"--audit.device=absent0", "--web.listen-address=127.0.0.1:0"},
		{"--healthcheck", "--web.listen-address=127.0.0.1:1"},
	} {
		for _, format := range [][]string{{"--log.format=json"}, {"--log.format", "json"}} {
			t.Run(fmt.Sprint(args, format), func(t *testing.T) {
				in := *l
				in.t = t
				p := in.start(binaries.exporter, append(format, args...))
				if code := p.wait(); code != 1 {
					t.Errorf("exit code %d, want 1", code)
				}
				var last map[string]any
				for line := range strings.Lines(p.stderr.String()) {
					if err := json.Unmarshal([]byte(line), &last); err != nil {
						t.Errorf("%v: %s", err, line)
					}
				}
				if last["level"] != "ERROR" || last["err"] == nil {
					t.Errorf("the last line is %v", last)
				}
			})
		}
	}
}
