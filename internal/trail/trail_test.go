// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trail

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/appendfile"
)

// lateEvent has a delta of 5 ms, and a baseline of 1 ms with a standard deviation of 20 µs.
func lateEvent() *bpf.Event {
	return &bpf.Event{
		Flag: bpf.Flag{
			DeltaNs: 5_000_000, Samples: 101, MeanQ16: 1_000_000 << 16, M2: bpf.Uint128{Lo: 40_000_000_000}, LenBytes: 1514, Late: true,
		},
		Device:         "eth0",
		Time:           time.Date(2026, 11, 23, 17, 4, 5, 120_000_000, time.FixedZone("CET", 3600)),
		Source:         netip.MustParseAddrPort("192.0.2.1:40000"),
		Destination:    netip.MustParseAddrPort("198.51.100.7:443"),
		Protocol:       bpf.ProtocolTCP,
		ProtocolNumber: 6,
	}
}

func openTrail(t *testing.T, path string) *Trail {
	t.Helper()
	trail, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = trail.Close() })
	return trail
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestRecord(t *testing.T) {
	tests := []struct {
		description string
		edit        func(e *bpf.Event)
		want        string
	}{
		{
			"late, over IPv4, without a tag", func(*bpf.Event) {},
			"time=2026-11-23T16:04:05.120000000Z device=eth0 direction=late tscore=199.017 delta_ns=5000000 mean_ns=1000000.000 " +
				"stddev_ns=20000.000 n=101 source=192.0.2.1 source_port=40000 destination=198.51.100.7 destination_port=443 " +
				"protocol=tcp length=1514\n",
		},
		{
			"early, over IPv6, in a VLAN, of a protocol without a name",
			func(e *bpf.Event) {
				e.DeltaNs, e.Late, e.VLAN = 900_000, false, 12
				e.MeanQ16 = 1_000_000<<16 + 1<<15
				e.Source, e.Destination = netip.MustParseAddrPort("[2001:db8::1]:0"), netip.MustParseAddrPort("[2001:db8::2]:0")
				e.Protocol, e.ProtocolNumber = bpf.ProtocolOther, 47
			},
			"time=2026-11-23T16:04:05.120000000Z device=eth0 direction=early tscore=-4.975 delta_ns=900000 mean_ns=1000000.500 " +
				"stddev_ns=20000.000 n=101 source=2001:db8::1 source_port=0 destination=2001:db8::2 destination_port=0 " +
				"protocol=47 vlan=12 length=1514\n",
		},
		{
			"judged by its logarithm: 2²² ns, two octaves above the mean, with a deviation of half an octave",
			func(e *bpf.Event) {
				e.Domain, e.DeltaNs = bpf.DomainLog2, 1<<22
				e.Samples, e.MeanQ16, e.M2 = 101, 20<<36, bpf.Uint128{Lo: 100 << 38}
			},
			"time=2026-11-23T16:04:05.120000000Z device=eth0 direction=late tscore=3.980 delta_ns=4194304 mean_ns=1048576.000 " +
				"stddev_octaves=0.5 n=101 source=192.0.2.1 source_port=40000 destination=198.51.100.7 destination_port=443 " +
				"protocol=tcp length=1514\n",
		},
		{
			"a device whose name would break the line", func(e *bpf.Event) { e.Device = "a=\"b" },
			`time=2026-11-23T16:04:05.120000000Z device="a=\"b" direction=late tscore=199.017 delta_ns=5000000 mean_ns=1000000.000 ` +
				"stddev_ns=20000.000 n=101 source=192.0.2.1 source_port=40000 destination=198.51.100.7 destination_port=443 " +
				"protocol=tcp length=1514\n",
		},
	}
	for _, test := range tests {
		t.Run(test.description, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "trail")
			event := lateEvent()
			test.edit(event)
			if err := openTrail(t, path).Write(event); err != nil {
				t.Fatal(err)
			}
			if got := read(t, path); got != test.want {
				t.Errorf("got  %swant %s", got, test.want)
			}
		})
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "trail")
	if err := os.WriteFile(path, []byte("earlier\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := openTrail(t, path).Write(lateEvent()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); !strings.HasPrefix(got, "earlier\ntime=") {
		t.Errorf("the trail is %q: what was there is lost", got)
	}

	created := filepath.Join(dir, "created")
	openTrail(t, created)
	info, err := os.Stat(created)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("the trail was created with mode %o", mode)
	}

	for path, want := range map[string]string{
		filepath.Join(dir, "missing", "trail"): "no such file or directory",
		dir:                                    "is a directory",
	} {
		_, err := Open(path)
		if want := "open " + path + ": " + want; err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("got error %v, want %s", err, want)
		}
	}
}

