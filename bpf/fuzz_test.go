// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Any frame passes unchanged, is counted in the model's cell, and belongs to the model's flow, on
// devices with and without an Ethernet header.
func FuzzFrame(f *testing.F) {
	for _, test := range allFrames() {
		f.Add(test.frame)
	}
	config := testConfig()
	config.Flows = flowWays
	var fuzzed []*fuzzedProgram
	for link := range netdev.LinkOther {
		readable := readableBytes(f, loadTestOn(f, config, link))
		audit := loadTestOn(f, config, link)
		fuzzed = append(fuzzed, &fuzzedProgram{audit, newRunner(f, audit.program(0).FD()), link, readable})
	}
	now := uint64(1e12)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < shortestFrame || len(frame) > longestFrame {
			t.Skip()
		}
		now += 1e6
		for _, p := range fuzzed {
			p.check(t, frame, now)
		}
	})
}

// fuzzedProgram is a program on a device with a link layer.
type fuzzedProgram struct {
	*Audit
	runner   *runner
	link     netdev.LinkLayer
	readable int
}

func (p *fuzzedProgram) check(t *testing.T, frame []byte, now uint64) {
	t.Helper()
	want := parseModel(frame, p.readable, p.link, 0)
	before := p.Counters()[0]
	if err := p.runner.run(frame, now); err != nil {
		t.Fatal(err)
	}
	after := p.Counters()[0]
	counted := after.Packets.Protocol(want.family, want.protocol) - before.Packets.Protocol(want.family, want.protocol)
	if all := sumOf(&after.Packets) - sumOf(&before.Packets); counted != 1 || all != 1 {
		t.Errorf("counted %d times, %d of them as %v %v, want once", all, counted, want.family, want.protocol)
	}
	if got := after.Bytes[want.family][want.protocol] - before.Bytes[want.family][want.protocol]; got != uint64(len(frame)) {
		t.Errorf("counted %d bytes of %d", got, len(frame))
	}
	for outcome, class := range map[Outcome]class{OutcomeUnparsed: classUnparsed, OutcomeFragment: classFragment} {
		if is := after.Packets.Outcome(outcome) > before.Packets.Outcome(outcome); is != (want.class == class) {
			t.Errorf("%v: got %v, want %v", outcome, is, want.class == class)
		}
	}
	if want.class != classFlow {
		return
	}
	want.key.Owner = p.maps.devices.owner(0)
	var kept [flowWays]programFlowKey
	for i := range kept {
		if err := p.maps.byName[programMapFlowKeys].Lookup(uint32(i), &kept[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Contains(kept[:], want.key) {
		t.Errorf("flow %+v is not in the table: %+v", want.key, kept)
	}
}

// A record of a ring is decoded or refused, and never read beyond its end.
func FuzzEvent(f *testing.F) {
	event := programAuditEvent{Flag: programFlagState{DeltaNs: 1500, MeanQ16: 1000 << 16, M2Low: 1e6, N: 100, LenBytes: 60, IsLate: 1}}
	event.Key = programFlowKey{Owner: 1 << ownerShift, Family: uint8(FamilyIPv4), IpProtocol: ipTCP, VlanId: 7}
	record := unsafe.Slice((*byte)(unsafe.Pointer(&event)), eventBytes)
	f.Add(slices.Clone(record))
	f.Add(append(slices.Clone(record), 1, 2, 3, 4, 5, 6, 7))
	f.Add(record[:eventBytes-1])
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, eventBytes))
	f.Add(make([]byte, eventBytes))
	all := owners(make([]indexOwners, 3)).with(0, eventOwner{id: 1 << ownerShift, name: "eth0"}).with(2, eventOwner{id: 2 | 7<<ownerShift})
	f.Fuzz(func(t *testing.T, record []byte) {
		for _, domain := range []Domain{DomainLinear, DomainLog2} {
			before := Event{Device: "untouched"}
			event := before
			id, ok := decodeEvent(slices.Clip(record), &event, timing.Params{Domain: domain, Clip: 1.8})
			if !ok {
				if event != before {
					t.Error("a record was refused, and changed the event")
				}
				continue
			}
			if len(record) < eventBytes {
				t.Fatalf("a record of %d bytes was decoded", len(record))
			}
			if owner := all.find(id); owner != nil && owner.id != id {
				t.Errorf("event of %#x has the owner %#x", id, owner.id)
			}
			raw := *(*programAuditEvent)(unsafe.Pointer(&slices.Clone(record)[0]))
			if event.DeltaNs != raw.Flag.DeltaNs || event.Samples != uint64(raw.Flag.N) || event.LenBytes != raw.Flag.LenBytes {
				t.Errorf("got %+v of %+v", event, raw)
			}
			if !event.Source.IsValid() || !event.Destination.IsValid() || event.Protocol >= NumProtocols {
				t.Errorf("got %+v", event)
			}
			// Any decoded event can be exported.
			_, _, _ = event.Score(), event.MeanNs(), event.WallTime()
			if deviation := event.StandardDeviation(); math.IsNaN(deviation) || deviation < 0 {
				t.Errorf("standard deviation %v", deviation)
			}
		}
	})
}

// Whatever a pinned device table contains, each device gets an index of its own, or an error if
// none is left.
func FuzzDeviceTable(f *testing.F) {
	entry := func(state uint32, goneNs uint64, name string) []byte {
		e := deviceEntry{state: state, generation: 7, goneNs: goneNs}
		copy(e.name[:], name)
		return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&e)), unsafe.Sizeof(e)))
	}
	f.Add(concat(entry(entryTaken, 0, "eth0"), entry(entryTaken, 5, "eth1"), entry(entryFree, 0, "")), "eth0")
	f.Add(concat(entry(entryTaken, 9, "eth0"), entry(entryTaken, 5, "eth1")), "eth2")
	f.Add(concat(entry(entryTaken, 0, "a"), entry(entryTaken, 0, "a")), "b")
	f.Add(concat(entry(99, 1<<63, "sixteen-letters!"), entry(entryTaken, 1, "sixteen-letters!")), "sixteen-letters!")
	f.Add([]byte{}, "eth0")
	f.Fuzz(func(t *testing.T, memory []byte, name string) {
		if name == "" || len(name) > 15 || strings.ContainsRune(name, 0) {
			t.Skip()
		}
		table := &deviceTable{entries: make([]deviceEntry, 1+len(memory)/int(unsafe.Sizeof(deviceEntry{}))), keys: testKeys()}
		if len(memory) > 0 {
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&table.entries[0])), len(memory)), memory)
		}
		given := map[int]string{}
		for _, bytes := range []string{name, name + "'", "other"} {
			name := printable.Name(bytes)
			index := table.find(name)
			if index < 0 {
				var err error
				if index, err = table.choose(); err != nil {
					for i := range table.entries {
						if e := &table.entries[i]; !e.isTaken() || e.goneNs != 0 {
							t.Fatalf("no index for %q, although index %d is free or of a vanished device", name, i)
						}
					}
					continue
				}
				if before, ok := given[index]; ok {
					t.Fatalf("index %d of %q is given to %q", index, before, name)
				}
				table.release(index)
				id, err := table.plan(index, name)
				if err != nil {
					t.Fatal(err)
				}
				table.take(id)
			}
			table.setGone(index, false)
			given[index] = name
			if owner := table.owner(index); owner&(1<<ownerShift-1) != uint32(index) {
				t.Errorf("owner %#x of index %d", owner, index)
			}
			if len(bytes) < 16 && table.find(name) < 0 {
				t.Errorf("%q has index %d, but is not found", name, index)
			}
		}
		for i := range table.entries {
			e := &table.entries[i]
			sent := e.received/2 + e.gap/2 // any value that an earlier process may have left
			fates := [NumFates]uint64{FateSent: sent}
			if e.settleFates(&fates); fates[FateSent] > sent {
				t.Errorf("%d events are counted as sent, but only %d were sent", fates[FateSent], sent)
			}
		}
	})
}

