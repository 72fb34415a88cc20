// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"maps"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

const (
	progNull       = "null"        // returns XDP_PASS
	progFloor      = "floor"       // reads the clock and stores the time
	progFloorTable = "floor_table" // as floor, and changes a random line of a large array
	progAudit      = "audit"
)

// otherTable is an alternative to the audit's flow table, for comparison.
type otherTable struct {
	name      string
	load      func() (*ebpf.CollectionSpec, error)
	flowsMap  string
	isPerFlow bool // one entry per flow, not per set
	kernel    uint32
}

var (
	lruHash  = otherTable{name: "lru_hash", load: loadBenchLRU, flowsMap: benchLRUMapBenchLruFlows, isPerFlow: true}
	spinLock = otherTable{name: "spin_lock", load: loadBenchSpinlock, flowsMap: benchSpinlockMapBenchLockedSets, kernel: 6<<16 | 9<<8}
)

// measurement runs a workload through several programs. The programs take turns, so that changes of
// the machine's speed affect all of them.
type measurement struct {
	workload
	audit    *Audit
	names    []string // of the programs, in order
	programs map[string]*ebpf.Program
	costs    map[string][]int // by program: ns per packet in each round
	warm     map[string]tally // by program: tally of the warm-up
	counted  map[string]tally // by program: tally of all rounds
	bytes    int              // size of the measured flow table
}

// newMeasurement loads the programs and pins the test to one CPU.
func newMeasurement(t testing.TB, w workload, config Config) *measurement {
	t.Helper()
	if w.table != nil {
		w.table.needKernel(t)
	}
	m := &measurement{
		workload: w, audit: loadTest(t, config), programs: map[string]*ebpf.Program{},
		costs: map[string][]int{}, warm: map[string]tally{}, counted: map[string]tally{},
	}
	m.bytes = tableBytes(m.audit.config)
	m.loadReferences(t)
	if w.flows == 1 {
		m.programs[progAudit] = m.audit.program(0)
	}
	m.names = w.programs()
	if w.table != nil {
		m.loadOther(t, w.table)
	}
	pinToCPU(t)
	return m
}

func (o *otherTable) needKernel(t testing.TB) {
	t.Helper()
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	if version < o.kernel {
		t.Skipf("%s loads from Linux %d.%d on", o.name, o.kernel>>16, o.kernel>>8&0xff)
	}
}

// reference returns the name of the program whose cost is a lower bound for an audit.
func (w workload) reference() string {
	if w.flows == 1 {
		return progFloor
	}
	return progFloorTable
}

// programs returns the programs that take turns.
func (w workload) programs() []string {
	if w.table != nil {
		return []string{w.reference(), progAudit, w.table.name}
	}
	return []string{progNull, w.reference(), progAudit}
}

// measured returns the program that the workload is about.
func (w workload) measured() string {
	if w.table != nil {
		return w.table.name
	}
	return progAudit
}

func (m *measurement) loadReferences(t testing.TB) {
	t.Helper()
	programs := map[string]string{progNull: benchProgBenchNull, progFloor: benchProgBenchFloor}
	if m.flows > 1 {
		programs = map[string]string{
			progNull: benchProgBenchNullMany, progFloorTable: benchProgBenchFloorTableMany, progAudit: benchProgBenchAuditMany,
		}
	}
	spec, err := loadBench()
	if err != nil {
		t.Fatal(err)
	}
	const lineBytes = 64
	lines := uint32(m.bytes / lineBytes)
	spec.Maps[benchMapBenchTable].MaxEntries = lines
	setVariable(t, spec, benchVarBenchLines, lines)
	m.load(t, spec, programs)
}

func (m *measurement) loadOther(t testing.TB, table *otherTable) {
	t.Helper()
	spec, err := table.load()
	if err != nil {
		t.Fatal(err)
	}
	flows := spec.Maps[table.flowsMap]
	flows.MaxEntries = m.audit.config.sets()
	if table.isPerFlow {
		flows.MaxEntries = uint32(m.audit.config.Slots())
	}
	program := benchProgXdpAudit
	if m.flows > 1 {
		program = benchProgBenchAuditMany
	}
	collection := m.load(t, spec, map[string]string{table.name: program})
	info, err := collection.Maps[table.flowsMap].Info()
	if err != nil {
		t.Fatal(err)
	}
	if memory, ok := info.Memlock(); ok {
		m.bytes = int(memory)
	}
}

// load loads programs of an object, with the maps of the audit. The keys of names are the names in
// the measurement, the values those in the object.
func (m *measurement) load(t testing.TB, spec *ebpf.CollectionSpec, names map[string]string) *ebpf.Collection {
	t.Helper()
	if err := m.audit.maps.configure(spec, m.audit.config, m.audit.maps.devices.identity(0)); err != nil {
		t.Fatal(err)
	}
	if m.flows > 1 {
		setVariable(t, spec, benchVarBenchFlowMask, m.flows-1)
		setVariable(t, spec, benchVarBenchAddressOffset, sourceOffset(m.frame))
	}
	wanted := slices.Collect(maps.Values(names))
	maps.DeleteFunc(spec.Programs, func(name string, _ *ebpf.ProgramSpec) bool { return !slices.Contains(wanted, name) })
	for _, p := range spec.Programs {
		dropMetadataCalls(p)
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: m.audit.maps.byName})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(collection.Close)
	for name, program := range names {
		m.programs[name] = collection.Programs[program]
	}
	return collection
}

