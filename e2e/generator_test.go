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
// and at injected times. The other end of the pair must already have a native XDP program.
//
// All frames leave on one CPU, and after each batch the receiver handles them on that CPU. So
// they stay in order, and the queue does not overflow.
type generator struct {
	from       netlab.End
	objects    generatorObjects
	cpu        int
	isRealtime bool
}

// generatorOptions say how a generator varies the frame that it sends.
type generatorOptions struct {
	flows    uint32   // source addresses in turn: a power of two ≤ 2²⁴; ≤ 1 for the frame's own
	random   bool     // random addresses and ports for each frame
	times    []uint64 // ns, as metadata before the frame: each for one frame of every flow
	drop     bool     // make the frames, but do not send them
	realtime bool     // no other thread gets the CPU, as during an interrupt
}

// xdpContext is struct xdp_md of the kernel as BPF_PROG_TEST_RUN takes it, with offsets into the
// data.
type xdpContext struct {
	Data, DataEnd, DataMeta                     uint32
	IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

const (
	metadataBytes = 8
	liveFrames    = 1 << 1 // BPF_F_TEST_XDP_LIVE_FRAMES
	liveBatch     = 64     // frames before the receiver runs; its queue holds 256

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

// send sends a frame at least n times: an interrupted run starts again. Frames without an
// injected time are not sent.
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

// restart starts the times again from the first, with offset added to all of them.
func (g *generator) restart(offset uint64) error {
	return errors.Join(g.objects.BaseNs.Set(offset), g.objects.Number.Set(uint64(0)))
}

// sent returns the number of frames sent so far, including those that the device dropped.
func (g *generator) sent() (n uint64, err error) {
	return n, g.objects.Sent.Get(&n)
}

// rate returns the frames per second since the last restart, without the time that the kernel
// takes to start and to stop.
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

// lastCPU returns the last CPU that this process may use. Many machines handle most interrupts
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

// onCPU calls f on a thread that is bound to a CPU.
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

// inRealtime calls f with real-time priority. The calling goroutine must be locked to its
// thread.
func inRealtime(f func() error) error {
	// Without permission for real-time scheduling, sending is only less steady.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	err := f()
	return errors.Join(err, unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0))
}
