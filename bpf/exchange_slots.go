// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	assessmentSlots = 64 // ASSESSMENT_SLOTS in xdp/exchange_layout.h

	generationMask = 0x7f // REQUEST_GENERATION_MASK in xdp/exchange_request.h
)

// exchangePorts has slots plus 1, by protocol and port, in the section of that name.
type exchangePorts [2][1 << 16]uint8

const exchangePortsName = ".data.ports"

// exchanges tells the programs what to measure, and reads what they have measured. All maps are
// mapped memory, so it needs no privilege. Response times are not pinned.
//
// An assessment has a slot. One that is replaced gives up its slot, and the slot that was free for
// the longest time is used for the next: the requests that are outstanding then carry a generation
// of the slot, so that the programs do not count them for another assessment.
type exchanges struct {
	ports       *mapArray[exchangePorts]
	assessments *mapArray[leakExchangeAssessment]
	deviceSlots *mapArray[uint64] // by device index: bits of slots
	sets        *mapArray[leakExchangeSet]
	cpus        *mapArray[leakExchangeCpu]
	records     *mapArray[leakExchangeRecord]

	hasInjectedTime bool // records are not on CLOCK_MONOTONIC

	mu       sync.Mutex // guards what follows; held while an array is used
	isClosed bool
	slots    [assessmentSlots]assessmentSlot
	free     []int    // slots, the one that is used next first
	inOrder  []int    // slots of the assessments, in the order of SetAssessments
	devices  []string // names by index

	ring exchangeRing
}

// assessmentSlot is what is in a slot.
type assessmentSlot struct {
	compiledAssessment
	sinceNs uint64                 // CLOCK_MONOTONIC when the assessment got the slot
	base    leakExchangeCounts     // what was counted for earlier assessments
	value   leakExchangeAssessment // as in the map
}

// compiledAssessment is an assessment as programs read it. Two that are equal measure the same.
type compiledAssessment struct {
	name, device string
	protocol     Protocol
	port         uint16
	classes      [2]leakExchangeClass
}

// newExchangeMaps creates the maps of response times.
func newExchangeMaps(config Config, cpus, devices int) (_ map[string]*ebpf.Map, err error) {
	spec, err := loadLeak()
	if err != nil {
		return nil, err
	}
	created := map[string]*ebpf.Map{}
	for name, n := range map[string]int{
		exchangePortsName: 1, leakMapExchangeAssessments: assessmentSlots, leakMapExchangeDevices: devices,
		leakMapExchangeSets: int(config.exchangeSets()), leakMapExchangeCpus: cpus,
		leakMapExchangeRecords: cpus * int(config.exchangeRecords()),
	} {
		spec.Maps[name].Flags |= unix.BPF_F_MMAPABLE
		if created[name], err = newMap(name, spec.Maps[name], n); err != nil {
			delete(created, name)
			return nil, errors.Join(err, closeMaps(created))
		}
	}
	return created, nil
}

func newExchanges(byName map[string]*ebpf.Map, config Config) (_ *exchanges, err error) {
	e := &exchanges{hasInjectedTime: config.Clock == ClockMetadata}
	for slot := range assessmentSlots {
		e.free = append(e.free, slot)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("mapping the response times: %w", err), e.close())
		}
	}()
	const isWritten = unix.PROT_READ | unix.PROT_WRITE
	if e.ports, err = newMapArray[exchangePorts](byName[exchangePortsName], isWritten); err != nil {
		return nil, err
	}
	if e.assessments, err = newMapArray[leakExchangeAssessment](byName[leakMapExchangeAssessments], isWritten); err != nil {
		return nil, err
	}
	if e.deviceSlots, err = newMapArray[uint64](byName[leakMapExchangeDevices], isWritten); err != nil {
		return nil, err
	}
	if e.cpus, err = newMapArray[leakExchangeCpu](byName[leakMapExchangeCpus], isWritten); err != nil {
		return nil, err
	}
	if e.sets, err = newMapArray[leakExchangeSet](byName[leakMapExchangeSets], unix.PROT_READ); err != nil {
		return nil, err
	}
	if e.records, err = newMapArray[leakExchangeRecord](byName[leakMapExchangeRecords], unix.PROT_READ); err != nil {
		return nil, err
	}
	e.devices = make([]string, e.deviceSlots.len())
	e.ring.capacity = e.records.len() / e.cpus.len()
	return e, nil
}