func setVariable(t testing.TB, spec *ebpf.CollectionSpec, name string, value uint32) {
	t.Helper()
	if err := spec.Variables[name].Set(value); err != nil {
		t.Fatal(err)
	}
}

// sourceOffset returns the offset of the last word of the source address in a frame without tags.
func sourceOffset(frame []byte) uint32 {
	const ethernetBytes, inIPv4, inIPv6 = 14, 12, 20
	if frame[ethernetBytes]>>4 == 6 {
		return ethernetBytes + inIPv6
	}
	return ethernetBytes + inIPv4
}

// tableBytes returns the size of the flow table's hot part in bytes.
func tableBytes(c Config) int { return int(c.sets()) * int(unsafe.Sizeof(programFlowSet{})) }

// warmUp sends at least that many packets through every program, and through an audit enough for
// each flow to be judged.
func (m *measurement) warmUp(t testing.TB, packets int) {
	t.Helper()
	for _, name := range m.names {
		sent := packets
		if m.isAudit(name) && m.flows < allFlows {
			sent = max(packets, int(m.flows*(m.audit.config.MinSamples+2)))
		}
		_, m.warm[name] = m.turn(t, name, sent)
	}
	if watcher := m.audit.watcher; watcher != nil {
		watcher.round(m.audit.events.owners.Load(), 1, func(*Window) {})
	}
}

// round runs each program once. Before an audit, each flow gets one more packet, because its
// silence during the other turns is not part of the traffic.
func (m *measurement) round(t testing.TB, packets int) {
	t.Helper()
	for _, name := range m.names {
		if m.isAudit(name) && m.flows < allFlows {
			m.turn(t, name, int(m.flows))
		}
		cost, counted := m.turn(t, name, packets)
		m.costs[name] = append(m.costs[name], cost)
		m.counted[name] = m.counted[name].plus(counted)
	}
}

func (m *measurement) isAudit(name string) bool { return name != progNull && name != m.reference() }

// turn sends packets through a program. It returns the cost of a packet in nanoseconds and the
// tally of the turn.
func (m *measurement) turn(t testing.TB, name string, packets int) (int, tally) {
	t.Helper()
	before := tallyOf(m.audit)
	verdict, cost, err := m.programs[name].Benchmark(m.frame, packets, nil)
	if err != nil {
		t.Fatal(err)
	}
	if verdict != xdpPass {
		t.Fatalf("%s: verdict %d, want XDP_PASS", name, verdict)
	}
	counted := tallyOf(m.audit).minus(before)
	if m.isAudit(name) && counted.packets < uint64(packets) {
		t.Fatalf("%s: counted %d packets of %d", name, counted.packets, packets)
	}
	return int(cost.Nanoseconds()), counted
}

// verify fails the test if the workload was not what its name says.
func (m *measurement) verify(t testing.TB) {
	t.Helper()
	if got, want := m.audit.WatchCounts().Flows, int(min(m.flows, m.audit.config.Watches)); got != want {
		t.Errorf("%d flows are watched, want %d", got, want)
	}
	for _, name := range m.names {
		if !m.isAudit(name) {
			continue
		}
		if err := m.check(m.warm[name], m.counted[name], m.audit.config); err != nil {
			t.Errorf("%s: %v\nwarm-up %+v\nmeasured %+v", name, err, m.warm[name], m.counted[name])
		}
	}
}

func (m *measurement) report(b *testing.B) {
	measured, reference := median(m.costs[m.measured()]), median(m.costs[m.reference()])
	b.ReportMetric(measured, "ns/op")
	b.ReportMetric(reference, "ref-ns")
	b.ReportMetric(measured/reference, "x-ref")
	b.ReportMetric(float64(m.bytes), "table-bytes")
	if m.table == nil {
		b.ReportMetric(median(m.costs[progNull]), "null-ns")
		return
	}
	audit := median(m.costs[progAudit])
	b.ReportMetric(audit, "audit-ns")
	b.ReportMetric(measured/audit, "x-audit")
}

// median returns the median of costs that the kernel truncated to whole nanoseconds. It treats
// equal costs as spread evenly over their nanosecond.
func median(costs []int) float64 {
	sorted := slices.Sorted(slices.Values(costs))
	middle := sorted[len(sorted)/2]
	below, _ := slices.BinarySearch(sorted, middle)
	upTo, _ := slices.BinarySearch(sorted, middle+1)
	return float64(middle) + (float64(len(sorted))/2-float64(below))/float64(upTo-below)
}

func TestMedianOfCutValues(t *testing.T) {
	for _, test := range []struct {
		name  string
		costs []int
		want  float64
	}{
		{"one value is in the middle of its nanosecond", []int{7}, 7.5},
		{"all the same", []int{7, 7, 7, 7}, 7.5},
		{"a quarter of the way through its nanosecond", []int{9, 7, 8, 7, 8}, 8.25},
		{"two apart", []int{10, 20}, 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := median(test.costs); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}
