// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/baselinefile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/excess"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

func someLearnt() bpf.Learnt {
	return bpf.Learnt{State: timing.State{N: 8192, MeanQ16: 1e6 << 16, M2: timing.Uint128{Lo: 1e12}}}
}

// The first run learns, keeps access to the directory of the file, and saves at its end. The
// second run reads the file, needs no access to it, and saves nothing.
func TestBaselineFile(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "baseline.json")
	fake := newFakeAudit()
	var config bpf.Config
	open := func(_ context.Context, c bpf.Config, _ *slog.Logger) (audit, error) {
		config = c
		return fake, nil
	}
	var needs privilege.Needs
	drop := func(n privilege.Needs, _ *slog.Logger) (privilege.Held, error) {
		needs = n
		return privilege.Held{}, nil
	}
	t.Setenv("XDP_AUDIT_BASELINE_FILE", path)
	runOnce := func() string {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		var log bytes.Buffer
		args := []string{"--audit.device=eth0", "--web.listen-address=" + freeAddress(t)}
		if err := run(ctx, args, io.Discard, &log, open, drop); err != nil {
			t.Fatal(err)
		}
		fake.closed = make(chan struct{})
		return log.String()
	}

	log := runOnce()
	if _, err := os.Stat(path); err == nil || !strings.Contains(log, "no device has enough samples") {
		t.Errorf("without a device that has learnt: %v, the log says\n%s", err, log)
	}
	if config.Baseline != bpf.BaselineDevice || config.Frozen != nil || !reflect.DeepEqual(needs.Manage, []string{folder}) {
		t.Errorf("to learn: baseline of the %s, %d devices, needs %+v", config.Baseline, len(config.Frozen), needs)
	}

	fake.learnt = map[string]bpf.Learnt{"eth0": someLearnt()}
	if log := runOnce(); !strings.Contains(log, `msg="Baseline saved" path=`+path+" devices=eth0") {
		t.Errorf("the log does not say that the baseline was saved:\n%s", log)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	fake.learnt = map[string]bpf.Learnt{"eth1": someLearnt()}
	runOnce()
	if !reflect.DeepEqual(config.Frozen, map[string]bpf.Learnt{"eth0": someLearnt()}) || time.Since(config.FrozenSince) > time.Minute {
		t.Errorf("with a file: got %d devices of %v", len(config.Frozen), config.FrozenSince)
	}
	if !reflect.DeepEqual(needs, privilege.Needs{}) {
		t.Errorf("with a file: needs %+v", needs)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file that was there has changed: %v", err)
	}
}

func TestBaselineFileIsRefused(t *testing.T) {
	folder := t.TempDir()
	damaged, few, other := filepath.Join(folder, "damaged"), filepath.Join(folder, "few"), filepath.Join(folder, "other")
	if err := os.WriteFile(damaged, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(path string, threshold float64, l bpf.Learnt) {
		t.Helper()
		config := bpf.DefaultConfig()
		config.Threshold = threshold
		f := &baselinefile.File{Terms: terms(config), Saved: time.Now(), Devices: map[string]bpf.Learnt{"eth0": l}}
		if err := baselinefile.Write(path, f); err != nil {
			t.Fatal(err)
		}
	}
	short := someLearnt()
	short.N = 99
	write(few, 4, short)
	write(other, 5, someLearnt())
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"a damaged file", []string{"--audit.baseline-file=" + damaged}, damaged + " cannot be used: it is cut short: restore it, or move it away"},
		{"another threshold", []string{"--audit.baseline-file=" + other}, "--audit.threshold is 4 and was 5"},
		{"too few samples", []string{"--audit.baseline-file=" + few}, few + ": saved baseline of device eth0 has 99 samples, too few"},
		{"baselines of flows", []string{"--audit.baseline-file=" + other, "--audit.baseline=flow"}, "requires --audit.baseline=device, not --audit.baseline=flow"},
		{"no directory", []string{"--audit.baseline-file=" + folder + "/absent/file"}, folder + "/absent is not a directory"},
		{"a shared directory", []string{"--audit.baseline-file=/etc/absent"}, "/etc is shared by the whole system"},
		{"a directory", []string{"--audit.baseline-file=" + folder}, folder + " is not a regular file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := run(context.Background(), append(test.args, "--audit.device=eth0"), io.Discard, io.Discard, mustNotOpen(t), dropNothing)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "--audit.baseline-file (XDP_AUDIT_BASELINE_FILE): ") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// A file that can no longer be written at the end is an error.
func TestSavingFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gone", "baseline.json")
	s := &baselineSaver{path: path, terms: baselinefile.Terms{}, learnt: func() map[string]bpf.Learnt {
		return map[string]bpf.Learnt{"eth0": someLearnt()}
	}, pasts: collector.NewExcess(nil).Pasts, logger: slog.New(slog.DiscardHandler), devices: map[string]*saveState{}}
	if err := s.finish(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), path[:len(path)-len("baseline.json")]) {
		t.Errorf("got %v", err)
	}
}

