// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// packages builds a deb and an rpm of the binaries under test, and returns their paths.
func packages(t *testing.T) (deb, rpm string) {
	t.Helper()
	folder := t.TempDir()
	nfpm := filepath.Join(folder, "nfpm")
	for _, cmd := range []*exec.Cmd{
		exec.Command("go", "build", "-C", "../tools", "-o", nfpm, "github.com/goreleaser/nfpm/v2/cmd/nfpm"),
		exec.Command("../scripts/packages.sh", nfpm, released.path(t), releasedProbe.path(t), folder),
	} {
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd.Args, err, output)
		}
	}
	for pattern, path := range map[string]*string{"*.deb": &deb, "*.rpm": &rpm} {
		matches, err := filepath.Glob(filepath.Join(folder, pattern))
		if err != nil || len(matches) != 1 {
			t.Fatalf("%v, %v: want one package %s", matches, err, pattern)
		}
		*path = matches[0]
	}
	return deb, rpm
}

func TestPackages(t *testing.T) {
	if err := cannotRun(); err != nil {
		skip(t, err)
	}
	deb, rpm := packages(t)
	t.Run("what is in the deb", func(t *testing.T) { testContents(t, deb) })
	t.Run("the deb on a running systemd", func(t *testing.T) { testDebianPackage(t, deb) })
	t.Run("the unit needs what it keeps", func(t *testing.T) { testUnitNeedsWhatItKeeps(t, deb) })
	t.Run("the unit with CAP_SYS_ADMIN at its start", func(t *testing.T) { testSysAdmin(t, deb) })
	t.Run("the unit with pins", func(t *testing.T) { testPins(t, deb) })
	t.Run("the rpm", func(t *testing.T) { testRPMPackage(t, rpm) })
}

