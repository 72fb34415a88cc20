// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// needBPF skips a test that loads programs where the process may not; REQUIRE_BPF=1 turns that into
// a failure.
func needBPF(t testing.TB) {
	t.Helper()
	if err := checkCapabilities(); err != nil {
		if os.Getenv("REQUIRE_BPF") == "1" {
			t.Fatalf("REQUIRE_BPF=1, but %v", err)
		}
		t.Skip(err)
	}
}

// testKeys is a fixed source of hash keys.
func testKeys() *rand.ChaCha8 { return rand.NewChaCha8([32]byte{1}) }

// testConfig is the default configuration for one device that need not exist, on the clock that
// tests inject.
func testConfig() Config {
	config := DefaultConfig()
	config.Devices = []string{"test0"}
	config.Clock = ClockMetadata
	return config
}

// loadTest loads an audit with one program for each device of the configuration, attached to
// nothing.
func loadTest(t testing.TB, config Config) *Audit {
	t.Helper()
	return loadTestOn(t, config, netdev.LinkEthernet)
}

// loadTestOn is loadTest for devices with a link layer.
func loadTestOn(t testing.TB, config Config, link netdev.LinkLayer) *Audit {
	t.Helper()
	needBPF(t)
	audit, err := load(config, config.Devices, testKeys(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := audit.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, d := range audit.devices.listed {
		d.linkLayer = link
		err := audit.devices.load(d, 0)
		var refused *ebpf.VerifierError
		if errors.As(err, &refused) {
			t.Fatalf("the verifier's last words: %-30v", refused)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return audit
}

// program returns the program of a listed device.
func (a *Audit) program(i int) *ebpf.Program { return a.devices.listed[i].program.Program }

const metadataBytes = 8

// xdpContext is the kernel's struct xdp_md as BPF_PROG_TEST_RUN takes it: offsets into the data.
type xdpContext struct {
	Data, DataEnd, DataMeta                     uint32
	IngressIfindex, RxQueueIndex, EgressIfindex uint32
}

// runToTheEnd runs a program on a thread that no signal interrupts. After a signal, such as those
// by which Go preempts a thread on a busy machine, the kernel ends a run of many repetitions, and
// the library begins all of them again.
func runToTheEnd(program *ebpf.Program, options *ebpf.RunOptions) (verdict uint32, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = math.MaxUint64
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)) }()
	return program.Run(options)
}

// run sends a frame through the program with atNs on the metadata clock, repeat times, and fails
// the test unless it passes unchanged.
func run(t testing.TB, program *ebpf.Program, frame []byte, atNs uint64, repeat int) {
	t.Helper()
	in := binary.NativeEndian.AppendUint64(nil, atNs)
	runRaw(t, program, append(in, frame...), metadataBytes, repeat)
}

// runRaw is run for a frame with `metadata` bytes of metadata in front.
func runRaw(t testing.TB, program *ebpf.Program, in []byte, metadata, repeat int) {
	t.Helper()
	out := make([]byte, len(in)+64)
	options := ebpf.RunOptions{Data: in, DataOut: out, Repeat: uint32(repeat)}
	if metadata > 0 {
		context := xdpContext{Data: uint32(metadata), DataEnd: uint32(len(in))}
		contextOut := context
		encoded, err := binary.Append(nil, binary.NativeEndian, context)
		if err != nil {
			t.Fatal(err)
		}
		options.Context, options.ContextOut = encoded, &contextOut
	}
	verdict, err := runToTheEnd(program, &options)
	if err != nil {
		t.Fatal(err)
	}
	if verdict != xdpPass {
		t.Fatalf("verdict %d of a frame of %d bytes, want XDP_PASS", verdict, len(in)-metadata)
	}
	if !bytes.Equal(options.DataOut, in) {
		t.Fatalf("frame was changed:\n got %x\nwant %x", options.DataOut, in)
	}
}

const xdpPass = 2

func TestProgramIsBelowTheLimitOfTheVerifier(t *testing.T) {
	for _, v := range append(variants, struct {
		domain Domain
		scope  Scope
	}{DomainLinear, BaselineFlow}) {
		for _, with := range []struct{ watches, connections uint32 }{{0, 0}, {64, 0}, {0, 64}, {64, 64}} {
			config := testConfig()
			config.Domain, config.Baseline, config.Watches, config.ExchangeConnections = v.domain, v.scope, with.watches, with.connections
			audit := loadTest(t, config)
			info, err := audit.program(0).Info()
			if err != nil {
				t.Fatal(err)
			}
			instructions, ok := info.VerifiedInstructions()
			if !ok {
				t.Fatal("the kernel does not tell the verified instructions")
			}
			translated, _ := info.TranslatedSize()
			compiled, _ := info.JitedSize()
			name := fmt.Sprintf("%s, by %s, %d watches, %d connections", v.domain, v.scope, with.watches, with.connections)
			t.Logf("%s: verified instructions %d, %d after it, %d bytes compiled", name, instructions, translated/8, compiled)
			if instructions == 0 || instructions >= 200_000 {
				t.Errorf("%s: verified instructions: got %d, want 1 to 199,999", name, instructions)
			}
		}
	}
}

// A driver may call itself busy for reasons of its own: only a program that is on the device is
// named.
func TestABusyDeviceIsNotTaken(t *testing.T) {
	config := testConfig()
	d := loadTest(t, config).devices.listed[0]
	for _, refusal := range []error{unix.EBUSY, unix.EEXIST} {
		for _, mode := range []Mode{ModeDriver, ModeGeneric} {
			// The device has no index, and so no program.
			err := explainRefusal(d, d.program, mode, fmt.Errorf("create link: %w", refusal), "")
			if text := err.Error(); !errors.Is(err, refusal) || strings.Contains(text, "holds") || strings.Contains(text, "MTU") {
				t.Errorf("%v in mode %s is said to be: %s", refusal, mode, text)
			}
		}
	}
}

// A device that is gone by the time at which its driver is asked is not refused for its MTU.
func TestAVanishedDeviceIsNotBlamed(t *testing.T) {
	gone := &device{name: "gone0", ifindex: 1 << 30}
	for _, mode := range []Mode{ModeDriver, ModeGeneric, ModeHW} {
		err := explainRefusal(gone, nil, mode, fmt.Errorf("create link: %w", unix.EINVAL), "")
		if text := err.Error(); !errors.Is(err, unix.EINVAL) || !strings.Contains(text, "gone0 vanished") ||
			!strings.Contains(text, "--audit.follow") || strings.Contains(text, "MTU") {
			t.Errorf("mode %s: %s", mode, text)
		}
	}
}

// A refusal begins with the words of the driver, if it has any. Only the kernel's own words say
// that a driver has no native XDP. Mode auto takes generic mode only if nothing can be changed.
func TestRefusalsBeginWithTheWordsOfTheDriver(t *testing.T) {
	lo := &device{name: "lo", ifindex: 1, driver: "virtio_net"}
	const atOnce, says = "has no native XDP", "--audit.mode=skb"
	for _, test := range []struct {
		description, words string
		errno              unix.Errno
		want               []string
		isNative           bool // the driver has native XDP
		namesCure          bool
	}{
		{"no native XDP", noNative, unix.EOPNOTSUPP, []string{"device lo (driver virtio_net) " + atOnce, says}, false, false},
		{"guest offloads", "Can't set XDP while host is implementing GRO_HW/CSUM, disable GRO_HW/CSUM first", unix.EOPNOTSUPP, []string{"device lo", says}, true, true},
		{"a program on a port", "Slave has XDP program loaded, please unload before enslaving", unix.EOPNOTSUPP, []string{"device lo", says}, true, true},
		{"a port without XDP", "Slave device does not support XDP", unix.EOPNOTSUPP, []string{"device lo", says}, true, false},
		{"the peer's MTU", "Peer MTU is too large to set XDP", unix.ERANGE, []string{"device lo", says}, true, true},
		{"queues", "XDP expects number of rx queues not less than peer tx queues", unix.ENOSPC, []string{"device lo", says}, true, true},
		{"LRO", "XDP: not support LRO", unix.EOPNOTSUPP, []string{"device lo", says}, true, true},
		{"no words", "", unix.EOPNOTSUPP, []string{"does not say why", "dmesg", says}, true, false},
		{"an upper device", "Cannot attach when an upper device already has a program", unix.EEXIST, []string{"upper devices", "before"}, true, true},
	} {
		t.Run(test.description, func(t *testing.T) {
			var cause error = test.errno
			if test.words != "" {
				cause = &saidError{test.errno, test.words}
			}
			err := explainRefusal(lo, nil, ModeDriver, fmt.Errorf("create link: %w", cause), "")
			text := err.Error()
			if !errors.Is(err, test.errno) || strings.Contains(text, atOnce) == test.isNative {
				t.Errorf("got %s", text)
			}
			if test.isNative && !strings.HasPrefix(text, test.words) || strings.Contains(text, "\n") {
				t.Errorf("got %q, want one line that begins with %q", text, test.words)
			}
			for _, part := range test.want {
				if !strings.Contains(text, part) {
					t.Errorf("%q is missing: %s", part, text)
				}
			}

			kernel := newFakeKernel()
			kernel.devices["a"] = 1
			kernel.refusedModes[ModeDriver], kernel.refusal = true, err
			config := setConfig([]string{"a"}, nil)
			config.Mode = ModeAuto
			s := newTestSet(config, kernel)
			s.resync(t.Context(), kernel.list(), true)
			want := "a 0 skb"
			if test.namesCure {
				want = "a 0 waiting"
			}
			if got := s.state(); got != want {
				t.Errorf("mode auto: got %q, want %q", got, want)
			}
		})
	}
}
