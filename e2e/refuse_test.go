// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Invalid input ends with exit code 1 and one line that names the value and the remedy. Nothing
// stays attached.
func TestRefusals(t *testing.T) {
	audit := "--audit.device=" + device
	for _, test := range []struct {
		description string
		args        []string
		want        []string // parts of the line
	}{
		{"no device and no default route", []string{}, []string{"no device holds a default route", "--audit.device", "XDP_INTERFACE", "lo, " + device}},
		{"an empty device", []string{"--audit.device=,"}, []string{"--audit.device", "names no device", "default route"}},
		{"a device that does not exist", []string{"--audit.device=absent0"}, []string{"absent0", "does not exist", device}},
		{"several devices, none of which exists", []string{"--audit.device=absent0,absent1"}, []string{"absent0", "absent1"}},
		{"a glob that matches nothing", []string{"--audit.device=absent*"}, []string{"absent*", device}},
		{"a device that is named twice", []string{audit, audit}, []string{device, "twice"}},
		{"a device name that cannot be", []string{"--audit.device=sixteen-letters-"}, []string{"sixteen-letters-"}},
		{"an unknown mode", []string{audit, "--audit.mode=native"}, []string{"native", "drv"}},
		{"native mode on a device without it", []string{"--audit.device=lo", "--audit.mode=drv"}, []string{"lo", "skb"}},
		{"hardware mode on a device without it", []string{audit, "--audit.mode=hw"}, []string{device, "drv"}},
		{"a threshold of zero", []string{audit, "--audit.threshold=0"}, []string{"threshold", "0", "2"}},
		{"a threshold that is not a number", []string{audit, "--audit.threshold=NaN"}, []string{"threshold", "NaN"}},
		{"an infinite threshold", []string{audit, "--audit.threshold=+Inf"}, []string{"threshold", "Inf"}},
		{"a threshold in words", []string{audit, "--audit.threshold=high"}, []string{"--audit.threshold", "high"}},
		{"fewer than two samples", []string{audit, "--audit.min-samples=1"}, []string{"minimum", "1", "2"}},
		{"a negative number of samples", []string{audit, "--audit.min-samples=-1"}, []string{"--audit.min-samples", "-1"}},
		{"a window below the samples", []string{audit, "--audit.window=50"}, []string{"window", "50", "100"}},
		{"an idle timeout that overflows", []string{audit, "--audit.idle-timeout=1h"}, []string{"idle timeout", "1h"}},
		{"too many flows", []string{audit, "--audit.flows=4000000000"}, []string{"4000000000"}},
		{"an unknown clock", []string{audit, "--audit.clock=sundial"}, []string{"sundial", "ktime"}},
		{"an unknown domain", []string{audit, "--audit.domain=log10"}, []string{"log10", "log2"}},
		{"a calibration at every second packet", []string{audit, "--audit.calibrate=0.5"}, []string{"calibration", "0.5", "0.1"}},
		{"an unknown baseline", []string{audit, "--audit.baseline=host"}, []string{"host", "device"}},
		{"a flag that does not exist", []string{audit, "--audit.nosuch"}, []string{"--audit.nosuch"}},
		{"an argument too many", []string{audit, "eth0"}, []string{"eth0"}},
		{"an unknown collector", []string{audit, "--collector.nosuch"}, []string{"--collector.nosuch"}},
		{"a trail that cannot be written", []string{audit, "--trail.file=/nonexistent/trail"}, []string{"/nonexistent/trail", "no such file"}},
		{"a trail that is a folder", []string{audit, "--trail.file=/"}, []string{"--trail.file", "is a directory"}},
		{"a baseline that is a pipe", []string{audit, "--audit.baseline-file={pipe}"}, []string{"--audit.baseline-file", "named pipe"}},
		{"a baseline that is a folder", []string{audit, "--audit.baseline-file=/"}, []string{"--audit.baseline-file", "directory"}},
		{"a baseline that is a device", []string{audit, "--audit.baseline-file=/dev/zero"}, []string{"/dev/zero", "device"}},
		{"a web configuration that is a pipe", []string{audit, "--web.config.file={pipe}"}, []string{"--web.config.file", "not a regular file"}},
		{"a web configuration that does not exist", []string{audit, "--web.config.file=/nonexistent.yml"}, []string{"/nonexistent.yml"}},
		{"a web configuration that is not one", []string{audit, "--web.config.file={file}"}, []string{"web.yml"}},
		{"a listen address that is none", []string{audit, "--web.listen-address=nowhere"}, []string{"--web.listen-address", "nowhere"}},
		{"no socket from systemd", []string{audit, "--web.systemd-socket"}, []string{"--web.systemd-socket"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			file := filepath.Join(t.TempDir(), "web.yml")
			if err := os.WriteFile(file, []byte("tls_server_config:\n  cert_file: [\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			pipe := filepath.Join(t.TempDir(), "pipe")
			if err := unix.Mkfifo(pipe, 0o600); err != nil {
				t.Fatal(err)
			}
			var args []string
			for _, arg := range test.args {
				args = append(args, strings.NewReplacer("{file}", file, "{pipe}", pipe).Replace(arg))
			}
			l.start(binaries.exporter, args).expectRefusal(test.want...)
		})
	}
}

// expectRefusal expects exit code 1 and one line on standard error that contains every part.
func (p *process) expectRefusal(parts ...string) {
	p.lab.t.Helper()
	if code := p.wait(); code != 1 {
		p.lab.t.Errorf("exit code %d, want 1", code)
	}
	line := p.stderr.String()
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") || p.stdout.String() != "" {
		p.lab.t.Errorf("want one line on standard error and nothing else, got:\n%s%s", line, &p.stdout)
	}
	for _, part := range parts {
		if !strings.Contains(line, part) {
			p.lab.t.Errorf("the line does not contain %q: %s", part, line)
		}
	}
	p.lab.t.Logf("%s", strings.TrimSpace(line))
}

func TestADeviceThatIsTakenIsRefused(t *testing.T) {
	for _, mode := range []string{"drv", "skb", "auto"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t)
			other, _ := l.occupy(device, link.XDPDriverMode)
			args := []string{"--web.listen-address=" + address, "--audit.device=" + device, "--audit.mode=" + mode}
			l.start(binaries.exporter, args).expectRefusal(device, fmt.Sprintf("XDP program %d", programID(t, other)))
			if modes := l.attached(); modes[device] != attachedDriver {
				t.Errorf("the other program is no longer attached: %v", modes)
			}
		})
	}
}