// A pipe without a reader blocks neither the start nor the end of the exporter.
func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, syscall.ENXIO) {
		t.Fatalf("got %v without a reader, want ENXIO", err)
	}

	reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	trail := openTrail(t, path)
	hung := make(chan error, 1)
	go func() {
		for {
			if err := trail.Write(lateEvent()); err != nil {
				hung <- err
				return
			}
		}
	}()
	// A pipe holds 64 KiB, some 260 records; then the writer waits.
	for trail.Records() < 200 {
		runtime.Gosched()
	}
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-hung; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v after Close, want %v", err, os.ErrClosed)
	}
}

func TestFullDevice(t *testing.T) {
	trail := openTrail(t, "/dev/full")
	for lost := uint64(1); lost <= 3; lost++ {
		if err := trail.Write(lateEvent()); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("got %v, want ENOSPC", err)
		}
		if trail.WriteErrors() != lost || trail.Records() != 0 {
			t.Fatalf("%d errors and %d records after %d lost records", trail.WriteErrors(), trail.Records(), lost)
		}
	}
}

// A limit of the file size cuts a record short, as a full device does. It is completed later.
func TestShortWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trail")
	trail := openTrail(t, path)
	if err := trail.Write(lateEvent()); err != nil {
		t.Fatal(err)
	}
	whole := read(t, path)

	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	limit := syscall.Rlimit{Cur: uint64(len(whole)) + 10, Max: before.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	err := trail.Write(lateEvent())
	if err2 := trail.Write(lateEvent()); err2 == nil {
		t.Error("a second record fitted")
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		t.Fatal("no error for a record that is cut short")
	}
	if err := trail.Write(lateEvent()); err != nil {
		t.Fatal(err)
	}
	if got, want := read(t, path), whole+whole+whole; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if trail.Records() != 3 || trail.WriteErrors() != 1 {
		t.Errorf("%d records and %d errors, want 3 and 1", trail.Records(), trail.WriteErrors())
	}
}

func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path, rotated := filepath.Join(dir, "trail"), filepath.Join(dir, "trail.1")
	trail := openTrail(t, path)
	write := func() {
		t.Helper()
		if err := trail.Write(lateEvent()); err != nil {
			t.Fatal(err)
		}
	}
	lines := func(path string) int { return strings.Count(read(t, path), "\n") }

	write()
	if err := os.Rename(path, rotated); err != nil {
		t.Fatal(err)
	}
	write()
	if err := trail.Reopen(); err != nil {
		t.Fatal(err)
	}
	write()
	if lines(rotated) != 2 || lines(path) != 1 {
		t.Errorf("%d records before and %d after the rotation, want 2 and 1", lines(rotated), lines(path))
	}

	// Without its directory the trail cannot be reopened, and continues in the old file.
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := trail.Reopen(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Reopen returned %v", err)
	}
	write()
	if n := lines(filepath.Join(dir+".moved", "trail")); n != 2 {
		t.Errorf("%d records in the file that could not be reopened, want 2", n)
	}
	if trail.Records() != 4 || trail.WriteErrors() != 0 {
		t.Errorf("%d records and %d errors, want 4 and 0", trail.Records(), trail.WriteErrors())
	}
}

func TestClose(t *testing.T) {
	trail := openTrail(t, filepath.Join(t.TempDir(), "trail"))
	if err := trail.Close(); err != nil {
		t.Fatal(err)
	}
	if err := trail.Write(lateEvent()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("writing after Close returned %v", err)
	}
	if trail.WriteErrors() != 1 {
		t.Error("a record after Close is not counted as lost")
	}
}

func TestStandardOutput(t *testing.T) {
	stdout := os.Stdout
	defer func() { os.Stdout = stdout }()
	path := filepath.Join(t.TempDir(), "stdout")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	os.Stdout = file

	trail := openTrail(t, appendfile.Stdout)
	if err := errors.Join(trail.Write(lateEvent()), trail.Reopen(), trail.Write(lateEvent()), trail.Close()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(read(t, path), "\n"); n != 2 {
		t.Errorf("%d records on standard output, want 2", n)
	}
	if _, err := file.WriteString("\n"); err != nil {
		t.Errorf("standard output was closed: %v", err)
	}
}

// A rotation while several goroutines write tears and loses no line.
func TestConcurrentWrites(t *testing.T) {
	const writers, each = 4, 500
	dir := t.TempDir()
	path := filepath.Join(dir, "trail")
	trail := openTrail(t, path)
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for range each {
				if err := trail.Write(lateEvent()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, name := range []string{"trail.1", "trail.2", "trail.3"} {
		if err := errors.Join(os.Rename(path, filepath.Join(dir, name)), trail.Reopen()); err != nil {
			t.Error(err)
		}
	}
	group.Wait()
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	var lines int
	for _, file := range files {
		for line := range strings.Lines(read(t, file)) {
			lines++
			if !strings.HasPrefix(line, "time=") || !strings.HasSuffix(line, " length=1514\n") {
				t.Errorf("%s has the line %q", file, line)
			}
		}
	}
	if lines != writers*each || trail.Records() != writers*each {
		t.Errorf("%d lines and %d records, want %d", lines, trail.Records(), writers*each)
	}
}
