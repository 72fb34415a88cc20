// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem generator -output-suffix _test generator generator.bpf.c -- -O2 -mcpu=v3 -Wall -Wextra -Werror -Wpadded -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// generator sends frames out of a device from inside the kernel, at rates that no socket reaches and at times that it
// makes up.
type generator struct {
	objects generatorObjects
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
)

// newGenerator makes a generator for the device with that index in the namespace of the calling thread. With times each
// frame has the next of them, in nanoseconds, as metadata in front of it. flows, a power of two and at least 1, is the number of source
// addresses that take turns.
func newGenerator(t testing.TB, ifindex int, times []uint64, flows uint32) *generator {
	t.Helper()
	spec, err := loadGenerator()
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]uint32{"output_ifindex": uint32(ifindex), "flow_mask": flows - 1}
	if len(times) > 0 {
		constants["has_times"] = 1
		spec.Maps["times"].MaxEntries = uint32(len(times))
	}
	for name, value := range constants {
		if err := spec.Variables[name].Set(value); err != nil {
			t.Fatal(err)
		}
	}
	g := &generator{}
	if err := spec.LoadAndAssign(&g.objects, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.objects.Close(); err != nil {
			t.Error(err)
		}
	})
	if len(times) > 0 {
		memory, err := g.objects.Times.Memory()
		if err != nil {
			t.Fatal(err)
		}
		buffer := make([]byte, 0, 8*len(times))
		for _, at := range times {
			buffer = binary.NativeEndian.AppendUint64(buffer, at)
		}
		if _, err := memory.WriteAt(buffer, 0); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// send sends a frame n times from the namespace of the calling thread.
func (g *generator) send(frame []byte, n int) error {
	in := append(make([]byte, metadataBytes), frame...)
	context := xdpContext{Data: metadataBytes, DataEnd: uint32(len(in))}
	_, err := g.objects.Generate.Run(&ebpf.RunOptions{
		Data: in, Context: context, Repeat: uint32(n), Flags: liveFrames, BatchSize: liveBatch,
	})
	return err
}
