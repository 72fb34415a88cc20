// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// The verdicts of XDP programs: enum xdp_action of linux/bpf.h.
const (
	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4
)

// liveSubject is what a frame meets on its way.
type liveSubject string

const (
	subjectGenerator liveSubject = "generator alone" // the frame is made and thrown away
	subjectPlain     liveSubject = "no program"
	subjectNull      liveSubject = "null" // a program that only returns its verdict
	subjectAudit     liveSubject = "audit"
)

// liveFlows are the mixtures of flows that are measured.
var liveFlows = []struct {
	name    string
	options generatorOptions
}{
	{"1", generatorOptions{}},
	{"8,192", generatorOptions{flows: 8192}},
	{"every packet new", generatorOptions{random: true}},
}

// liveCase is one thing that is measured.
type liveCase struct {
	verdict string // PASS or DROP; empty if the frames arrive nowhere
	flows   string
	subject liveSubject
	target  *target
	counted func() float64 // by the audit; nil if it does not see the frames

	rates         []float64 // frames a second, one of each round
	sent, dropped uint64
}

// TestLiveDevice measures how many frames a second a busy device passes to the stack or drops,
// with the audit and without. One core does all, so that the other is left to the rest of the
// machine: it makes the frames and, after each batch, handles them. Each round measures all cases
// in turn, and every frame has to be counted. LIVE_ROUNDS is the number of rounds. The report
// takes the place of the one before in the file that LIVE_REPORT names.
func TestLiveDevice(t *testing.T) {
	if os.Getenv("LIVE_ROUNDS") == "" {
		t.Skip("LIVE_ROUNDS is not set: make bench-live sets it")
	}
	rounds, err := strconv.Atoi(os.Getenv("LIVE_ROUNDS"))
	if err != nil || rounds < 1 {
		t.Fatalf("LIVE_ROUNDS=%s is not a number of rounds", os.Getenv("LIVE_ROUNDS"))
	}
	cases := newLab(t).newLiveCases()
	for range rounds {
		for _, c := range cases {
			c.measure()
		}
		slices.Reverse(cases) // what gets slower or faster within a round does so for all
	}
	report := liveReport{cases}
	t.Logf("\n%s", report.table())
	if path := os.Getenv("LIVE_REPORT"); path != "" && !t.Failed() {
		if err := report.writeTo(path); err != nil {
			t.Error(err)
		}
	}
}

// newLiveCases makes a device for each subject and verdict, with all of them attached at the same
// time.
func (l *lab) newLiveCases() (cases []*liveCase) {
	l.t.Helper()
	targets := l.newTargets(5, generatorOptions{drop: true})
	plain, null, audit, nullDrop, auditDrop := targets[0], targets[1], targets[2], targets[3], targets[4]
	plain.enableGRO()
	l.attach(null, newVerdict(l.t, xdpPass))
	l.attach(nullDrop, newVerdict(l.t, xdpDrop))
	e := l.startExporter("--audit.device=" + audit.audited.Device)
	l.attach(auditDrop, e.loadDroppingAudit())
	counted := func() float64 { return e.scrape().sum("packets_total") }

	for _, flows := range liveFlows {
		add := func(verdict string, subject liveSubject, on *target, counted func() float64) {
			options := flows.options
			options.drop, options.realtime = subject == subjectGenerator, true
			p := *on
			p.generator = newGenerator(l.t, p.sender, options)
			cases = append(cases, &liveCase{verdict: verdict, flows: flows.name, subject: subject, target: &p, counted: counted})
		}
		add("", subjectGenerator, plain, nil)
		add("PASS", subjectPlain, plain, nil)
		add("PASS", subjectNull, null, nil)
		add("PASS", subjectAudit, audit, counted)
		add("DROP", subjectNull, nullDrop, nil)
		add("DROP", subjectAudit, auditDrop, counted)
	}
	return cases
}

// measure runs one round.
func (c *liveCase) measure() {
	const roundFrames = 200_000
	t := c.target.lab.t
	t.Helper()
	before, countedBefore := c.target.frames(), 0.0
	if c.counted != nil {
		countedBefore = c.counted()
	}
	if err := c.target.generator.restart(0); err != nil {
		t.Fatal(err)
	}
	sent := c.target.send(generatedFrame(), roundFrames)
	rate, err := c.target.generator.rate()
	if err != nil {
		t.Fatal(err)
	}
	c.rates = append(c.rates, rate)
	if c.subject == subjectGenerator {
		return
	}
	now := c.target.settled(before, sent)
	c.sent += sent
	c.dropped += now.dropped
	if c.counted == nil {
		return
	}
	if counted := c.counted() - countedBefore; counted != float64(now.received) {
		t.Errorf("%s, flows %s: of %d frames %d were received, and %v counted", c.verdict, c.flows, sent, now.received, counted)
	}
}

