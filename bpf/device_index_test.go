// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

func newTestTable(devices int) *deviceTable {
	return &deviceTable{entries: make([]deviceEntry, devices), keys: testKeys()}
}

func (t *deviceTable) mustTake(tb testing.TB, name string, want int) {
	tb.Helper()
	index, err := t.choose()
	if err != nil || index != want {
		tb.Fatalf("%s got the index %d and error %v, want %d", name, index, err, want)
	}
	t.release(index)
	id, err := t.plan(index, name)
	if err != nil {
		tb.Fatal(err)
	}
	t.take(id)
}

// The table has the bytes of names, and so the names of versions before.
func TestTableHasBytesOfNames(t *testing.T) {
	table := newTestTable(3)
	longest := strings.Repeat("%ff", printable.MaxName)
	for i, name := range []string{"ba%ffd0", "ba%25ffd0", longest} {
		table.mustTake(t, name, i)
		if got := table.find(name); got != i || table.identity(i).name != name {
			t.Errorf("%s has the index %d and the name %s, want %d", name, got, table.identity(i).name, i)
		}
	}
	if got := table.entries[0].name; got != [16]byte{'b', 'a', 0xff, 'd', '0'} {
		t.Errorf("the table has %q", got)
	}
	if canHaveEntry(longest+"a") || !canHaveEntry(longest) {
		t.Error("the longest name has 15 bytes")
	}
}

func TestIndicesOfDevices(t *testing.T) {
	table := newTestTable(2)
	table.mustTake(t, "a", 0)
	table.mustTake(t, "b", 1)
	if _, err := table.choose(); !errors.Is(err, errNoIndex) {
		t.Errorf("a third device got the error %v", err)
	}
	for name, want := range map[string]int{"a": 0, "b": 1, "c": -1, "": -1} {
		if got := table.find(name); got != want {
			t.Errorf("%q has the index %d, want %d", name, got, want)
		}
	}

	before, owner := table.entries[1].keys, table.owner(1)
	table.setGone(1, true)
	table.setGone(0, true)
	if table.find("b") != 1 {
		t.Error("a device that is gone lost its index")
	}
	table.mustTake(t, "c", 1) // that of the one which vanished first
	if table.find("b") != -1 || table.find("c") != 1 {
		t.Error("the index is not that of the new device alone")
	}
	if table.entries[1].keys == before || table.owner(1) == owner {
		t.Error("the new device has the keys or the owner of the old one")
	}
	if table.owner(1)&(1<<ownerShift-1) != 1 {
		t.Errorf("owner %#x does not tell the index", table.owner(1))
	}
	table.mustTake(t, "fifteen-letters", 0)
	if table.find("fifteen-letters") != 0 {
		t.Error("a name of full length is not found")
	}
}

// The generation after the largest is 1, and never 0, which is that of an index that no device has
// had: an owner of 0 names no device.
func TestGenerationsWrapAround(t *testing.T) {
	table := newTestTable(1)
	const most = 1<<(32-ownerShift) - 1
	for _, test := range []struct{ before, want uint32 }{{0, 1}, {1, 2}, {most - 1, most}, {most, 1}} {
		table.entries[0].generation = test.before
		table.mustTake(t, "a", 0)
		if got := table.entries[0].generation; got != test.want {
			t.Errorf("generation %d follows %d, want %d", got, test.before, test.want)
		}
		o := make(owners, 1).with(0, eventOwner{id: table.owner(0), name: "a"})
		if got := o.find(table.owner(0)); got == nil || got.name != "a" {
			t.Errorf("the owner of generation %d is %+v", test.want, got)
		}
		table.release(0)
	}
}

func TestOwnersOfEvents(t *testing.T) {
	var first, second, third uint64
	o := make(owners, 2)
	o = o.with(1, eventOwner{1<<ownerShift | 1, "a", &first})
	again := o.with(1, eventOwner{1<<ownerShift | 1, "a", &first})
	if got := again.find(1<<ownerShift | 1); got == nil || got.name != "a" || got.received != &first {
		t.Errorf("the device that is attached again is %+v", got)
	}
	o = again.with(1, eventOwner{2<<ownerShift | 1, "b", &second})
	if got := o.find(2<<ownerShift | 1); got == nil || got.name != "b" || got.received != &second {
		t.Errorf("the new device is %+v", got)
	}
	if got := o.find(1<<ownerShift | 1); got == nil || got.name != "a" || got.received != nil {
		t.Errorf("the device before is %+v, want a, whose events do not count", got)
	}
	o = o.with(1, eventOwner{3<<ownerShift | 1, "c", &third})
	for _, id := range []uint32{0, 1, 1<<ownerShift | 1, 3 << ownerShift, 3<<ownerShift | 2, 1<<32 - 1} {
		if got := o.find(id); got != nil {
			t.Errorf("%#x is %+v, want nobody", id, got)
		}
	}
}