// testDebianPackage installs the deb with dpkg, audits a device under the restrictions of the
// unit, rotates the trail, and upgrades, removes and purges the package.
func testDebianPackage(t *testing.T, deb string) {
	l := newLab(t)
	h := l.boot()
	h.copyIn(deb)
	before := h.files()

	h.run("dpkg", "--install", "/package.deb")
	if state, err := h.try("systemctl", "is-active", unit); err == nil || state != "inactive\n" {
		t.Errorf("after the installation the unit is %s, want inactive: nobody has started it", state)
	}
	if output := h.run("systemd-analyze", "verify", "/lib/systemd/system/"+unit); output != "" {
		t.Errorf("systemd-analyze verify says\n%s", output)
	}
	h.run("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", "/lib/systemd/system/"+unit)

	const settings = "XDP_INTERFACE=" + device + "\nARGS=\"--web.listen-address=" + address + " --trail.file=/var/log/xdp_audit/trail.log\"\n"
	h.configure(settings)
	h.run("systemctl", "enable", "--now", unit)
	e := &exporter{h.init, l.client(), "http"}
	e.awaitReady("/-/ready")
	if hooks := e.scrape().sum("hook_up", "device="+device); hooks != 1 {
		t.Errorf("hook_up is %v, want 1", hooks)
	}
	first := h.expectConfined()

	f := l.newFlow(l.audited.IPv4.Addr())
	awaitRecords := func() {
		t.Helper()
		records := e.scrape().sum("trail_records_total")
		l.poll(func() error {
			l.send(f, 1000)
			if now := e.scrape().sum("trail_records_total"); now <= records {
				return fmt.Errorf("%v records in the trail, as before", now)
			}
			return nil
		})
	}
	awaitRecords()
	h.run("logrotate", "--force", "/etc/logrotate.d/xdp_audit_exporter")
	l.poll(func() error {
		_, err := os.Stat(h.path("/var/log/xdp_audit/trail.log"))
		return err
	})
	awaitRecords()
	for _, name := range []string{"trail.log", "trail.log.1"} {
		if got := h.run("stat", "--format=%U %a", "/var/log/xdp_audit/"+name); got != "xdp_audit 600\n" {
			t.Errorf("%s has owner and mode %q", name, got)
		}
		if info, err := os.Stat(h.path("/var/log/xdp_audit/" + name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v, or it is empty", name, err)
		}
	}
	if second := h.expectConfined(); second != first {
		t.Errorf("the process is %s, and was %s: rotating restarted it", second, first)
	}

	h.run("dpkg", "--install", "/package.deb")
	e.awaitReady("/-/ready")
	if second := h.expectConfined(); second == first {
		t.Error("the upgrade left the old process running")
	}
	if kept, err := os.ReadFile(h.path("/etc/default/xdp_audit_exporter")); err != nil || string(kept) != settings {
		t.Errorf("the upgrade left %q, %v of the settings", kept, err)
	}

	h.run("dpkg", "--remove", "xdp-audit-exporter")
	l.expectNothingAttached()
	for _, name := range []string{"/etc/default/xdp_audit_exporter", "/var/log/xdp_audit/trail.log"} {
		if _, err := os.Stat(h.path(name)); err != nil {
			t.Errorf("removing, and not purging, took a file away: %v", err)
		}
	}

	h.run("dpkg", "--purge", "xdp-audit-exporter")
	if user, err := h.try("getent", "passwd", "xdp_audit"); err == nil {
		t.Errorf("a user is left: %s", user)
	}
	for _, file := range h.files() {
		if slices.Contains(before, file) {
			continue
		}
		// Files that dpkg, journald, logrotate and userdel write.
		switch filepath.Dir(file) {
		case "/var/lib/dpkg", "/var/lib/logrotate", "/var/lib/systemd", "/etc":
			if file != "/etc/systemd" && !strings.Contains(file, "xdp") {
				continue
			}
		}
		t.Errorf("the purge left %s", file)
	}
}

// testUnitNeedsWhatItKeeps removes the permissions of the unit one by one. Each time it fails
// with the reason. So the restrictions are effective, and every remaining permission is needed.
func testUnitNeedsWhatItKeeps(t *testing.T, deb string) {
	l := newLab(t)
	h := l.boot()
	h.copyIn(deb)
	h.run("dpkg", "--install", "/package.deb")
	h.configure("XDP_INTERFACE=" + device + "\n")
	dropIns := h.path("/run/systemd/system/" + unit + ".d")
	if err := os.MkdirAll(dropIns, 0o750); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		description, dropIn, want string
	}{
		{"no bpf(2)", "SystemCallFilter=~bpf", "bpf(2) is refused by a seccomp filter"},
		{"no CAP_PERFMON", "AmbientCapabilities=~CAP_PERFMON", "CAP_PERFMON"},
		{"no netlink", "RestrictAddressFamilies=~AF_NETLINK", "address family not supported"},
		{"a trail where nothing can be written", `Environment="ARGS=--trail.file=/var/lib/trail.log"`, "read-only file system"},
	} {
		t.Run(test.description, func(t *testing.T) {
			text := "[Service]\nRestart=no\nStandardError=truncate:/run/log.txt\n" + test.dropIn + "\n"
			if err := os.WriteFile(filepath.Join(dropIns, "test.conf"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			h.run("systemctl", "daemon-reload")
			_, _ = h.try("systemctl", "start", unit) // succeeds unless the unit has already ended
			l.poll(func() error {
				if state, _ := h.try("systemctl", "is-failed", unit); state != "failed\n" {
					return fmt.Errorf("the unit is %s", state)
				}
				return nil
			})
			if log := h.run("cat", "/run/log.txt"); !strings.Contains(log, test.want) {
				t.Errorf("no %q in\n%s", test.want, log)
			}
		})
	}
	t.Run("nothing is refused", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(dropIns, "test.conf"), []byte("[Service]\nStandardError=truncate:/run/log.txt\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.run("systemctl", "daemon-reload")
		h.run("systemctl", "start", unit)
		log := ""
		l.poll(func() error {
			if log = h.run("cat", "/run/log.txt"); !strings.Contains(log, "Listening on") {
				return errors.New("the exporter does not listen yet")
			}
			return nil
		})
		if strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
			t.Errorf("the log complains:\n%s", log)
		}
		h.run("systemctl", "stop", unit)
	})
}

// testSysAdmin adds CAP_SYS_ADMIN to the unit, as kernels with a high kernel.perf_event_paranoid
// require. The exporter holds no capability once it serves.
func testSysAdmin(t *testing.T, deb string) {
	l := newLab(t)
	h := l.boot()
	h.copyIn(deb)
	h.run("dpkg", "--install", "/package.deb")
	e := &exporter{h.init, l.client(), "http"}
	for _, test := range []struct{ description, device, want string }{
		{"a device by its name", device, "CapPrm:\t0000000000000000\n"},
		{"devices that are followed", "audited*", "CapPrm:\t000000c000001000\n"},
	} {
		t.Run(test.description, func(t *testing.T) {
			h.configure("XDP_INTERFACE=" + test.device + "\n")
			h.documented("sys_admin.conf")
			e.awaitReady("/-/ready")
			pid := strings.TrimSpace(h.run("systemctl", "show", "--property=MainPID", "--value", unit))
			status := h.run("cat", "/proc/"+pid+"/status")
			for _, want := range []string{test.want, "CapBnd:\t000000c000201000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
				if !strings.Contains(status, want) {
					t.Errorf("the process has not %q:\n%s", want, status)
				}
			}
		})
	}
	h.run("systemctl", "stop", unit)
}

// testPins pins maps and hooks as docs/fleet.md describes. Every packet received is counted,
// across restarts of the process and upgrades of the package, and nothing is left in the end.
func testPins(t *testing.T, deb string) {
	l := newLab(t)
	h := l.boot()
	h.copyIn(deb)
	h.run("dpkg", "--install", "/package.deb")
	const folder = "/run/xdp_audit_bpf"
	e := &exporter{h.init, l.client(), "http"}
	settle := func() {
		t.Helper()
		h.run("systemctl", "reset-failed", unit) // resets the limit of starts
		e.awaitReady("/-/ready")
	}
	expectPackets := func(description string, want uint64) {
		t.Helper()
		if got := e.atRest().sum("packets_total"); got != float64(want) {
			t.Errorf("%s: %v packets were counted, and the driver received %d", description, got, want)
		}
	}
	expectAttached := func(description string) {
		t.Helper()
		if modes := l.attached(); modes[device] != attachedDriver {
			t.Errorf("%s: attached are %v", description, modes)
		}
	}

	h.configure("XDP_INTERFACE=" + device + "\nARGS=--web.listen-address=" + address + "\n")
	h.documented("pins.conf")
	settle()
	if output := h.run("systemd-analyze", "verify", "/lib/systemd/system/"+unit); output != "" {
		t.Errorf("systemd-analyze verify says\n%s", output)
	}
	h.expectConfined()
	if got := h.run("stat", "--file-system", "--format=%T", folder); got != "bpf_fs\n" {
		t.Errorf("%s is a file system %s", folder, got)
	}
	if got := h.run("stat", "--format=%U:%G %a", folder); got != "xdp_audit:xdp_audit 1700\n" {
		t.Errorf("%s has owner and mode %s", folder, got)
	}

	f := l.newFlow(l.audited.IPv4.Addr())
	traffic := l.startStream(f)
	for range 3 {
		h.run("systemctl", "restart", unit)
		settle()
	}
	h.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit)
	expectAttached("after kill -9")
	h.run("systemctl", "restart", unit)
	settle()
	h.run("dpkg", "--install", "/package.deb")
	settle()
	sent, err := traffic.end()
	if err != nil {
		t.Fatal(err)
	}
	expectPackets("across restarts", sent.received)
	h.expectConfined()

	h.run("systemctl", "stop", unit)
	expectAttached("after systemctl stop")
	l.send(f, 1000)
	h.run("systemctl", "start", unit)
	settle()
	expectPackets("across a stop", sent.received+1000)
	if mounts := h.run("cat", "/proc/mounts"); strings.Count(mounts, " "+folder+" ") != 1 {
		t.Errorf("%s is not mounted once:\n%s", folder, mounts)
	}

	h.documented("--bpf.unpin")
	l.expectNothingAttached()

	// For devices that are followed, the confined process itself pins the hooks.
	h.configure("XDP_INTERFACE=audited*\nARGS=--web.listen-address=" + address + "\n")
	h.run("systemctl", "start", unit)
	settle()
	second, _ := l.connect("audited1", "sender1", 1)
	l.poll(func() error {
		if hooks := e.scrape().sum("hook_up"); hooks != 2 {
			return fmt.Errorf("%v hooks are up, want 2", hooks)
		}
		return nil
	})
	l.send(f, 100)
	l.send(l.newFlow(second.IPv4.Addr()), 200)
	h.run("systemctl", "restart", unit)
	settle()
	expectPackets("of two devices, across a restart", 300)

	h.run("dpkg", "--remove", "xdp-audit-exporter")
	l.expectNothingAttached()
	if _, err := os.Stat(h.path(folder)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removing the package left %s: %v", folder, err)
	}
}

