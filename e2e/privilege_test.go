// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// needLandlock returns the ABI version of Landlock, or skips the test.
func needLandlock(t *testing.T) (abi int) {
	t.Helper()
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		skip(t, fmt.Errorf("the kernel has no Landlock: %w", err))
	}
	return abi
}

// threads returns the status of every thread of the process, by the names of the lines.
func (p *process) threads() (statuses []map[string]string, err error) {
	tasks := fmt.Sprintf("/proc/%d/task", p.cmd.Process.Pid)
	entries, err := os.ReadDir(tasks)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(tasks, entry.Name(), "status"))
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread has ended
		}
		if err != nil {
			return nil, err
		}
		status := map[string]string{}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			status[name] = strings.TrimSpace(value)
		}
		statuses = append(statuses, status)
	}
	return statuses, nil
}

// expectThreads expects the named lines in the status of every thread.
func (p *process) expectThreads(want map[string]string) {
	p.lab.t.Helper()
	statuses, err := p.threads()
	if err != nil {
		p.lab.t.Fatal(err)
	}
	if len(statuses) < 3 {
		p.lab.t.Errorf("there are %d threads, want several", len(statuses))
	}
	for _, status := range statuses {
		for name, value := range want {
			if status[name] != value {
				p.lab.t.Errorf("thread %s has %s %s, want %s", status["Pid"], name, status[name], value)
			}
		}
	}
}

// expectHeldOpen expects the process to hold files open. Landlock grants access to inodes of
// /proc. When memory is short, the kernel drops an inode that is not open, the grant is lost,
// and the process_* metrics disappear without an error.
func (p *process) expectHeldOpen(paths ...string) {
	p.lab.t.Helper()
	descriptors := fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)
	entries, err := os.ReadDir(descriptors)
	if err != nil {
		p.lab.t.Fatal(err)
	}
	var open []string
	for _, entry := range entries {
		if target, err := os.Readlink(filepath.Join(descriptors, entry.Name())); err == nil {
			open = append(open, target)
		}
	}
	for _, path := range paths {
		if !slices.Contains(open, path) {
			p.lab.t.Errorf("%s is not held open, but %q", path, open)
		}
	}
}

const noCapability = "0000000000000000"

// nothing is the state of the threads of an exporter that root started.
func nothing() map[string]string {
	return map[string]string{
		"CapInh": noCapability, "CapPrm": noCapability, "CapEff": noCapability, "CapBnd": noCapability, "CapAmb": noCapability,
		"NoNewPrivs": "1", "Seccomp": "2",
	}
}

// The exporter works without privileges: packets are counted, events are received and written,
// the state of the hook is known, and SIGTERM detaches.
func TestNoPrivilegeAfterStart(t *testing.T) {
	for _, test := range []struct {
		description string
		binary      func() string
	}{
		{"with cgo where there is a compiler", func() string { return binaries.exporter }},
		{"static, as released", func() string { return released.path(t) }},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			needLandlock(t)
			path := filepath.Join(t.TempDir(), "trail")
			e := l.launch(test.binary(), []string{
				"--web.listen-address=" + address, "--audit.device=" + device, "--audit.min-samples=10", "--audit.threshold=2",
				"--audit.event-rate=1000000", "--audit.calibrate=0", "--trail.file=" + path,
			})
			e.awaitReady("/-/ready")
			e.expectThreads(nothing())

			const packets = 20000
			l.send(l.newFlow(l.audited.IPv4.Addr()), packets)
			s := e.atRest()
			if got := s.sum("packets_total", "family=ipv4", "protocol=udp"); got != packets {
				t.Errorf("%v packets were counted, want %d", got, packets)
			}
			if events := s.sum("events_total"); events == 0 || countLines(t, path) != events {
				t.Errorf("%v events and %v records, want the same number, and not 0", events, countLines(t, path))
			}
			for name, want := range map[string]float64{
				"hook_up": 1, "privileges_capabilities": 0, "privileges_no_new_privileges": 1, "trail_write_errors_total": 0,
			} {
				if got := s.sum(name); got != want || len(s.series(name)) != 1 {
					t.Errorf("%s is %v, want %v", name, got, want)
				}
			}
			if s.sum("privileges_landlock_abi") < 1 || len(s.series("privileges_capability_held")) != 0 {
				t.Errorf("Landlock has version %v, held are %v", s.sum("privileges_landlock_abi"), s.series("privileges_capability_held"))
			}
			if got := s.series("scrape_collector_success"); s.sum("scrape_collector_success") != float64(len(got)) {
				t.Errorf("not all collectors succeed: %v", got)
			}
			for _, name := range []string{"process_open_fds", "process_start_time_seconds", "process_max_fds", "process_resident_memory_bytes"} {
				if s.sum(name) == 0 {
					t.Errorf("%s is missing", name)
				}
			}
			t.Logf("Landlock is version %v", s.sum("privileges_landlock_abi"))
			e.expectThreads(nothing()) // threads started since then, too
			e.expectHeldOpen(fmt.Sprintf("/proc/%d", e.cmd.Process.Pid), "/proc/stat", "/proc/sys/kernel/bpf_stats_enabled")
			e.expectLog("level=INFO", `capabilities_kept=""`)
			e.expectStopped()
			if log := e.stderr.String(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
				t.Errorf("the log complains:\n%s", log)
			}
		})
	}
}

