// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type record -type place -type flow_set -type baseline -output-stem replay replay replay.bpf.c -- -O3 -mcpu=v3 -Wall -Wextra -Werror -Wpadded -I../../bpf/xdp -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// batchPackets is the maximum number of packets replayed at once.
const batchPackets = 1 << 20

// mostFlows is the maximum number of flows whose packets are replayed together.
const mostFlows = 1 << 12

// replayer sends packets, with generated arrival times, through the program that is attached to
// a device.
type replayer struct {
	objects replayObjects
	hook    link.Link
	mapped  [][]byte
	times   []uint64 // of the packets
	flows   []uint64 // of the packets, from 0 on
	records []replayRecord
	places  []replayPlace // of the flows
	sets    []replayFlowSet
}

// newReplayer returns a replayer for the program with that id.
func newReplayer(id ebpf.ProgramID) (_ *replayer, err error) {
	audit, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, fmt.Errorf("opening program %d: %w", id, err)
	}
	defer audit.Close()
	spec, err := loadReplay()
	if err != nil {
		return nil, err
	}
	shared, err := mapsOf(audit, replayMapFlowSets, replayMapAuditCounters)
	if err != nil {
		return nil, err
	}
	for name, m := range shared {
		defer m.Close()
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	for _, name := range []string{replayMapTimes, replayMapFlows, replayMapRecords} {
		spec.Maps[name].MaxEntries = batchPackets
	}
	spec.Maps[replayMapPlaces].MaxEntries = mostFlows
	r := &replayer{}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if err := spec.LoadAndAssign(&r.objects, &ebpf.CollectionOptions{MapReplacements: shared}); err != nil {
		return nil, fmt.Errorf("loading the replayer: %w", err)
	}
	if err := r.objects.Audits.Put(uint32(0), audit); err != nil {
		return nil, fmt.Errorf("setting program %d as the target of the replay: %w", id, err)
	}
	if r.times, err = mapArray[uint64](r, r.objects.Times, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, err
	}
	if r.flows, err = mapArray[uint64](r, r.objects.Flows, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, err
	}
	if r.places, err = mapArray[replayPlace](r, r.objects.Places, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, err
	}
	if r.records, err = mapArray[replayRecord](r, r.objects.Records, unix.PROT_READ); err != nil {
		return nil, err
	}
	r.sets, err = mapArray[replayFlowSet](r, r.objects.FlowSets, unix.PROT_READ)
	return r, err
}

// mapsOf returns the maps of a program with these names.
func mapsOf(program *ebpf.Program, names ...string) (map[string]*ebpf.Map, error) {
	info, err := program.Info()
	if err != nil {
		return nil, err
	}
	ids, _ := info.MapIDs()
	found := map[string]*ebpf.Map{}
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, fmt.Errorf("opening map %d: %w", id, err)
		}
		about, err := m.Info()
		if err != nil {
			return nil, err
		}
		found[about.Name] = m
	}
	wanted := map[string]*ebpf.Map{}
	for _, name := range names {
		m, ok := found[name]
		if !ok {
			return nil, fmt.Errorf("the program has no map %s", name)
		}
		wanted[name] = m
		delete(found, name)
	}
	for _, m := range found {
		m.Close()
	}
	return wanted, nil
}

// mapArray maps the values of an array map into memory. The size of a value must be a multiple
// of 8 bytes.
func mapArray[T any](r *replayer, m *ebpf.Map, protection int) ([]T, error) {
	n := int(m.MaxEntries())
	memory, err := unix.Mmap(m.FD(), 0, n*int(m.ValueSize()), protection, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %v: %w", m, err)
	}
	r.mapped = append(r.mapped, memory)
	return unsafe.Slice((*T)(unsafe.Pointer(&memory[0])), n), nil
}

// attach attaches the replayer to a device that receives no packets, in the namespace of the
// thread. It makes send a hundred times as fast for few packets: the kernel has a branch for
// each attached XDP program, and patches one in and out around each test run of a program that
// is not attached.
func (r *replayer) attach(device string) error {
	found, err := net.InterfaceByName(device)
	if err != nil {
		return fmt.Errorf("attaching the replayer to %s: %w", device, err)
	}
	if r.hook, err = link.AttachXDP(link.XDPOptions{Program: r.objects.Replay, Interface: found.Index}); err != nil {
		return fmt.Errorf("attaching the replayer to %s: %w", device, err)
	}
	return nil
}