// newVerdict returns a program that does nothing but return its verdict.
func newVerdict(t *testing.T, verdict int32) *ebpf.Program {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "verdict", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm32(asm.R0, verdict), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// attach attaches a program in native mode.
func (l *lab) attach(p *target, program *ebpf.Program) {
	l.t.Helper()
	device, err := p.audited.Namespace.Link(p.audited.Device)
	if err != nil {
		l.t.Fatal(err)
	}
	err = p.audited.Namespace.Do(func() error {
		attached, err := link.AttachXDP(link.XDPOptions{
			Program: program, Interface: device.Attrs().Index, Flags: link.XDPDriverMode,
		})
		if err == nil {
			l.t.Cleanup(func() { attached.Close() })
		}
		return err
	})
	if err != nil {
		l.t.Fatalf("attaching to %s: %v", p.audited.Device, err)
	}
}

// loadDroppingAudit loads the exporter's program a second time, with the maps of the running one,
// its configuration among them, and with XDP_DROP as its verdict. Both programs count for the
// same device.
func (e *exporter) loadDroppingAudit() *ebpf.Program {
	const path, name = "../bpf/xdp_audit_bpfel.o", "xdp_audit"
	t := e.lab.t
	t.Helper()
	id, err := strconv.ParseUint(e.scrape().label(t, "hook_info", "program_id"), 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	maps, err := mapsOf(ebpf.ProgramID(id))
	if err != nil {
		t.Fatal(err)
	}
	spec, err := ebpf.LoadCollectionSpec(path)
	if err != nil {
		t.Fatal(err)
	}
	replacements := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		replacements[name] = maps[name[:min(len(name), unix.BPF_OBJ_NAME_LEN-1)]]
		if replacements[name] == nil {
			t.Fatalf("the running program has no map %s", name)
		}
		m.MaxEntries = replacements[name].MaxEntries()
	}
	for i := range spec.Programs[name].Instructions {
		// The running program may be bound to its device, and ask for VLAN tags. This one may not.
		if ins := &spec.Programs[name].Instructions[i]; ins.IsKfuncCall() {
			*ins = asm.Mov.Imm(asm.R0, -1)
		}
	}
	if err := replaceVerdict(spec.Programs[name], xdpPass, xdpDrop); err != nil {
		t.Fatal(err)
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replacements})
	for _, m := range maps {
		err = errors.Join(err, m.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(collection.Close)
	return collection.Programs[name]
}

// mapsOf opens the maps of a program by the names that the kernel knows.
func mapsOf(id ebpf.ProgramID) (map[string]*ebpf.Map, error) {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return nil, err
	}
	maps := map[string]*ebpf.Map{}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, err
		}
		info, err := m.Info()
		if err != nil {
			return nil, err
		}
		maps[info.Name] = m
	}
	return maps, nil
}

// replaceVerdict changes what a program returns at its only end. The functions that it calls
// follow it.
func replaceVerdict(program *ebpf.ProgramSpec, from, to int64) error {
	found := 0
	for i := 1; i < len(program.Instructions) && program.Instructions[i].Symbol() == ""; i++ {
		if program.Instructions[i].OpCode != asm.Return().OpCode {
			continue
		}
		verdict := &program.Instructions[i-1]
		if verdict.OpCode != asm.Mov.Imm32(asm.R0, 0).OpCode || verdict.Dst != asm.R0 || verdict.Constant != from {
			return fmt.Errorf("%s ends after %v, not after a verdict of %d", program.Name, *verdict, from)
		}
		verdict.Constant = to
		found++
	}
	if found != 1 {
		return fmt.Errorf("%s has %d ends, want 1", program.Name, found)
	}
	return nil
}

// enableGRO lets a device without a program take redirected frames, as one with a program does:
// it turns on the driver's NAPI.
func (p *target) enableGRO() {
	p.lab.t.Helper()
	value := struct{ command, data uint32 }{unix.ETHTOOL_SGRO, 1}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], p.audited.Device)
	err := p.audited.Namespace.Do(func() error {
		socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(socket)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		p.lab.t.Fatalf("turning on GRO of %s: %v", p.audited.Device, err)
	}
}