func (e *exchanges) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.isClosed = true
	if e.ports.len() > 0 { // a filter may outlive this process
		for _, slot := range e.inOrder {
			e.setPort(slot, 0)
		}
	}
	return errors.Join(e.ports.close(), e.assessments.close(), e.deviceSlots.close(), e.sets.close(), e.cpus.close(), e.records.close())
}

// SetAssessments replaces the assessments while packets pass. What did not change keeps its counts
// and its outstanding requests. It needs no privilege. An error names the assessment, the value and
// the remedy; then nothing is changed. Without Config.ExchangeConnections it returns an error.
func (a *Audit) SetAssessments(assessments []Assessment) error {
	if a.exchanges == nil {
		return errors.New("response times are not measured: set ExchangeConnections")
	}
	if err := validateAssessments(assessments); err != nil {
		return err
	}
	a.exchanges.set(assessments)
	return nil
}

func (e *exchanges) set(assessments []Assessment) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isClosed {
		return
	}
	before := e.inOrder
	e.inOrder = nil
	var added []compiledAssessment
	for i := range assessments {
		c := assessments[i].compile()
		at := slices.IndexFunc(before, func(slot int) bool { return e.slots[slot].compiledAssessment == c })
		if at < 0 {
			added = append(added, c)
			e.inOrder = append(e.inOrder, -1)
			continue
		}
		e.inOrder = append(e.inOrder, before[at])
	}
	for _, slot := range before {
		if !slices.Contains(e.inOrder, slot) {
			e.setPort(slot, 0)
			e.slots[slot].compiledAssessment = compiledAssessment{}
			e.free = append(e.free, slot)
		}
	}
	for i := range e.inOrder {
		if e.inOrder[i] < 0 {
			e.inOrder[i] = e.begin(added[0])
			added = added[1:]
		}
	}
	e.assignDevices()
	for _, slot := range e.inOrder {
		e.setPort(slot, uint8(slot+1))
	}
}

// begin gives an assessment a slot. No port has the slot.
func (e *exchanges) begin(c compiledAssessment) int {
	slot := e.free[0]
	e.free = e.free[1:]
	s := &e.slots[slot]
	s.compiledAssessment, s.base = c, e.sum(slot)
	if !e.hasInjectedTime {
		s.sinceNs = monotonicNs()
	}
	s.value = leakExchangeAssessment{Generation: (s.value.Generation + 1) & generationMask, Classes: c.classes}
	*e.assessments.at(slot) = s.value
	return slot
}

func (e *exchanges) setPort(slot int, value uint8) {
	s := &e.slots[slot]
	protocol := 0
	if s.protocol == ProtocolUDP {
		protocol = 1
	}
	// The programs load single bytes.
	e.ports.at(0)[protocol][networkOrder(s.port)] = value
}

// nameDevice notes which device has an index.
func (e *exchanges) nameDevice(index int, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isClosed {
		return
	}
	e.devices[index] = name
	e.assignDevices()
}

// assignDevices writes which assessments are of which devices.
func (e *exchanges) assignDevices() {
	for index, name := range e.devices {
		bits := uint64(0)
		for _, slot := range e.inOrder {
			if of := e.slots[slot].device; of == "" || of == name {
				bits |= 1 << slot
			}
		}
		atomic.StoreUint64(e.deviceSlots.at(index), bits)
	}
}

func (a *Assessment) compile() compiledAssessment {
	c := compiledAssessment{name: a.Name, device: a.Device, protocol: a.Protocol, port: a.Port}
	for i := range a.Classes {
		c.classes[i] = a.Classes[i].compile()
	}
	return c
}

func (m *ClassMatch) compile() leakExchangeClass {
	const vlanShift, familyShift = 16, 8
	c := leakExchangeClass{PortSpan: 0xffff}
	if m.DSCP != nil {
		c.Kind |= uint32(*m.DSCP)
		c.KindMask |= 0xff
	}
	if m.VLAN != nil {
		c.Kind |= uint32(*m.VLAN) << vlanShift
		c.KindMask |= 0xffff << vlanShift
	}
	if m.SourcePorts != nil {
		c.PortLow, c.PortSpan = m.SourcePorts.First, m.SourcePorts.Last-m.SourcePorts.First
	}
	if !m.Source.IsValid() {
		return c
	}
	prefix, family := m.Source.Masked(), FamilyIPv6
	if prefix.Addr().Is4() {
		family = FamilyIPv4
	}
	c.Kind |= uint32(family) << familyShift
	c.KindMask |= 0xff << familyShift
	c.HasSource = 1
	for i, octet := range prefix.Addr().AsSlice() {
		ones := min(max(prefix.Bits()-8*i, 0), 8)
		bytesOf(&c.Source)[i], bytesOf(&c.SourceMask)[i] = octet, ^byte(0xff>>ones)
	}
	return c
}

