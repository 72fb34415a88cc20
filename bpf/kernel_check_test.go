// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKernelHasCompareAndSwap(t *testing.T) {
	needBPF(t)
	if err := probeCompareAndSwap(); err != nil {
		t.Error(err)
	}
}

// If the instruction were an addition, every kernel would accept the probe.
func TestKernelsWhoseMapsNeedPrivilege(t *testing.T) {
	for release, want := range map[string]bool{
		"5.15.0-91-generic": true, "5.18.19": true, "5.19.0": false, "6.1.0-46-cloud-amd64": false, "4.19": true, "in use": false,
	} {
		if got := needsPrivilege(release); got != want {
			t.Errorf("%s: got %t, want %t", release, got, want)
		}
	}
}

func TestProbeIsEncodedAsCompareAndSwap(t *testing.T) {
	var encoded bytes.Buffer
	if _, err := compareAndSwap().Marshal(&encoded, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	// BPF_STX | BPF_ATOMIC | BPF_DW from r1 to r10 − 8, BPF_CMPXCHG.
	if want := []byte{0xdb, 0x1a, 0xf8, 0xff, 0xf1, 0, 0, 0}; !bytes.Equal(encoded.Bytes(), want) {
		t.Errorf("got %x, want %x", encoded.Bytes(), want)
	}
}

// The error names the kernel without compare-and-swap and the remedy. Other errors are not
// explained like this.
func TestKernelsWithoutCompareAndSwap(t *testing.T) {
	const want = "the kernel 5.10.0-46-cloud-amd64 has no compare-and-swap in BPF programs: " +
		"use Linux 5.12 or later, on arm64 5.18 or later: load program: invalid argument"
	err := explainProbe(fmt.Errorf("load program: %w", unix.EINVAL), "5.10.0-46-cloud-amd64")
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	for _, other := range []error{unix.EPERM, unix.ENOMEM} {
		if err := explainProbe(other, "5.10.0-46-cloud-amd64"); err != nil {
			t.Errorf("%v is reported as a kernel that is too old: %v", other, err)
		}
	}
}