// Any pinned layout other than that of this build is reported as different.
func FuzzLayout(f *testing.F) {
	const now = "version=1 types=0123456789abcdef cpus=2 devices=64 slots=65536 window=8192 clock=ktime domain=linear baseline=flow netns=4026531840"
	f.Add(now)
	f.Add(strings.Replace(now, "slots=65536", "slots=8", 1))
	f.Add(now + " more=1")
	f.Add("")
	f.Add("version=")
	f.Add("=\n version==1\x00")
	f.Fuzz(func(t *testing.T, before string) {
		if differs := differingFields(before, now); before != now && differs == "" {
			t.Errorf("%q differs in nothing", before)
		}
		for field := range strings.FieldsSeq(before) {
			name, value, _ := strings.Cut(field, "=")
			// The first field of a name counts.
			if got := fieldOf(before, name); strings.Contains(field, "=") && got != value && !strings.Contains(before, name+"="+got) {
				t.Errorf("%q has %s=%q, want %q", before, name, got, value)
			}
		}
	})
}

// Reading a mapped block of counters terminates, whatever the block contains, and the result
// can be exported.
func FuzzCounters(f *testing.F) {
	const blockBytes = int(unsafe.Sizeof(programDeviceCounters{}))
	f.Add(make([]byte, 64))
	f.Add(bytes.Repeat([]byte{0xff}, blockBytes))
	f.Add(bytes.Repeat([]byte{1, 0, 0, 0, 0, 0, 0, 0x80}, blockBytes/8))
	f.Fuzz(func(t *testing.T, memory []byte) {
		blocks := make([]programDeviceCounters, 1)
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&blocks[0])), blockBytes), memory)
		config := DefaultConfig()
		config.Baseline = BaselineDevice
		reader := newCounterReader(blocks, 1, 1, config)
		var first, second Counters
		reader.read(0, &first)
		reader.read(0, &second)
		if first.Packets != second.Packets || first.Sums != second.Sums || first.Histogram != second.Histogram {
			t.Error("two readings of the same memory differ")
		}
		if deviation := first.Baseline.StandardDeviation(); math.IsNaN(deviation) || deviation < 0 {
			t.Errorf("standard deviation %v", deviation)
		}
	})
}