// Actions of an attacker inside the process are refused. With kept privileges they succeed.
func TestAttacksFromInside(t *testing.T) {
	l := newLab(t)
	abi := needLandlock(t)
	binary := attackable.path(t)
	folder := t.TempDir()
	config, trail := filepath.Join(folder, "web", "web.yml"), filepath.Join(folder, "log", "trail")
	for _, path := range []string{config, trail} {
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(config, []byte("basic_auth_users: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	self := strconv.Itoa(os.Getpid())
	const denied, notPermitted = "permission denied", "operation not permitted"
	signals := 6
	if errata, err := ll.LandlockGetErrata(); err != nil || errata&2 == 0 {
		signals = abi + 1 // not used: threads could not signal each other
	}
	abstract, socket, shown := "@xdp-audit-"+self, filepath.Join(folder, "socket"), filepath.Join(folder, "shown")
	if err := os.WriteFile(shown, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l.listenUnix(abstract)
	l.listenUnix(socket)
	attacks := []struct {
		do, with, want string
		abi            int // first Landlock ABI that refuses the action; 0 if capabilities do
	}{
		{"read", "/etc/shadow", "open /etc/shadow: " + denied, 1},
		{"read", "/proc/" + self + "/environ", "open /proc/" + self + "/environ: " + denied, 1},
		{"create", filepath.Join(folder, "new"), "open " + filepath.Join(folder, "new") + ": " + denied, 1},
		{"create", filepath.Join(folder, "web", "new"), "open " + filepath.Join(folder, "web", "new") + ": " + denied, 1},
		{"run", "/bin/true", "fork/exec /bin/true: " + denied, 1},
		{"signal", self, notPermitted, signals},
		{"load a program", "", notPermitted, 0},
		{"create a map", "", notPermitted, 0},
		{"open a program", "{program}", notPermitted, 0},
		{"open a map", mapOfAnother(t), notPermitted, 0},
		{"attach", "lo", notPermitted, 0},
		{"inject", "", notPermitted, 0},
		{"change a device", "lo", notPermitted, 0},
		{"change an address", "lo", notPermitted, 0},
		{"sniff", "", notPermitted, 0},
		{"become a user", "65534", notPermitted, 0},
		{"connect", address, denied, 4},
		{"bind", "127.0.0.1:0", denied, 4},
		{"connect to a socket", abstract, notPermitted, 6},
		{"connect to a socket", socket, denied, 9},
		{"connect with UDP", address, denied, 10},
		// No version refuses these.
		{"bind Multipath TCP", "127.0.0.1:0", "ok", 0},
		{"change a mode", shown, "ok", 0},
		{"look up a device", device, "ok", 0},
		{"read", "/proc/self/status", "ok", 0},
		// The exporter needs these.
		{"read", config, "ok", 0},
		{"create", filepath.Join(folder, "log", "new"), "ok", 0},
	}
	for _, test := range []struct {
		description string
		args        []string
		isKept      bool
	}{
		{"dropped", nil, false},
		// In native mode, a program may be bound to its device, and goes nowhere else.
		{"kept", []string{"--privileges.keep", "--audit.mode=skb"}, true},
	} {
		t.Run(test.description, func(t *testing.T) {
			args := []string{
				"--web.listen-address=" + address, "--audit.device=" + device, "--web.config.file=" + config, "--trail.file=" + trail,
			}
			e := l.launch(binary, append(args, test.args...))
			e.awaitReady("/-/ready")
			s := e.scrape()
			for _, attack := range attacks {
				with := strings.ReplaceAll(attack.with, "{program}", s.label(t, "hook_info", "program_id"))
				want := attack.want
				if test.isKept || abi < attack.abi {
					want = "ok"
				}
				answer := strings.TrimSpace(e.get("/-/probe?"+url.Values{"do": {attack.do}, "with": {with}}.Encode(), http.StatusOK))
				if answer != want {
					t.Errorf("%s %s: %q, want %q", attack.do, with, answer, want)
				}
			}
			if held := s.sum("privileges_capabilities"); (held > 0) != test.isKept || float64(len(s.series("privileges_capability_held"))) != held {
				t.Errorf("%v capabilities are held: %v", held, s.series("privileges_capability_held"))
			}
			if test.isKept {
				e.expectLog("level=WARN", "privileges")
			}
			e.expectStopped()
			for _, name := range []string{"new", "web/new", "log/new"} {
				if err := os.Remove(filepath.Join(folder, name)); err != nil && (test.isKept || name == "log/new") {
					t.Error(err)
				}
			}
		})
	}
}

// listenUnix accepts connections to a Unix socket in the audited namespace until the test ends.
func (l *lab) listenUnix(name string) {
	l.t.Helper()
	var listener net.Listener
	err := l.audited.Namespace.Do(func() (err error) {
		listener, err = net.Listen("unix", name)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
}

// mapOfAnother returns the ID of a map of the test.
func mapOfAnother(t *testing.T) string {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return strconv.Itoa(int(id))
}

// The exporter does not serve the paths of the attackable build.
func TestNoProbesInTheExporter(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=" + device)
	e.get("/-/probe?do=sniff", http.StatusNotFound)
	e.expectStopped()
}

// Replacing the certificate and the configuration by a rename, as tools do, takes effect.
func TestWebConfigIsReplaced(t *testing.T) {
	l := newLab(t)
	needLandlock(t)
	first, second := secure(t), secure(t)
	e := l.startSecured(first, "--audit.device="+device)
	e.expectThreads(nothing())

	for _, name := range []string{"tls.crt", "tls.key"} {
		if err := os.Rename(filepath.Join(filepath.Dir(second.config), name), filepath.Join(filepath.Dir(first.config), name)); err != nil {
			t.Fatal(err)
		}
	}
	withRoots := func(roots *x509.CertPool) *http.Client {
		transport := &http.Transport{DialContext: l.audited.Namespace.Dial, TLSClientConfig: &tls.Config{RootCAs: roots}}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport, Timeout: patience}
	}
	e.client = withRoots(second.roots)
	e.get("/metrics", http.StatusUnauthorized)
	e.client = withRoots(first.roots)
	var unknown x509.UnknownAuthorityError
	if _, _, err := e.ask("/metrics"); !errors.As(err, &unknown) {
		t.Errorf("the old certificate is still served: %v", err)
	}

	config := filepath.Join(filepath.Dir(first.config), "new.yml")
	if err := os.WriteFile(config, []byte("tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(config, first.config); err != nil {
		t.Fatal(err)
	}
	e.client = withRoots(second.roots)
	if body := e.get("/metrics", http.StatusOK); !strings.Contains(body, "xdp_audit_hook_up") {
		t.Errorf("no metrics without the password that is no longer asked for: %s", body)
	}
	e.expectStopped()
}

// Files that only root can read are reported at the start, not at the first scrape.
func TestFilesOfOthersAreMissedAtOnce(t *testing.T) {
	const nobody = 65534
	l := newLab(t)
	s := secure(t)
	key := filepath.Join(filepath.Dir(s.config), "tls.key")
	if err := os.Chown(key, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	args := []string{"--web.listen-address=" + address, "--audit.device=" + device, "--web.config.file=" + s.config}
	p := l.start(binaries.exporter, args)
	if code := p.wait(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	p.expectLog("error: --web.config.file: ", "privileges", "user 0", key, "permission denied", "--privileges.keep")

	e := l.startSecured(s, "--audit.device="+device, "--privileges.keep")
	e.get("/metrics", http.StatusOK)
	statuses, err := e.threads()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(statuses, func(status map[string]string) bool { return status["CapEff"] != noCapability }) {
		t.Error("no thread holds a capability that was to be kept")
	}
	e.expectStopped()
}