// A record that names nobody is counted as malformed, and its device not guessed.
func TestEventsOfNobody(t *testing.T) {
	p := newProbe(t, testConfig())
	now := p.learn(t, udpFrame())
	none := make(owners, 1)
	p.events.owners.Store(&none)
	run(t, p.program(0), udpFrame(), now+1_500_000, 1)
	if events := p.readAll(t); len(events) != 0 {
		t.Errorf("got %+v", events)
	}
	if got := p.EventCounts(); got.Malformed != 1 || got.Received["test0"] != 0 {
		t.Errorf("counts: got %+v", got)
	}
}

// What was sent is read, left in a ring or not known yet.
func TestFatesOfPinnedEvents(t *testing.T) {
	for _, test := range []struct {
		name                string
		sent, received, gap uint64
		want                uint64
	}{
		{"all were read", 10, 10, 0, 10},
		{"three are still in a ring", 10, 7, 0, 7},
		{"three were left in a ring of an earlier process", 10, 7, 3, 7},
		{"one is read that the kernel has not counted yet", 10, 8, 3, 7},
		{"the counters are torn", 2, 0, 3, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := deviceEntry{received: test.received, gap: test.gap}
			fates := [NumFates]uint64{FateSent: test.sent, FateRateLimit: 5}
			e.settleFates(&fates)
			if want := ([NumFates]uint64{FateSent: test.want, FateRateLimit: 5, FateReaderGap: test.gap}); fates != want {
				t.Errorf("got %v, want %v", fates, want)
			}
		})
	}
}

func TestLayouts(t *testing.T) {
	word := &btf.Int{Name: "__u32", Size: 4}
	value := func(names ...string) btf.Type {
		s := &btf.Struct{Size: 8}
		for i, name := range names {
			s.Members = append(s.Members, btf.Member{Name: name, Type: word, Offset: btf.Bits(32 * i)})
		}
		return s
	}
	layout := func(t btf.Type, change func(*Config)) string {
		config := testConfig()
		change(&config)
		return layoutOf(config, map[string]*ebpf.MapSpec{"m": {Type: ebpf.Array, KeySize: 4, ValueSize: 8, Value: t}}, 2, 64)
	}
	same := func(*Config) {}
	before := layout(value("a", "b"), same)
	for _, test := range []struct {
		name, now string
		differs   string // the first field that does
	}{
		{"fields in another order", layout(value("b", "a"), same), "types"},
		{"an array", layout(&btf.Array{Type: word, Nelems: 2}, same), "types"},
		{"a larger table", layout(value("a", "b"), func(c *Config) { c.Flows *= 2 }), "slots"},
		{"another window", layout(value("a", "b"), func(c *Config) { c.Window++ }), "window"},
		{"another clock", layout(value("a", "b"), func(c *Config) { c.Clock = ClockKtime }), "clock"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := differingFields(before, test.now); !strings.HasPrefix(got, test.differs+" is ") || strings.Contains(got, ",") {
				t.Errorf("got %q, want that %s differs", got, test.differs)
			}
		})
	}
	for name, change := range map[string]func(*Config){
		"threshold": func(c *Config) { c.Threshold = 9 }, "rate": func(c *Config) { c.EventRate = 1 },
		"calibration": func(c *Config) { c.Calibrate = 0 },
		"devices":     func(c *Config) { c.Devices = []string{"x", "y"} }, "samples": func(c *Config) { c.MinSamples = 50 },
		"a table that is rounded up to the same": func(c *Config) { c.Flows-- },
	} {
		if got := layout(value("a", "b"), change); got != before {
			t.Errorf("another %s makes another layout: %s", name, differingFields(before, got))
		}
	}
}
