// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem generator -output-suffix _test generator generator.bpf.c -- -O3 -mcpu=v3 -Wall -Wextra -Werror -Wpadded -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// generator sends frames out of a device from inside the kernel, at rates that no socket reaches
// and at times that it makes up. A receiver with native XDP on the other end of the pair has to
// be there first.
//
// All frames go out from one CPU, and after each batch the receiver handles them there: they stay
// in order, and none finds its queue full.
type generator struct {
	from       netlab.End
	objects    generatorObjects
	cpu        int
	isRealtime bool
}

// generatorOptions say what becomes of the one frame that a generator is given to send many times.
type generatorOptions struct {
	flows    uint32   // source addresses that take turns: a power of two up to 2²⁴; 0 and 1 leave the frame's own
	random   bool     // addresses and ports are random, for each frame anew
	times    []uint64 // nanoseconds, put in front of the frames as metadata: each is that of a frame of every flow
	drop     bool     // the frames are made, and not sent
	realtime bool     // no other thread gets the CPU meanwhile, as if a device had interrupted it
}

// xdpContext is the kernel's struct xdp_md as BPF_PROG_TEST_RUN takes it: offsets into the data.
type xdpContext struct {
	Data, DataEnd, DataMeta                     uint32
	IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

const (
	metadataBytes = 8
	liveFrames    = 1 << 1 // BPF_F_TEST_XDP_LIVE_FRAMES
	liveBatch     = 64     // frames that are sent before the receiver runs: its queue holds 256

	generatorClockEvery = 1024 // CLOCK_EVERY of generator.bpf.c
)

// newGenerator makes a generator that sends out of a device.
func newGenerator(t testing.TB, from netlab.End, options generatorOptions) *generator {
	t.Helper()
	link, err := from.Namespace.Link(from.Device)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := loadGenerator()
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]uint32{
		"output_ifindex": uint32(link.Attrs().Index),
		"flow_bits":      uint32(bits.TrailingZeros32(max(options.flows, 1))),
	}
	if options.drop {
		constants["output_ifindex"] = 0
	}
	if options.random {
		constants["is_random"] = 1
	}
	if len(options.times) > 0 {
		constants["has_times"] = 1
		spec.Maps["times"].MaxEntries = uint32(len(options.times))
	}
	for name, value := range constants {
		if err := spec.Variables[name].Set(value); err != nil {
			t.Fatal(err)
		}
	}
	g := &generator{from: from, isRealtime: options.realtime}
	if g.cpu, err = lastCPU(); err != nil {
		t.Fatal(err)
	}
	if err := spec.LoadAndAssign(&g.objects, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.objects.Close(); err != nil {
			t.Error(err)
		}
	})
	if len(options.times) > 0 {
		memory, err := g.objects.Times.Memory()
		if err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 0, 8*len(options.times))
		for _, at := range options.times {
			buffer = binary.NativeEndian.AppendUint64(buffer, at)
		}
		if _, err := memory.WriteAt(buffer, 0); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// send sends a frame at least n times: an interruption makes it begin again. Frames for which
// there is no time are not sent.
func (g *generator) send(frame []byte, n int) error {
	return g.from.Namespace.Do(func() error {
		return onCPU(g.cpu, func() error {
			if g.isRealtime {
				return inRealtime(func() error { return g.run(frame, n) })
			}
			return g.run(frame, n)
		})
	})
}

func (g *generator) run(frame []byte, n int) error {
	in := append(make([]byte, metadataBytes), frame...)
	context := xdpContext{Data: metadataBytes, DataEnd: uint32(len(in))}
	_, err := g.objects.Generate.Run(&ebpf.RunOptions{
		Data: in, Context: context, Repeat: uint32(n), Flags: liveFrames, BatchSize: liveBatch,
	})
	return err
}

// restart makes the next frame the first again, with offset added to all times.
func (g *generator) restart(offset uint64) error {
	return errors.Join(g.objects.BaseNs.Set(offset), g.objects.Number.Set(uint64(0)))
}

// sent returns the frames that were sent so far, including those that the device dropped.
func (g *generator) sent() (n uint64, err error) {
	return n, g.objects.Sent.Get(&n)
}

// rate returns the frames a second since the last restart. It leaves out what the kernel takes to
// begin and to end.
func (g *generator) rate() (float64, error) {
	var number, first, last uint64
	err := errors.Join(g.objects.Number.Get(&number), g.objects.FirstNs.Get(&first), g.objects.LastNs.Get(&last))
	if err != nil {
		return 0, err
	}
	if last <= first {
		return 0, fmt.Errorf("%d frames are too few for a rate", number)
	}
	timed := (number - 1) / generatorClockEvery * generatorClockEvery
	return float64(timed) / time.Duration(last-first).Seconds(), nil
}

// lastCPU returns the last CPU that this process may run on: many machines handle most interrupts
// on the first.
func lastCPU() (int, error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return 0, fmt.Errorf("asking for the CPUs of a thread: %w", err)
	}
	last := 0
	for cpu := range 8 * int(unsafe.Sizeof(allowed)) {
		if allowed.IsSet(cpu) {
			last = cpu
		}
	}
	return last, nil
}

// onCPU calls f on a thread that stays on a CPU until f returns.
func onCPU(cpu int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("asking for the CPUs of a thread: %w", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("binding a thread to CPU %d: %w", cpu, err)
	}
	err := f()
	return errors.Join(err, unix.SchedSetaffinity(0, &before))
}

// inRealtime calls f on a thread that no ordinary one interrupts. The calling goroutine has to be
// locked to it.
func inRealtime(f func() error) error {
	// Where real-time scheduling is not allowed, sending is only less steady.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	err := f()
	return errors.Join(err, unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0))
}
