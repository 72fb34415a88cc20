// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// lastRefusals are errors that are only found after the hooks are attached, with a part of their
// message.
var lastRefusals = []struct {
	description, want string
	args              func(t *testing.T) []string
}{
	{"a web configuration that takes a privilege to read", "--web.config.file", func(t *testing.T) []string {
		t.Helper()
		config := filepath.Join(t.TempDir(), "web.yml")
		if err := os.WriteFile(config, []byte("basic_auth_users: {}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		giveAway(t, config)
		return []string{"--web.config.file=" + config}
	}},
	{"a folder of baselines that takes a privilege to write", "--audit.baseline-file", func(t *testing.T) []string {
		t.Helper()
		folder := t.TempDir()
		giveAway(t, folder)
		return []string{"--audit.baseline-file=" + filepath.Join(folder, "baseline.json")}
	}},
}

// giveAway changes the owner of a file.
func giveAway(t *testing.T, path string) {
	t.Helper()
	const nobody = 65534
	if err := os.Chown(path, nobody, nobody); err != nil {
		t.Fatal(err)
	}
}

// expectFailure expects exit code 1, and that the last line of the log contains every part.
func (p *process) expectFailure(parts ...string) {
	p.lab.t.Helper()
	if code := p.wait(); code != 1 {
		p.lab.t.Errorf("exit code %d, want 1", code)
	}
	lines := strings.Split(strings.TrimSpace(p.stderr.String()), "\n")
	last := lines[len(lines)-1]
	for _, part := range append([]string{"error: "}, parts...) {
		if !strings.Contains(last, part) {
			p.lab.t.Errorf("the last line does not contain %q:\n%s", part, &p.stderr)
		}
	}
}

// expectNothingPinned expects that a directory is empty or does not exist. Without permission to
// read it, the exporter cannot remove it.
func (l *lab) expectNothingPinned(folder string) {
	l.t.Helper()
	if names, _ := l.pinned(folder); len(names) > 0 {
		l.t.Errorf("pinned are %v", names)
	}
}

// pinnedAudit is an audit with 300 packets that continues while no exporter runs.
type pinnedAudit struct {
	*lab
	folder string
	flow   *flow
	args   []string // of its exporter
	pins   []string
}

func (l *lab) pinAudit(folder string, f *flow, args ...string) *pinnedAudit {
	l.t.Helper()
	e := l.startExporter(args...)
	l.send(f, 300)
	e.endWith(syscall.SIGTERM)
	pins, _ := l.pinned(folder)
	return &pinnedAudit{l, folder, f, args, pins}
}

// expectKept expects that a failed start has left the hooks. It sends 200 packets, starts the
// exporter, and expects the number of packets counted.
func (p *pinnedAudit) expectKept(hooks map[string]uint32, packets float64) {
	p.t.Helper()
	if modes := p.attached(); !maps.Equal(modes, hooks) {
		p.t.Errorf("attached are %v, want %v", modes, hooks)
	}
	p.send(p.flow, 200)
	e := p.startExporter(p.args...)
	e.expectLog(takenOver)
	if got := e.atRest().sum("packets_total", "protocol=udp"); got != packets {
		p.t.Errorf("%v packets were counted, want %v", got, packets)
	}
	e.endWith(syscall.SIGTERM)
	p.unpin(p.folder)
}

// expectSamePins expects the same pins as before the failed start.
func (p *pinnedAudit) expectSamePins() {
	p.t.Helper()
	if after, _ := p.pinned(p.folder); !slices.Equal(after, p.pins) {
		p.t.Errorf("pinned are %v, and were %v", after, p.pins)
	}
}

// A start that fails after its hooks are attached and pinned removes them.
func TestAStartThatFailsLateLeavesNothing(t *testing.T) {
	for _, refusal := range lastRefusals {
		for _, test := range []struct {
			description string
			args        []string
		}{
			{"without pins", nil},
			{"with pins", []string{"--bpf.pin-path={pins}"}},
			{"with pins, and privileges to attach", []string{"--bpf.pin-path={pins}", "--audit.follow"}},
		} {
			t.Run(refusal.description+", "+test.description, func(t *testing.T) {
				l := newLab(t)
				folder := l.mountBPF(0)
				args := append(refusal.args(t), "--audit.device="+device)
				for _, arg := range test.args {
					args = append(args, strings.ReplaceAll(arg, "{pins}", folder))
				}
				l.start(binaries.exporter, serving(args)).expectFailure(refusal.want)
				l.expectNothingAttached()
				l.expectNothingPinned(folder)
			})
		}
	}
}

// If the directory of the pins belongs to another user, the pins stay, but the hook is detached.
func TestAStartThatFailsDetachesWhatItCannotUnpin(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	err := l.audited.Namespace.Do(func() error {
		if err := os.Mkdir(folder, 0o700); err != nil {
			return err
		}
		giveAway(t, folder)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	refusal := lastRefusals[0]
	args := append(refusal.args(t), "--audit.device="+device, "--bpf.pin-path="+folder)
	l.start(binaries.exporter, serving(args)).expectFailure("permission denied")
	l.expectNothingAttached()
	l.unpin(folder)
}

// A failed start leaves a pinned audit unchanged, also on devices that it would not have
// audited, and removes the hooks that it has added.
func TestAStartThatFailsLateKeepsThePinnedAudit(t *testing.T) {
	for _, refusal := range lastRefusals {
		t.Run(refusal.description, func(t *testing.T) {
			l := newLab(t)
			folder := l.mountBPF(0)
			second, _ := l.connect("audited1", "sender1", 1)
			third, _ := l.connect("audited2", "sender2", 2)
			pin := []string{"--bpf.pin-path=" + folder, "--audit.baseline=device"}
			p := l.pinAudit(folder, l.newFlow(l.audited.IPv4.Addr()), append(pin, "--audit.device="+device+","+third.Device)...)

			args := append(refusal.args(t), append(pin, "--audit.device="+device+","+second.Device)...)
			l.start(binaries.exporter, serving(args)).expectFailure(refusal.want)
			p.expectSamePins()
			p.expectKept(map[string]uint32{device: attachedDriver, third.Device: attachedDriver}, 500)
		})
	}
}

// A failed start with another layout leaves the maps, the hook and the counters of the pinned
// audit.
func TestAStartThatFailsKeepsTheLayout(t *testing.T) {
	for _, test := range []struct {
		description string
		want, args  []string
	}{
		{"a device that does not exist", []string{"absent0"}, []string{"--audit.device=absent0"}},
		{"several of them", []string{"absent1"}, []string{"--audit.device=absent0,absent1"}},
		{"a device that refuses", []string{"lo", "native XDP"}, []string{"--audit.device=lo"}},
		{"both", []string{"absent0"}, []string{"--audit.device=lo", "--audit.device=absent0"}},
		{"a glob that matches nothing", []string{"absent*"}, []string{"--audit.device=absent*"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			folder := l.mountBPF(0)
			pin := "--bpf.pin-path=" + folder
			p := l.pinAudit(folder, l.newFlow(l.audited.IPv4.Addr()), pin, "--audit.device="+device)

			l.start(binaries.exporter, serving(append(test.args, pin, "--audit.flows=1024"))).expectRefusal(test.want...)
			p.expectSamePins()
			p.expectKept(map[string]uint32{device: attachedDriver}, 500)
		})
	}
}

// A hook that was attached again in another mode continues, and counts in the pinned maps, also if
// the failed start has another layout.
func TestAStartThatFailsLateKeepsTheNewMode(t *testing.T) {
	for _, layout := range []string{"--audit.flows=65536", "--audit.flows=1024"} {
		t.Run(layout, func(t *testing.T) {
			l := newLab(t)
			folder := l.mountBPF(0)
			args := []string{"--bpf.pin-path=" + folder, "--audit.device=" + device}
			p := l.pinAudit(folder, l.newFlow(l.audited.IPv4.Addr()), append(args, "--audit.mode=skb")...)
			refusal := lastRefusals[0]
			l.start(binaries.exporter, serving(append(refusal.args(t), append(args, layout)...))).expectFailure(refusal.want)
			p.args = args
			p.expectKept(map[string]uint32{device: attachedDriver}, 500)
		})
	}
}

// A start that fails keeps no index: the next device takes a free one, not that of an audit that
// has ended.
func TestAStartThatFailsLateReturnsItsIndex(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	l.connect("audited1", "sender1", 1)
	l.connect("audited2", "sender2", 2)
	args := []string{"--bpf.pin-path=" + folder, "--audit.max-devices=2"}
	p := l.pinAudit(folder, l.newFlow(l.audited.IPv4.Addr()), append(args, "--audit.device="+device)...)
	refusal := lastRefusals[0]
	failing := append(refusal.args(t), append(args, "--audit.device="+device+",audited1")...)
	l.start(binaries.exporter, serving(failing)).expectFailure(refusal.want)
	l.startExporter(append(args, "--audit.device=audited2")...).endWith(syscall.SIGTERM)
	e := l.startExporter(p.args...)
	e.expectPackets(device, 300)
	e.endWith(syscall.SIGTERM)
	l.unpin(folder)
}

// A device that does not exist takes no index from an audited device, even if there is only one.
func TestAStartThatFailsKeepsThePlaces(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	args := []string{"--bpf.pin-path=" + folder, "--audit.max-devices=1", "--audit.device=" + device}
	p := l.pinAudit(folder, l.newFlow(l.audited.IPv4.Addr()), args...)
	l.start(binaries.exporter, serving(append(args[:2:2], "--audit.device=absent0"))).expectRefusal("absent0")
	p.expectKept(map[string]uint32{device: attachedDriver}, 500)
}

// If a start with another layout fails after its devices have accepted the program, the existing
// hook continues, and counts in the existing maps.
func TestAStartThatFailsLateKeepsTheHook(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	second, _ := l.connect("audited1", "sender1", 1)
	args := []string{"--bpf.pin-path=" + folder, "--audit.device=" + device}
	p := l.pinAudit(folder, l.newFlow(l.audited.IPv4.Addr()), args...)

	refusal := lastRefusals[0]
	failing := append(refusal.args(t), append(args, "--audit.flows=1024", "--audit.device="+second.Device)...)
	l.start(binaries.exporter, serving(failing)).expectFailure(refusal.want)
	p.expectSamePins()
	p.expectKept(map[string]uint32{device: attachedDriver}, 500)
}

// If the device refuses the mode, the pinned audit continues in its mode. Putting its program
// back needs CAP_SYS_ADMIN. Otherwise the program of the failed start stays.
func TestARefusedModeKeepsThePinnedAudit(t *testing.T) {
	for _, test := range []struct {
		description string
		wrapper     []string
		args        []string
	}{
		{"another mode", nil, nil},
		{"another mode and layout", nil, []string{"--audit.flows=1024"}},
		{"another mode, with three capabilities", withoutAdmin, nil},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			folder := l.mountBPF(0)
			args := []string{"--audit.device=lo", "--bpf.pin-path=" + folder}
			p := l.pinAudit(folder, l.newLocalFlow(), append(args, "--audit.mode=skb")...)

			command := slices.Concat(test.wrapper, []string{binaries.exporter}, serving(args), test.args, []string{"--audit.mode=drv"})
			l.start(command[0], command[1:]).expectFailure("lo", "native XDP", "skb")
			p.expectSamePins()
			p.expectKept(map[string]uint32{"lo": attachedGeneric}, 500)
		})
	}
}

// withoutAdmin runs a command with the three capabilities that the exporter needs.
var withoutAdmin = []string{"setpriv", "--bounding-set=-all,+bpf,+perfmon,+net_admin"}

// Without CAP_SYS_ADMIN, a start with another mode and another layout leaves the mode to the next
// start: a hook in the new mode could not count in the pinned maps until nothing can fail.
func TestANewModeAndLayoutWithThreeCapabilities(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	args := []string{"--audit.device=" + device, "--bpf.pin-path=" + folder}
	p := l.pinAudit(folder, l.newFlow(l.audited.IPv4.Addr()), append(args, "--audit.mode=skb")...)
	start := func(args ...string) *exporter {
		t.Helper()
		command := slices.Concat(withoutAdmin, []string{binaries.exporter}, serving(args))
		return l.launch(command[0], command[1:])
	}
	args = append(args, "--audit.mode=drv", "--audit.flows=1024")
	refusal := lastRefusals[0]
	start(append(refusal.args(t), args...)...).expectFailure(refusal.want)
	p.expectKeptBy(p.startExporter(p.args...), attachedGeneric, 500)

	for _, step := range []struct {
		want    uint32 // the mode
		packets float64
	}{{attachedGeneric, 200}, {attachedDriver, 400}} {
		e := start(args...)
		e.awaitReady("/-/ready")
		if isWarned := e.logged("level=WARN", "keeps its mode", "CAP_SYS_ADMIN") == 1; isWarned != (step.want == attachedGeneric) {
			t.Errorf("the log has the warning: %t\n%s", isWarned, &e.stderr)
		}
		p.expectKeptBy(e, step.want, step.packets)
	}
	l.unpin(folder)
}

// expectKeptBy expects the mode of the hook, sends 200 packets, and expects the number of packets
// that the exporter has counted. It ends the exporter.
func (p *pinnedAudit) expectKeptBy(e *exporter, mode uint32, packets float64) {
	p.t.Helper()
	if modes := p.attached(); modes[device] != mode {
		p.t.Errorf("attached are %v, want mode %d", modes, mode)
	}
	p.send(p.flow, 200)
	if got := e.atRest().sum("packets_total", "protocol=udp"); got != packets {
		p.t.Errorf("%v packets were counted, want %v", got, packets)
	}
	e.endWith(syscall.SIGTERM)
}

// An address in use is reported before anything is attached or taken over.
func TestAnAddressInUseLeavesThePins(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	args := []string{"--audit.device=" + device, "--bpf.pin-path=" + folder}
	taken := l.occupyAddress()
	l.start(binaries.exporter, serving(args)).expectRefusal(address, "address already in use")
	taken.Close()
	if _, exists := l.pinned(folder); exists {
		t.Error("there is a folder of pins")
	}
	l.expectNothingAttached()

	p := l.pinAudit(folder, l.newFlow(l.audited.IPv4.Addr()), args...)
	taken = l.occupyAddress()
	l.start(binaries.exporter, serving(append(args, "--audit.flows=1024"))).expectRefusal(address, "address already in use")
	taken.Close()
	p.expectKept(map[string]uint32{device: attachedDriver}, 500)
}