// The file has the past of a device's flags, also of a device that is gone, and the next exporter
// continues it.
func TestThePastOfFlagsIsSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "baseline.json")
	past := collector.FlagsPast{Minutes: 400, Judged: 4e5, Flags: 40, Dispersion: make([]excess.Blocks, 4)}
	learnt, pasts := map[string]bpf.Learnt{"eth0": someLearnt(), "eth1": someLearnt()}, map[string]collector.FlagsPast{"eth0": past}
	o := &options{audit: bpf.DefaultConfig(), baselineFile: path}
	o.audit.Devices = []string{"eth0", "eth1"}
	s := o.newBaselineSaver(&fakeAudit{}, collector.NewExcess(nil), slog.New(slog.DiscardHandler))
	s.learnt = func() map[string]bpf.Learnt { return learnt }
	s.pasts = func() map[string]collector.FlagsPast { return pasts }
	s.update()
	learnt, pasts = nil, nil
	if err := s.finish(); err != nil {
		t.Fatal(err)
	}
	if err := o.applyBaselineFile(&o.audit); err != nil {
		t.Fatal(err)
	}
	want := map[string]collector.FlagsPast{"eth0": past}
	if !reflect.DeepEqual(o.savedPasts, want) || len(o.audit.Frozen) != 2 {
		t.Fatalf("the next exporter has the pasts %+v of %d devices, want %+v of 2", o.savedPasts, len(o.audit.Frozen), want)
	}
	next := collector.NewExcess(o.savedPasts)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := next.Run(ctx, pastSource{}); err != nil || !reflect.DeepEqual(next.Pasts(), want) {
		t.Errorf("it continues %+v, %v", next.Pasts(), err)
	}
}

// pastSource has the counters of a device without packets.
type pastSource struct{ collector.Source }

func (pastSource) Counters() []bpf.Counters { return []bpf.Counters{{Device: "eth0"}} }

// Of thousands of devices that appear and vanish, the file has the present ones and, up to the
// maximum number of devices, those that vanished last. It can be read.
func TestTheFileDoesNotGrowWithoutEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "baseline.json")
	learnt := someLearnt()
	now := map[string]bpf.Learnt{}
	o := &options{audit: bpf.DefaultConfig(), baselineFile: path}
	s := o.newBaselineSaver(&fakeAudit{}, collector.NewExcess(nil), slog.New(slog.DiscardHandler))
	s.learnt = func() map[string]bpf.Learnt { return now }
	for i := range 5000 {
		now = map[string]bpf.Learnt{"eth0": learnt, fmt.Sprintf("veth%d", i): learnt}
		s.update()
		if !s.isUnsaved {
			t.Fatalf("device %d is not to be saved", i)
		}
		s.isUnsaved = false
		if s.update(); s.isUnsaved {
			t.Fatalf("device %d is to be saved again", i)
		}
	}
	if err := s.finish(); err != nil {
		t.Fatal(err)
	}
	file, err := baselinefile.Read(path, s.terms)
	if err != nil {
		t.Fatal(err)
	}
	var names, want []string
	for i := range 15 {
		want = append(want, fmt.Sprintf("veth%d", 4985+i))
	}
	if names = slices.Sorted(maps.Keys(file.Devices)); !slices.Equal(names, append([]string{"eth0"}, want...)) {
		t.Errorf("the devices are %v", names)
	}

	// Present devices are all kept, even above the maximum.
	for i := range 20 {
		now[fmt.Sprintf("eth%d", i)] = learnt
	}
	if s.update(); len(s.devices) != len(now) {
		t.Errorf("%d devices are known, and %d there", len(s.devices), len(now))
	}
}