// bytesOf returns the bytes of an address.
func bytesOf(words *[4]uint32) *[16]byte { return (*[16]byte)(unsafe.Pointer(words)) }

// networkOrder converts between the order of the host and that of the network.
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// ExchangeCounts counts the requests of each assessment, in the order of [Audit.SetAssessments],
// and the excluded requests of all that could not be recorded. It is empty without
// Config.ExchangeConnections and after Close.
func (a *Audit) ExchangeCounts() (counts []ExchangeCounts, lost uint64) {
	if a.exchanges == nil {
		return nil, 0
	}
	return a.exchanges.counts()
}

func (e *exchanges) counts() (counts []ExchangeCounts, lost uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isClosed {
		return nil, 0
	}
	outstanding := e.outstanding()
	for _, slot := range e.inOrder {
		s := &e.slots[slot]
		sum := e.sum(slot)
		c := ExchangeCounts{Assessment: s.name, Requests: sum.Requests - s.base.Requests, Outstanding: outstanding[slot]}
		for i := range c.Responses {
			c.Responses[i] = sum.Responses[i] - s.base.Responses[i]
		}
		for i := range c.Excluded {
			c.Excluded[i] = sum.Excluded[i] - s.base.Excluded[i]
		}
		counts = append(counts, c)
	}
	for cpu := range e.cpus.len() {
		lost += atomic.LoadUint64(&e.cpus.at(cpu).Lost)
	}
	return counts, lost
}

// ExchangesExcluded returns the excluded requests of each assessment, as ExchangeCounts does, with
// those that ReadExchanges does not see for lack of space. It does not look at the table of
// connections, so it is cheap for any number of them.
func (a *Audit) ExchangesExcluded() map[string][NumExclusions]uint64 {
	if a.exchanges == nil {
		return map[string][NumExclusions]uint64{}
	}
	return a.exchanges.excluded()
}

func (e *exchanges) excluded() map[string][NumExclusions]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := map[string][NumExclusions]uint64{}
	if e.isClosed {
		return all
	}
	for _, slot := range e.inOrder {
		s := &e.slots[slot]
		n := e.sum(slot).Excluded
		for i := range n {
			n[i] -= s.base.Excluded[i]
		}
		all[s.name] = n
	}
	return all
}

// sum adds up what all CPUs have counted in a slot.
func (e *exchanges) sum(slot int) (sum leakExchangeCounts) {
	for cpu := range e.cpus.len() {
		counts := &e.cpus.at(cpu).Counts[slot]
		sum.Requests += atomic.LoadUint64(&counts.Requests)
		for i := range counts.Responses {
			sum.Responses[i] += atomic.LoadUint64(&counts.Responses[i])
		}
		for i := range counts.Excluded {
			sum.Excluded[i] += atomic.LoadUint64(&counts.Excluded[i])
		}
	}
	return sum
}

// outstanding counts the outstanding requests by slot.
func (e *exchanges) outstanding() (n [assessmentSlots]uint64) {
	for request := range e.outstandingRequests() {
		n[request>>slotShift%assessmentSlots]++
	}
	return n
}

const slotShift, generationShift = 46, 52 // as in xdp/exchange_request.h

// outstandingRequests returns the outstanding requests, apart from those of earlier assessments.
func (e *exchanges) outstandingRequests() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for s := range e.sets.len() {
			set := e.sets.at(s)
			for way := range set.Connections {
				request := atomic.LoadUint64(&set.Connections[way].Request)
				of := &e.slots[request>>slotShift%assessmentSlots]
				isOfEarlier := of.name == "" || uint32(request>>generationShift)&generationMask != of.value.Generation
				if request != 0 && !isOfEarlier && !yield(request) {
					return
				}
			}
		}
	}
}