func (r *replayer) close() error {
	err := r.objects.Close()
	if r.hook != nil {
		err = errors.Join(err, r.hook.Close())
	}
	for _, memory := range r.mapped {
		err = errors.Join(err, unix.Munmap(memory))
	}
	return err
}

// metadataBytes is the size of the metadata before a frame: its time.
const metadataBytes = 8

// xdpContext is the kernel's struct xdp_md in the form that BPF_PROG_TEST_RUN takes: pointers
// are offsets into the data.
type xdpContext struct {
	Data, DataEnd, DataMeta                     uint32
	IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// send sends a frame at each of the first n times, for the flow of that packet. The frame is of
// flow 0.
func (r *replayer) send(frame []byte, n int) error {
	source := binary.BigEndian.Uint32(frame[sourceOffset:])
	err := errors.Join(r.objects.Next.Set(uint32(0)), r.objects.Packets.Set(uint32(n)), r.objects.Source.Set(source))
	if err != nil {
		return err
	}
	in := append(make([]byte, metadataBytes), frame...)
	// After a signal the kernel starts the run again. The program continues with the next packet.
	_, err = r.objects.Replay.Run(&ebpf.RunOptions{
		Data: in, Context: xdpContext{Data: metadataBytes, DataEnd: uint32(len(in))}, Repeat: uint32(n),
	})
	if err != nil {
		return err
	}
	var next, packets uint32
	if err := errors.Join(r.objects.Next.Get(&next), r.objects.Packets.Get(&packets)); err != nil {
		return err
	}
	if int(next) != n || int(packets) != n {
		return fmt.Errorf("%d of %d packets were replayed", next, n)
	}
	return nil
}

// follow finds the slots of flows by the times of their last packets, so that their baselines are
// recorded. No flow of another number may have such a time.
func (r *replayer) follow(firstNs uint64, flows int) error {
	found := 0
	for s := range r.sets {
		for w, slot := range r.sets[s].Slots {
			if flow := slot.LastNs - firstNs; flow < uint64(flows) {
				r.places[flow] = replayPlace{Set: uint32(s), Way: uint32(w)}
				found++
			}
		}
	}
	if found != flows {
		return fmt.Errorf("%d of %d flows are in the flow table", found, flows)
	}
	return nil
}

func (b *replayBaseline) state() timing.State {
	const m2HighMask = 1<<23 - 1 // M2_HIGH_MASK in layout.h
	return timing.State{N: uint64(b.N), MeanQ16: b.MeanQ16, M2: timing.Uint128{Hi: uint64(b.M2High & m2HighMask), Lo: b.M2Low}}
}

// sourceOffset is the offset of the source address in a frame.
const sourceOffset = 26

// makeFrame returns a UDP frame of 60 bytes for the flow with that number.
func makeFrame(flow uint32) []byte {
	frame := make([]byte, 60)
	copy(frame, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00})
	copy(frame[14:], []byte{0x45, 0, 0, 46, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0})
	binary.BigEndian.PutUint32(frame[sourceOffset:], 10<<24|flow)
	copy(frame[30:], []byte{198, 51, 100, 2, 1000 >> 8, 1000 & 0xff, 0, 53, 0, 26})
	return frame
}

// pinned calls f on a thread that is bound to one CPU, so that this CPU counts all packets: the
// one with that number among the CPUs that the thread may run on.
func pinned(number int, f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("reading the CPU affinity of a thread: %w", err)
	}
	number %= before.Count()
	for cpu := range 8 * int(unsafe.Sizeof(before)) {
		if !before.IsSet(cpu) {
			continue
		}
		if number == 0 {
			one.Set(cpu)
			break
		}
		number--
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("binding a thread to a CPU: %w", err)
	}
	defer func() { err = errors.Join(err, unix.SchedSetaffinity(0, &before)) }()
	return f()
}

// last returns the baseline of the flow with that number.
func (r *replayer) last(flow int) timing.State {
	place := r.places[flow]
	return r.sets[place.Set].Slots[place.Way].Baseline.state()
}