// The kernel refuses a port of a bridge that holds a program. The port is accepted before the
// bridge.
func TestADeviceBelowOneThatIsTakenIsRefused(t *testing.T) {
	for _, mode := range []string{"drv", "skb", "auto"} {
		t.Run(mode, func(t *testing.T) {
			l := newBridgeLab(t)
			l.occupy(bridge, link.XDPGenericMode)
			p := l.start(binaries.exporter, serving([]string{"--audit.device=" + device, "--audit.mode=" + mode}))
			p.expectRefusal(device, "before", "file exists", kernelRefusesLower)
			if log := p.stderr.String(); strings.Contains(log, "holds") || strings.Contains(log, "MTU") {
				t.Errorf("another reason is given: %s", log)
			}
			if modes := l.attached(); len(modes) != 1 || modes[bridge] != attachedGeneric {
				t.Errorf("attached are %v", modes)
			}
		})
	}
	for _, names := range []string{device + "," + bridge, bridge + "," + device, "*0"} {
		t.Run("both, by "+names, func(t *testing.T) {
			l := newBridgeLab(t)
			e := l.startExporter("--audit.device="+names, "--audit.mode=skb")
			l.awaitAttached(device, bridge)
			e.expectStopped()
		})
	}
}

// In mode auto, a device whose driver says what keeps it from native mode is refused with these
// words. It has generic mode for those who ask for that.
func TestAutoDoesNotHideACure(t *testing.T) {
	const queues = "XDP expects number of rx queues not less than peer tx queues"
	l := newLab(t)
	err := l.audited.Namespace.Do(func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "audited1", NumRxQueues: 1, NumTxQueues: 1}, PeerName: "peer1", PeerNumTxQueues: 2, PeerNumRxQueues: 2}
		return netlink.LinkAdd(pair)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"auto", "drv"} {
		p := l.start(binaries.exporter, serving([]string{"--audit.device=audited1", "--audit.mode=" + mode}))
		p.expectRefusal("error: veth: "+queues, "audited1", "--audit.mode=skb")
		if log := p.stderr.String(); strings.Contains(log, "no native XDP") {
			t.Errorf("another reason is given: %s", log)
		}
	}
	e := l.startExporter("--audit.device=audited1", "--audit.mode=skb")
	l.awaitAttached("audited1")
	e.expectStopped()
}

const bridge = "bridge0"

// newBridgeLab makes a network in which the audited device is a port of a bridge.
func newBridgeLab(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	err := l.audited.Namespace.Do(func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge}})
	})
	if err != nil {
		t.Fatal(err)
	}
	l.change(bridge, func(upper netlink.Link) error {
		port, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(port, upper)
	})
	return l
}

// occupy attaches a program that passes all packets to a device of the audited namespace, until
// the end of the test.
func (l *lab) occupy(device string, mode link.XDPAttachFlags) (*ebpf.Program, link.Link) {
	l.t.Helper()
	const xdpPass = 2
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { program.Close() })
	index, err := l.audited.Namespace.Link(device)
	if err != nil {
		l.t.Fatal(err)
	}
	var attached link.Link
	err = l.audited.Namespace.Do(func() error {
		attached, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: index.Attrs().Index, Flags: mode})
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { attached.Close() })
	return program, attached
}

