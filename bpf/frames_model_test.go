// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/flowtable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/testnumber"
)

// testRun is the kernel's bpf_attr of BPF_PROG_TEST_RUN for one frame. It is called directly
// because the call of cilium/ebpf doubles the time, which matters for millions of frames.
type testRun struct {
	programFD, verdict  uint32
	inBytes, outBytes   uint32
	in, out             uintptr
	repeat, duration    uint32
	contextBytes        uint32
	contextOutBytes     uint32
	context, contextOut uintptr
	flags, cpu          uint32
	batch, _            uint32
}

// runner runs a program on frames. The memory that the kernel reads and writes is pinned.
type runner struct {
	attr    *testRun
	in, out *[metadataBytes + longestFrame + 64]byte
	context *xdpContext
	pinner  runtime.Pinner
}

func newRunner(t testing.TB, programFD int) *runner {
	r := &runner{
		attr: &testRun{programFD: uint32(programFD), repeat: 1}, context: &xdpContext{},
		in: new([metadataBytes + longestFrame + 64]byte), out: new([metadataBytes + longestFrame + 64]byte),
	}
	for _, pointer := range []any{r.attr, r.in, r.out, r.context} {
		r.pinner.Pin(pointer)
	}
	t.Cleanup(r.pinner.Unpin)
	r.attr.in, r.attr.out = uintptr(unsafe.Pointer(r.in)), uintptr(unsafe.Pointer(r.out))
	return r
}

// run sends a frame through the program, with atNs in front of it unless that is 0. It returns
// an error unless the frame passes unchanged.
func (r *runner) run(frame []byte, atNs uint64) error {
	metadata := 0
	a := r.attr
	a.context, a.contextBytes = 0, 0
	if atNs != 0 {
		metadata = metadataBytes
		binary.NativeEndian.PutUint64(r.in[:], atNs)
		*r.context = xdpContext{Data: metadataBytes, DataEnd: uint32(metadataBytes + len(frame))}
		a.context, a.contextBytes = uintptr(unsafe.Pointer(r.context)), uint32(unsafe.Sizeof(*r.context))
	}
	in := r.in[:metadata+copy(r.in[metadata:], frame)]
	a.inBytes, a.outBytes, a.verdict = uint32(len(in)), uint32(len(r.out)), 0
	for {
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(a)), unsafe.Sizeof(*a))
		if errno == 0 {
			break
		}
		if errno != unix.EINTR {
			return fmt.Errorf("running the program: %w", errno)
		}
	}
	if a.verdict != xdpPass {
		return fmt.Errorf("verdict %d, want XDP_PASS", a.verdict)
	}
	if out := r.out[:a.outBytes]; !bytes.Equal(out, in) {
		return fmt.Errorf("the frame was changed to %x", headers(out))
	}
	return nil
}

// framesModel computes the state that the program should have for arbitrary frames.
type framesModel struct {
	*tableModel
	keys     *flowtable.Keys
	owner    uint32
	sets     uint64
	readable int // number of bytes of a frame that the program can read
	link     netdev.LinkLayer

	strippedID uint16 // of the VLAN tag that the driver has removed from the next frame; 0 for none

	packets Packets
	bytes   [NumFamilies][NumProtocols]uint64
	words   []uint32
}

// observe returns the cell that counts the frame and, if the frame belongs to a flow, the key
// and slot of the flow.
func (m *framesModel) observe(frame []byte, atNs uint64) (at cell, key programFlowKey, slot uint64) {
	p := parseModel(frame, m.readable, m.link, m.strippedID)
	at = cell{p.family, p.protocol, OutcomeUnparsed}
	switch {
	case p.class == classFragment:
		at.outcome = OutcomeFragment
	case p.class == classFlow && atNs == 0:
		at.outcome = OutcomeUntimed
	case p.class == classFlow:
		key = p.key
		key.Owner = m.owner
		m.words = appendWords(m.words[:0], &key)
		hash := flowtable.HashWords(m.words, m.keys)
		at.outcome = m.tableModel.observe(hash, atNs, frame)
		slot = hash.Set%m.sets*flowWays + uint64(m.table.Find(hash))
	}
	if key == (programFlowKey{}) {
		m.outcomes[at.outcome]++
	}
	m.packets[at.family][at.protocol][at.outcome]++
	m.bytes[at.family][at.protocol] += uint64(len(frame))
	return at, key, slot
}