// testRPMPackage reads the package with rpm. It does not install the package, because there is
// no rpm database.
func testRPMPackage(t *testing.T, path string) {
	rpm := findTool(t, "rpm")
	version, err := os.ReadFile("../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	documents := ""
	for _, file := range files {
		documents += "/usr/share/doc/xdp-audit-exporter/docs/" + filepath.Base(file) + "\n"
	}
	contents := `/etc/default/xdp_audit_exporter
/etc/logrotate.d/xdp_audit_exporter
/usr/bin/xdp_audit_exporter
/usr/bin/xdp_audit_probe
/usr/lib/systemd/system/run-xdp_audit_bpf.mount
/usr/lib/systemd/system/xdp_audit_exporter.service
/usr/lib/sysusers.d/xdp_audit_exporter.conf
/usr/share/bash-completion/completions/xdp_audit_exporter
/usr/share/bash-completion/completions/xdp_audit_probe
/usr/share/doc/xdp-audit-exporter/LICENSE
/usr/share/doc/xdp-audit-exporter/LICENSE.GPL-2.0
/usr/share/doc/xdp-audit-exporter/NOTICE
/usr/share/doc/xdp-audit-exporter/README.md
/usr/share/doc/xdp-audit-exporter/changelog.gz
/usr/share/doc/xdp-audit-exporter/copyright
` + documents + `/usr/share/doc/xdp-audit-exporter/examples/pins.conf
/usr/share/doc/xdp-audit-exporter/examples/sys_admin.conf
/usr/share/doc/xdp-audit-exporter/web-config.example.yml
/usr/share/man/man1/xdp_audit_exporter.1.gz
/usr/share/man/man1/xdp_audit_probe.1.gz
/usr/share/xdp-audit-exporter/dashboards/device.json
/usr/share/xdp-audit-exporter/dashboards/fleet.json
/usr/share/xdp-audit-exporter/rules/xdp_audit_alerts.yml
/usr/share/xdp-audit-exporter/rules/xdp_audit_recording.yml
/usr/share/zsh/site-functions/_xdp_audit_exporter
/usr/share/zsh/site-functions/_xdp_audit_probe
`
	// The third and the fourth file are the two programs.
	modes := strings.Repeat("root:root 100644\n", 2) + strings.Repeat("root:root 100755\n", 2) +
		strings.Repeat("root:root 100644\n", strings.Count(contents, "\n")-4)
	for _, test := range []struct {
		description string
		args        []string
		want        string
	}{
		{"name and version", []string{"--queryformat", "%{NAME} %{VERSION}-%{RELEASE} %{LICENSE}\n"},
			"xdp-audit-exporter " + strings.TrimSpace(string(version)) + "-1 Apache-2.0 and (GPL-2.0-only or Apache-2.0)\n"},
		{"files", []string{"--list"}, contents},
		{"files that an upgrade keeps", []string{"--configfiles"}, "/etc/default/xdp_audit_exporter\n/etc/logrotate.d/xdp_audit_exporter\n"},
		{"owners and modes", []string{"--queryformat", "[%{FILEUSERNAME}:%{FILEGROUPNAME} %{FILEMODES:octal}\n]"}, modes},
	} {
		t.Run(test.description, func(t *testing.T) {
			output, err := exec.Command(rpm, append([]string{"--query", "--package", path}, test.args...)...).Output()
			if err != nil || string(output) != test.want {
				t.Errorf("%v, got\n%s\nwant\n%s", err, output, test.want)
			}
		})
	}
	if output, err := exec.Command(rpm, "--checksig", "--nosignature", path).CombinedOutput(); err != nil {
		t.Errorf("the digests are wrong: %v\n%s", err, output)
	}
	scripts, err := exec.Command(rpm, "--query", "--package", "--scripts", path).Output()
	if err != nil || strings.Count(string(scripts), "#!/bin/sh") != 3 {
		t.Errorf("%v, want three scripts in\n%s", err, scripts)
	}
}
