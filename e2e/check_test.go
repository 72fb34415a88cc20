// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const hasStarted = "Starting xdp_audit_exporter"

// checkLab is a lab with a directory for pins and one for other files.
type checkLab struct {
	*lab
	pins, files string
}

func newCheckLab(t *testing.T) *checkLab {
	t.Helper()
	l := &checkLab{lab: newLab(t), files: t.TempDir()}
	l.pins = l.mountBPF(0)
	return l
}

// addKinds adds devices of several kinds.
func (l *checkLab) addKinds() {
	l.t.Helper()
	named := func(name string) netlink.LinkAttrs {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return attrs
	}
	err := l.audited.Namespace.Do(func() error {
		pair, bridge := &netlink.Veth{LinkAttrs: named("port0"), PeerName: "port1"}, &netlink.Bridge{LinkAttrs: named("bridge0")}
		return errors.Join(
			netlink.LinkAdd(bridge), netlink.LinkAdd(pair), netlink.LinkSetMaster(pair, bridge),
			netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: named("tap0"), Mode: netlink.TUNTAP_MODE_TAP}),
			netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: named("tun0"), Mode: netlink.TUNTAP_MODE_TUN}),
		)
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// state is what a check must leave as it is.
type state struct {
	attached map[string]uint32
	pins     []string
	content  []string // of the pinned maps that a start writes to
	files    []string
}