// framesTest sends random frames through a program and the model, on one CPU.
type framesTest struct {
	*probe
	runner *runner
	model  *framesModel
	keys   []programFlowKey // the cold part of the flow table
	maker  *frameMaker
	now    uint64
	events []Event
	sent   int
}

func newFramesTest(t *testing.T, audit *Audit, cpu, readable int, r *rand.Rand) *framesTest {
	t.Helper()
	f := &framesTest{
		probe:  probeOn(t, audit, cpu),
		runner: newRunner(t, audit.program(0).FD()),
		maker:  newFrameMaker(r, audit.devices.listed[0].linkLayer),
		now:    1e12,
	}
	table := audit.maps.devices
	f.model = &framesModel{
		tableModel: newTableModel(audit.config), keys: &table.entries[0].keys, owner: table.owner(0), sets: uint64(audit.config.sets()),
		readable: readable, link: audit.devices.listed[0].linkLayer,
	}
	f.keys = openTestArray[programFlowKey](t, audit.maps.byName[programMapFlowKeys], unix.PROT_READ).slice()
	return f
}

// readableBytes returns the number of bytes of a long frame that are in its first buffer. Only
// there can the program read headers. The number is exact for headers that end where those of the
// audit's link layer can end: at multiples of four bytes after its header.
func readableBytes(t testing.TB, audit *Audit) int {
	t.Helper()
	if !audit.maps.hasFrags {
		return longestFrame
	}
	run := newRunner(t, audit.program(0).FD())
	isEthernet := audit.devices.listed[0].linkLayer == netdev.LinkEthernet
	parsed := func() (n uint64) {
		for cpu := range audit.counters.blocks[0] {
			n += audit.counters.blocks[0][cpu].Protocols[FamilyIPv6][ProtocolUDP].Packets[OutcomeUntimed]
		}
		return n
	}
	readable, before := 0, parsed()
	for headers := 8; headers < longFrame/2; headers += 4 {
		payload := udp(1, 2, make([]byte, longFrame/2))
		next, left := ipUDP, headers
		if left%8 != 0 {
			payload, next, left = authentication(next, 1, payload), ipAuth, left-12
		}
		for left > 0 {
			n := min(left, 8*256)
			payload, next, left = extension(next, n/8-1, payload), ipDestOptions, left-n
		}
		frame := ipv6(next, payload)
		end := 40 + headers + 8
		if isEthernet {
			frame, end = ethernet(etherIPv6, frame), 14+end
		}
		if err := run.run(frame, 0); err != nil {
			t.Fatal(err)
		}
		if parsed() == before {
			break
		}
		before, readable = parsed(), end
	}
	return readable
}

// frame sends the next frame. It returns an error unless the frame passes unchanged, is counted
// in its cell, and has the right flow in its slot.
func (f *framesTest) frame() error {
	frame := f.maker.next()
	r := f.maker.r
	f.now += uint64(1e4 * r.ExpFloat64())
	atNs := f.now
	switch r.IntN(1000) {
	case 0:
		atNs -= r.Uint64N(1e8)
	case 1:
		f.now += 2 * uint64(f.config.IdleTimeout)
	case 6: // the clock is set back permanently
		if r.IntN(50) == 0 {
			f.now -= r.Uint64N(2 * uint64(f.config.IdleTimeout))
			atNs = f.now
		}
	case 2, 3, 4, 5:
		atNs = 0
	}
	at, key, slot := f.model.observe(frame, atNs)
	if err := f.runner.run(frame, atNs); err != nil {
		return err
	}
	cells := &f.block.Protocols[at.family][at.protocol]
	if got, want := cells.Packets[at.outcome], f.model.packets[at.family][at.protocol][at.outcome]; got != want {
		return fmt.Errorf("%d packets in the cell of %v, want %d", got, at, want)
	}
	if got, want := cells.Bytes, f.model.bytes[at.family][at.protocol]; got != want {
		return fmt.Errorf("%d bytes in the cell of %v, want %d", got, at, want)
	}
	if key != (programFlowKey{}) && f.keys[slot] != key {
		return fmt.Errorf("flow in slot %d: got %+v, want %+v", slot, f.keys[slot], key)
	}
	return nil
}