func programID(t *testing.T, program *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

func TestMissingPrivilegeIsRefused(t *testing.T) {
	const nobody = 65534
	for _, test := range []struct {
		description string
		has         []uintptr
		want        []string
	}{
		{"no capability", nil, []string{"CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"}},
		{"only for the network", []uintptr{unix.CAP_NET_ADMIN}, []string{": CAP_BPF, CAP_PERFMON"}},
		{"all except the one for the network", []uintptr{unix.CAP_BPF, unix.CAP_PERFMON}, []string{": CAP_NET_ADMIN"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			args := []string{"--web.listen-address=" + address, "--audit.device=" + device}
			l.start(binaries.exporter, args, func(cmd *exec.Cmd) {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true}
				cmd.SysProcAttr.AmbientCaps = test.has
				cmd.Dir = "/"
			}).expectRefusal(test.want...)
		})
	}
}

// The three capabilities that the error names are enough, without root and CAP_SYS_ADMIN. They
// are dropped after the start. The bounding set cannot be dropped without CAP_SETPCAP.
func TestThreeCapabilitiesAreEnough(t *testing.T) {
	const nobody = 65534
	l := newLab(t)
	e := l.launch(binaries.exporter, []string{"--web.listen-address=" + address, "--audit.device=" + device}, func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true}
		cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN}
		cmd.Dir = "/"
	})
	e.awaitReady("/-/ready")
	held := nothing()
	delete(held, "CapBnd")
	held["Uid"] = strings.Join(slices.Repeat([]string{strconv.Itoa(nobody)}, 4), "\t")
	e.expectThreads(held)
	l.send(l.newFlow(l.audited.IPv4.Addr()), 1000)
	s := e.atRest()
	if got := s.sum("packets_total", "family=ipv4", "protocol=udp"); got != 1000 {
		t.Errorf("%v packets were counted, want 1000", got)
	}
	if got := s.series("scrape_collector_success"); len(got) == 0 || s.sum("scrape_collector_success") != float64(len(got)) {
		t.Errorf("not all collectors succeed: %v", got)
	}
	e.expectStopped()
}

// On a kernel that cannot run the program, the error names the kernel before any other problem.
// The test needs such a kernel.
func TestAnOldKernelIsRefused(t *testing.T) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		t.Fatalf("release %s: %v", release, err)
	}
	if major > 5 || major == 5 && minor >= 12 {
		t.Skipf("the kernel %s is new enough", release)
	}
	l := newLab(t)
	folder := l.mountBPF(0)
	for _, args := range [][]string{
		{"--audit.device=" + device},
		{"--audit.device=" + device, "--audit.mode=skb"},
		{"--audit.device=" + device + ",lo", "--audit.mode=auto", "--audit.follow"},
		{"--audit.device=" + device, "--bpf.pin-path=" + folder},
	} {
		args = append(args, "--web.listen-address="+address)
		l.start(binaries.exporter, args).expectRefusal(release, "compare-and-swap", "5.12")
		l.expectNothingAttached()
		if names, exists := l.pinned(folder); exists {
			t.Errorf("%v is left pinned", names)
		}
	}
}

// ownKernelVariable says that only these tests use the kernel, so that they may change its
// settings.
const ownKernelVariable = "E2E_OWN_KERNEL"

// Kernels of Debian have a setting, on by default, with which CAP_PERFMON is not enough for
// rings.
func TestParanoidKernelsNameTheSetting(t *testing.T) {
	if os.Getenv(ownKernelVariable) != "1" {
		t.Skipf("%s is not 1: the setting would be that of the whole machine", ownKernelVariable)
	}
	const nobody, setting = 65534, "/proc/sys/kernel/perf_event_paranoid"
	before, err := os.ReadFile(setting)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(setting, []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(setting, before, 0); err != nil {
			t.Error(err)
		}
	})
	l := newLab(t)
	args := []string{"--web.listen-address=" + address, "--audit.device=" + device}
	with := func(capabilities ...uintptr) func(*exec.Cmd) {
		return func(cmd *exec.Cmd) {
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody, NoSetGroups: true}
			cmd.SysProcAttr.AmbientCaps = capabilities
			cmd.Dir = "/"
		}
	}
	l.start(binaries.exporter, args, with(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN)).
		expectRefusal("kernel.perf_event_paranoid", "CAP_SYS_ADMIN")
	e := l.launch(binaries.exporter, args, with(unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN))
	e.awaitReady("/-/ready")
	e.expectStopped()
	l.startExporter("--audit.device=" + device).expectStopped() // root has CAP_SYS_ADMIN
}

func TestAnAddressInUseIsRefused(t *testing.T) {
	l := newLab(t)
	defer l.occupyAddress().Close()
	args := []string{"--web.listen-address=" + address, "--audit.device=" + device}
	l.start(binaries.exporter, args).expectRefusal("--web.listen-address", address, "address already in use", "choose another address")
}