func (l *checkLab) state() (s state) {
	l.t.Helper()
	s.attached = l.attached()
	s.pins, _ = l.pinned(l.pins)
	for _, name := range []string{"map_audit_layout", "map_audit_devices", "map_event_allowances"} {
		if slices.Contains(s.pins, name) {
			s.content = append(s.content, l.dump(filepath.Join(l.pins, name)))
		}
	}
	err := filepath.WalkDir(l.files, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		s.files = append(s.files, path+" "+info.Mode().String()+" "+info.ModTime().String())
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// dump returns the content of a pinned array.
func (l *checkLab) dump(path string) (text string) {
	l.t.Helper()
	err := l.audited.Namespace.Do(func() error {
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			return err
		}
		defer m.Close()
		for i := range m.MaxEntries() {
			value, err := m.LookupBytes(i)
			if err != nil {
				return err
			}
			text += fmt.Sprintf("%x", value)
		}
		return nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return text
}

// check runs --check, expects it to change nothing, and returns its exit code.
func (l *checkLab) check(args []string, edits ...func(*exec.Cmd)) (code int, p *process) {
	l.t.Helper()
	before := l.state()
	p = l.start(binaries.exporter, append([]string{"--check"}, args...), edits...)
	code = p.wait()
	after := l.state()
	if !reflect.DeepEqual(before, after) {
		l.t.Errorf("the check of %v has changed\n%+v to\n%+v", args, before, after)
	}
	return code, p
}

// starts starts the exporter, ends it, and returns whether it has started.
func (l *checkLab) starts(args []string, edits ...func(*exec.Cmd)) (hasBegun bool, p *process) {
	l.t.Helper()
	p = l.start(binaries.exporter, args, edits...)
	l.poll(func() error {
		if hasBegun = p.logged(hasStarted) > 0; hasBegun || p.hasEnded() {
			return nil
		}
		return errors.New("the exporter neither starts nor ends")
	})
	if hasBegun {
		p.signal(syscall.SIGTERM)
	}
	p.wait()
	return hasBegun, p
}

// compare expects that a check and a start have the same end.
func (l *checkLab) compare(description string, starts bool, args []string, edits ...func(*exec.Cmd)) {
	l.t.Helper()
	code, checked := l.check(args, edits...)
	hasBegun, started := l.starts(args, edits...)
	if hasBegun != starts || (code == 0) != starts || code > 1 {
		l.t.Errorf("%s: %v: the exit code of --check is %d, the start succeeds: %t, want %t\n%s%s%s",
			description, args, code, hasBegun, starts, &checked.stdout, &checked.stderr, &started.stderr)
	}
}

// --check exits with 0 if and only if the exporter starts with the same flags, and changes nothing.
func TestCheckForetellsTheStart(t *testing.T) {
	l := newCheckLab(t)
	l.addKinds()
	in := func(name string) string { return filepath.Join(l.files, name) }
	for name, content := range map[string]string{"users.yml": "basic_auth_users: {}\n", "broken.yml": "tls_server_config: [\n", "trail": "", "leak.yml": oneAssessment} {
		if err := os.WriteFile(in(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(unix.Mkfifo(in("pipe"), 0o600), os.Mkdir(in("folder"), 0o700)); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: in("folder/stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	audit := "--audit.device=" + device
	for _, test := range []struct {
		description string
		starts      bool
		args        []string
	}{
		{"a veth", true, []string{audit}},
		{"a veth in generic mode", true, []string{audit, "--audit.mode=skb"}},
		{"a veth in hardware", false, []string{audit, "--audit.mode=hw"}},
		{"the loopback device", false, []string{"--audit.device=lo"}},
		{"the loopback device in generic mode", true, []string{"--audit.device=lo", "--audit.mode=skb"}},
		{"the loopback device in any mode", true, []string{"--audit.device=lo", "--audit.mode=auto"}},
		{"a bridge", false, []string{"--audit.device=bridge0"}},
		{"a bridge and then its port", true, []string{"--audit.device=bridge0,port0", "--audit.mode=skb"}},
		{"a tap", true, []string{"--audit.device=tap0"}},
		{"a tun", false, []string{"--audit.device=tun0"}},
		{"a tun in generic mode", true, []string{"--audit.device=tun0", "--audit.mode=skb"}},
		{"one of two devices", true, []string{audit, "--audit.device=lo"}},
		{"a device that does not exist", false, []string{"--audit.device=absent0"}},
		{"a device that does not exist and may come", true, []string{"--audit.device=absent0", "--audit.follow"}},
		{"a glob", true, []string{"--audit.device=audited*"}},
		{"a glob without a match", false, []string{"--audit.device=absent*"}},
		{"a glob without a match that may come", true, []string{"--audit.device=absent*", "--audit.follow"}},
		{"no device, and no default route", false, nil},
		{"no device, and no default route yet", true, []string{"--audit.follow"}},
		{"an empty device", false, []string{"--audit.device="}},
		{"a number that is none", false, []string{audit, "--audit.threshold=four"}},
		{"a threshold that is too low", false, []string{audit, "--audit.threshold=1"}},
		{"a flag that does not exist", false, []string{audit, "--audit.nosuch"}},
		{"pins", true, []string{audit, "--bpf.pin-path={pins}"}},
		{"pins that exist", true, []string{audit, "--bpf.pin-path={pins}"}},
		{"pins that exist, in another mode", true, []string{audit, "--bpf.pin-path={pins}", "--audit.mode=skb"}},
		{"pins of another layout", true, []string{audit, "--bpf.pin-path={pins}", "--audit.flows=1024"}},
		{"pins of another device", true, []string{"--audit.device=tap0", "--bpf.pin-path={pins}", "--audit.max-devices=1"}},
		{"a device with a hook that is pinned elsewhere", false, []string{"--audit.device=tap0"}},
		{"a name of pins with a dot", false, []string{audit, "--bpf.pin-path={pins}.d"}},
		{"pins outside of a bpf file system", false, []string{audit, "--bpf.pin-path={files}/pins"}},
		{"a folder of pins that is not there", false, []string{audit, "--bpf.pin-path={pins}/a/b"}},
		{"a socket", true, []string{audit, "--web.listen-address=unix:{files}/folder/new"}},
		{"a socket that was left", true, []string{audit, "--web.listen-address=unix:{files}/folder/stale"}},
		{"a socket that is a file", false, []string{audit, "--web.listen-address=unix:{files}/trail"}},
		{"a socket without a folder", false, []string{audit, "--web.listen-address=unix:{files}/none/new"}},
		{"a socket twice", false, []string{audit, "--web.listen-address=unix:{files}/folder/new", "--web.listen-address=unix:{files}/folder/new"}},
		{"a socket with a long name", false, []string{audit, "--web.listen-address=unix:{files}/folder/" + strings.Repeat("n", 100)}},
		{"a port twice", false, []string{audit, "--web.listen-address=:9400", "--web.listen-address=:9400"}},
		{"an address of nobody", false, []string{audit, "--web.listen-address=192.0.2.99:9400"}},
		{"no socket of systemd", false, []string{audit, "--web.systemd-socket"}},
		{"a web configuration", true, []string{audit, "--web.config.file={files}/users.yml"}},
		{"a web configuration that is none", false, []string{audit, "--web.config.file={files}/broken.yml"}},
		{"a web configuration that is a pipe", false, []string{audit, "--web.config.file={files}/pipe"}},
		{"a trail", true, []string{audit, "--trail.file={files}/trail"}},
		{"a trail that is new", true, []string{audit, "--trail.file={files}/folder/trail"}},
		{"a trail on standard output", true, []string{audit, "--trail.file=-"}},
		{"a trail that is a folder", false, []string{audit, "--trail.file={files}/folder"}},
		{"a trail without a folder", false, []string{audit, "--trail.file={files}/none/trail"}},
		{"a baseline", true, []string{audit, "--audit.baseline-file={files}/folder/baseline.json"}},
		{"a baseline that is none", false, []string{audit, "--audit.baseline-file={files}/users.yml"}},
		{"a baseline without a folder", false, []string{audit, "--audit.baseline-file={files}/none/baseline.json"}},
		{"no events", true, []string{audit, "--audit.event-rate=0"}},
		{"covert", true, []string{audit, "--collector.covert"}},
		{"leak assessments", true, []string{audit, "--leak.config.file={files}/leak.yml", "--leak.raw-file={files}/folder/raw.csv"}},
		{"leak assessments that are none", false, []string{audit, "--leak.config.file={files}/broken.yml"}},
		{"leak assessments in a pipe", false, []string{audit, "--leak.config.file={files}/pipe"}},
		{"a raw file without assessments", false, []string{audit, "--leak.raw-file={files}/folder/raw.csv"}},
		{"a raw file without a folder", false, []string{audit, "--leak.config.file={files}/leak.yml", "--leak.raw-file={files}/none/raw.csv"}},
	} {
		var args []string
		for _, arg := range test.args {
			args = append(args, strings.NewReplacer("{pins}", l.pins, "{files}", l.files).Replace(arg))
		}
		l.compare(test.description, test.starts, args)
	}
	l.unpin(l.pins)
}

// What another process holds is in the way of a check as of a start.
func TestCheckSeesOthers(t *testing.T) {
	l := newCheckLab(t)
	l.addKinds()
	audit := []string{"--audit.device=" + device, "--bpf.pin-path=" + l.pins}
	e := l.startExporter(audit...)
	l.compare("a running exporter with the same flags", false, audit)
	l.compare("a running exporter with the same port", false, []string{"--audit.device=lo", "--audit.mode=skb", "--web.listen-address=" + address})
	l.compare("a running exporter with the same pins", false, []string{"--audit.device=lo", "--audit.mode=skb", "--bpf.pin-path=" + l.pins, "--web.listen-address=:9401"})
	l.compare("a running exporter with the same device", false, []string{"--audit.device=" + device, "--web.listen-address=:9401"})
	e.expectPackets(device, 0) // it still counts
	e.endWith(syscall.SIGTERM)
	l.compare("an exporter that has ended", true, audit)
	l.unpin(l.pins)

	other, _ := l.occupy(device, link.XDPDriverMode)
	l.occupy("bridge0", link.XDPGenericMode)
	for _, mode := range []string{"drv", "skb", "auto"} {
		l.compare("a device with another program", false, []string{"--audit.device=" + device, "--audit.mode=" + mode})
		l.compare("a port of a bridge with another program", false, []string{"--audit.device=port0", "--audit.mode=" + mode})
	}
	_, p := l.check([]string{"--audit.device=" + device})
	if want := fmt.Sprintf("XDP program %d", programID(t, other)); !strings.Contains(p.stdout.String(), want) {
		t.Errorf("the report lacks %q:\n%s", want, &p.stdout)
	}
}

// A device whose hook of outgoing packets is full cannot have its response times measured, and is
// audited without them.
func TestCheckSeesAFullEgressHook(t *testing.T) {
	const most = 63 // of TCX
	l := newCheckLab(t)
	config := filepath.Join(l.files, "leak.yml")
	if err := os.WriteFile(config, []byte(oneAssessment), 0o600); err != nil {
		t.Fatal(err)
	}
	index, err := l.audited.Namespace.Link(device)
	if err != nil {
		t.Fatal(err)
	}
	attach := func(programs int) {
		t.Helper()
		err := l.audited.Namespace.Do(func() error {
			for range programs { // one program may be attached once
				program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
					Name: "of_another", Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
				})
				if err != nil {
					return err
				}
				t.Cleanup(func() { program.Close() })
				hook, err := link.AttachTCX(link.TCXOptions{Interface: index.Attrs().Index, Program: program, Attach: ebpf.AttachTCXEgress})
				if err != nil {
					return err
				}
				t.Cleanup(func() { hook.Close() })
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	audit := "--audit.device=" + device
	attach(1)
	l.compare("a program of outgoing packets", true, []string{audit, "--leak.config.file=" + config})
	attach(most - 1)
	l.compare("a full hook of outgoing packets", false, []string{audit, "--leak.config.file=" + config})
	l.compare("a full hook without response times", true, []string{audit})
	_, p := l.check([]string{audit, "--leak.config.file=" + config})
	if !strings.Contains(p.stdout.String(), "(of_another)") {
		t.Errorf("the report does not name the program:\n%s", &p.stdout)
	}
}

// A user without capabilities learns everything that the kernel tells that user.
func TestCheckWithoutPrivilege(t *testing.T) {
	const nobody = 65534
	l := newCheckLab(t)
	withoutPrivilege := func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true}
	}
	args := []string{"--audit.device=" + device + ",lo"}
	l.compare("a user without capabilities", false, args, withoutPrivilege)
	_, p := l.check(args, withoutPrivilege)
	for _, want := range []string{"CAP_BPF", "device " + device, "device lo", "veth", "user 65534"} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, &p.stdout)
		}
	}
	l.compare("a user with capabilities", true, args, withoutPrivilege, func(cmd *exec.Cmd) {
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}
	})
	l.compare("a user namespace", false, args, func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	})
	for _, refusal := range lastRefusals {
		l.compare(refusal.description, false, append(refusal.args(t), "--audit.device="+device))
	}
}

// The report is one JSON object with --log.format=json, and ends as the tables do.
func TestCheckInJSON(t *testing.T) {
	l := newCheckLab(t)
	for args, want := range map[string]int{"--audit.device=" + device: 0, "--audit.device=lo": 1} {
		code, p := l.check([]string{args, "--log.format=json"})
		var report struct {
			WouldStart bool `json:"would_start"`
			Errors     []string
			Host       []map[string]string
			Devices    []struct {
				Name, Mode, Error string
				Findings          []map[string]string
			}
		}
		if err := json.Unmarshal([]byte(p.stdout.String()), &report); err != nil {
			t.Fatalf("%v: %s", err, &p.stdout)
		}
		if code != want || report.WouldStart != (want == 0) || (len(report.Errors) == 0) != (want == 0) {
			t.Errorf("%s: exit code %d, %+v", args, code, report)
		}
		if len(report.Devices) != 1 || len(report.Devices[0].Findings) < 8 || len(report.Host) < 13 {
			t.Errorf("%s: %+v", args, report)
		}
	}
}