// send sends frames, and compares all cells with the model from time to time.
func (f *framesTest) send(frames int) error {
	const atATime = 4096 // makes far fewer events than a ring holds
	for f.sent < frames {
		if err := f.frame(); err != nil {
			return fmt.Errorf("frame %d: %w: %x", f.sent, err, headers(f.maker.frame))
		}
		if f.sent++; f.sent%atATime > 0 && f.sent < frames {
			continue
		}
		if packets, bytes := f.counts(); packets != f.model.packets || bytes != f.model.bytes {
			return fmt.Errorf("after frame %d: cells differ:\n got %v, %v\nwant %v, %v", f.sent, packets, bytes, f.model.packets, f.model.bytes)
		}
		events, err := f.drain()
		if err != nil {
			return err
		}
		f.events = append(f.events, events...)
	}
	return nil
}

// Ten million hostile frames and noise (or FRAMES of them): each frame passes unchanged, is
// counted once in the model's cell, and belongs to the model's flow. At the end, outcomes,
// baselines, sums, histogram, table and events equal those of the model. One frame in ten is that
// of a device without an Ethernet header. FRAMES_SEED repeats a run.
func TestRandomFramesEqualModel(t *testing.T) {
	frames := testnumber.Of(t, "FRAMES", 10_000_000)
	seed := uint64(testnumber.Of(t, "FRAMES_SEED", int(time.Now().UnixNano())))
	again := fmt.Sprintf("repeat with FRAMES_SEED=%d FRAMES=%d", seed, frames)
	config := testConfig()
	config.Threshold, config.MinSamples, config.Window, config.Flows, config.EventRate = 2, 10, 64, 4096, MaxEventRate
	cpus := twoCPUs(t)
	tests := make([][]*framesTest, len(cpus))
	var readable []int
	for link := range netdev.LinkOther {
		readable = append(readable, readableBytes(t, loadTestOn(t, config, link)))
	}
	for i, cpu := range cpus {
		// Random deltas are mostly flagged late in one domain and early in the other.
		config.Domain = []Domain{DomainLinear, DomainLog2}[i]
		for link := range netdev.LinkOther {
			r := rand.New(rand.NewPCG(seed, uint64(i)<<1|uint64(link)))
			tests[i] = append(tests[i], newFramesTest(t, loadTestOn(t, config, link), cpu, readable[link], r))
		}
	}
	begin := time.Now()
	var running sync.WaitGroup
	errs := make([]error, len(tests))
	for i, cpu := range cpus {
		running.Go(func() {
			// The thread stays locked, so that it ends with the goroutine and no other
			// goroutine gets its affinity.
			runtime.LockOSThread()
			errs[i] = moveTo(cpu)
			of := [...]int{netdev.LinkEthernet: frames * 9 / 10, netdev.LinkIP: frames / 10}
			for link, f := range tests[i] {
				if errs[i] == nil {
					errs[i] = f.send(of[link] / len(tests))
				}
			}
		})
	}
	running.Wait()
	took := time.Since(begin)
	var seen Packets
	for i, err := range errs {
		if err != nil {
			t.Fatalf("on CPU %d, %s: %v", i, again, err)
		}
	}
	for _, f := range slices.Concat(tests...) {
		f.compare(t, f.model.tableModel, f.events)
		for family := range seen {
			for protocol := range seen[family] {
				for outcome, n := range f.model.packets[family][protocol] {
					seen[family][protocol][outcome] += n
				}
			}
		}
	}
	if t.Failed() {
		t.Log(again)
	}
	t.Logf("%d frames in %v, %d ns each on a CPU; up to %d bytes can be read", frames, took.Round(time.Millisecond),
		int(took.Nanoseconds())*len(tests)/frames, readable)
	checkCoverage(t, &seen, uint64(frames))
}

// checkCoverage expects that every possible combination of family, protocol and outcome
// occurred often enough.
func checkCoverage(t *testing.T, seen *Packets, frames uint64) {
	t.Helper()
	for family := range NumFamilies {
		for protocol := range NumProtocols {
			for outcome := range NumOutcomes {
				isFlow := outcome != OutcomeUnparsed && outcome != OutcomeFragment
				canBe := outcome != OutcomeContended && (family != FamilyOther || protocol == ProtocolOther && outcome == OutcomeUnparsed)
				least := frames / 100_000
				if isFlow && outcome != OutcomeNewFlow {
					least = frames / 1_000_000
				}
				if n := seen[family][protocol][outcome]; canBe && n < least || !canBe && n > 0 {
					t.Errorf("%d frames were %v %v, %v: want at least %d of %d, or 0 if impossible", n, family, protocol, outcome, least, frames)
				}
			}
		}
	}
}
