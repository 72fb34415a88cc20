// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/appendfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

const (
	leakFlag = "leak.config.file"
	rawFlag  = "leak.raw-file"

	// readingNs is the longest time between the end of a request and its reading.
	readingNs = 1e9
	// advanceInterval is the time after which the last requests of a burst are judged.
	advanceInterval = 100 * time.Millisecond
)

// readLeak reads the configuration of leak assessments, and checks the flags of raw files.
func (o *options) readLeak() error {
	if o.leakFile == "" {
		if o.rawFile != "" {
			return flagError(rawFlag, fmt.Errorf("%s needs assessments: give --%s as well", o.rawFile, leakFlag))
		}
		return nil
	}
	if strings.Contains(filepath.Dir(o.rawFile), assessment.RawName) {
		return flagError(rawFlag, fmt.Errorf("%s has %s in the name of a directory: put it into the name of the file", o.rawFile, assessment.RawName))
	}
	if o.rawFile == appendfile.Stdout && o.trailFile == appendfile.Stdout {
		return flagError(rawFlag, errors.New("standard output is that of --trail.file: use a file for one of them"))
	}
	file, err := o.readAssessments()
	if err != nil {
		return err
	}
	o.leak = file
	return nil
}

// readAssessments returns the content of the configuration file, of which the exporter can audit
// the devices.
func (o *options) readAssessments() (*assessmentfile.File, error) {
	file, err := assessmentfile.Read(o.leakFile)
	if err != nil {
		return nil, flagError(leakFlag, err)
	}
	present, err := netdev.List()
	if err != nil {
		present = nil // names of the flags alone
	}
	for i := range file.Assessments {
		if a := &file.Assessments[i]; a.Device != "" && !audits(&o.audit, a.Device, present) {
			return nil, flagError(leakFlag, fmt.Errorf(
				"%s: assessment %s: device %s is not audited: use the kernel's name of a device of --audit.device, or remove the key", o.leakFile, a.Name, a.Device))
		}
	}
	return file, nil
}

// audits reports whether a device with this name would be audited.
func audits(config *bpf.Config, name string, present []netdev.Device) bool {
	for _, given := range config.Devices {
		device, isHere := netdev.Find(given, present)
		if given == name || isHere && device.Name == name {
			return true
		}
	}
	return slices.ContainsFunc(config.Globs, func(glob string) bool {
		return len(netdev.Match(glob, []netdev.Device{{Name: name}})) > 0
	})
}

// names returns the names of the assessments.
func names(file *assessmentfile.File) []string {
	names := []string{}
	for i := range file.Assessments {
		names = append(names, file.Assessments[i].Name)
	}
	return names
}

// rawFiles returns the paths of the raw files of the assessments.
func (o *options) rawFiles() (paths []string) {
	if o.rawFile == "" || o.rawFile == appendfile.Stdout || o.leak == nil {
		return nil
	}
	for _, name := range names(o.leak) {
		paths = append(paths, strings.ReplaceAll(o.rawFile, assessment.RawName, name))
	}
	return paths
}

// checkRaw returns the error with which the raw files cannot be opened, and creates none.
func (o *options) checkRaw() error {
	if err := assessment.CheckRawPath(o.rawFile, len(names(o.leak))); err != nil {
		return flagError(rawFlag, err)
	}
	for _, path := range o.rawFiles() {
		if err := appendfile.Check(path); err != nil {
			return flagError(rawFlag, err)
		}
	}
	return nil
}

// leakNeeds adds what reloads and rotations need.
func (o *options) leakNeeds(needs *privilege.Needs) {
	if o.leakFile == "" {
		return
	}
	needs.Read = append(needs.Read, o.leakFile)
	if o.rawFile == "" || o.rawFile == appendfile.Stdout {
		return
	}
	// A reload may add assessments, whose files do not exist yet.
	if directory := filepath.Dir(o.rawFile); !privilege.IsShared(directory) {
		needs.Create = append(needs.Create, directory)
		return
	}
	needs.Append = append(needs.Append, o.rawFiles()...)
}

// leakAssessments are the leak assessments of an exporter, whose configuration may change.
type leakAssessments struct {
	options *options
	logger  *slog.Logger
	set     *assessment.Set
	raw     *assessment.Raw // nil for none

	mu       sync.Mutex // guards what follows
	measures measurer   // nil before the start
	file     *assessmentfile.File
	// ringFull has what the kernel had counted of an assessment when its judge began. The kernel
	// counts on if only the judge begins again.
	ringFull map[string]uint64
}

// measurer measures response times.
type measurer interface {
	SetAssessments([]bpf.Assessment) error
	ReadExchanges(ctx context.Context, handle func([]bpf.Exchange)) error
	ExchangeCounts() (counts []bpf.ExchangeCounts, lost uint64)
}

// openLeak opens the raw files, if there are to be any, and returns nil without a configuration
// file.
func (o *options) openLeak(logger *slog.Logger) (*leakAssessments, error) {
	if o.leak == nil {
		return nil, nil
	}
	l := &leakAssessments{options: o, logger: logger, ringFull: map[string]uint64{}}
	if o.rawFile == "" {
		l.set = assessment.New(nil)
		return l, nil
	}
	l.raw = assessment.NewRaw(o.rawFile, o.rawFormat)
	l.set = assessment.New(l.raw)
	if err := l.raw.Reload(names(o.leak)); err != nil {
		return nil, flagError(rawFlag, err)
	}
	return l, nil
}

// begin begins the assessments of the flags.
func (l *leakAssessments) begin(measures measurer) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.measures = measures
	if err := l.apply(l.options.leak); err != nil {
		return flagError(leakFlag, fmt.Errorf("%s: %w", l.options.leakFile, err))
	}
	return nil
}

// reload reads the configuration again. What did not change continues. After an error everything
// continues.
func (l *leakAssessments) reload() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	file, err := l.options.readAssessments()
	if err == nil && l.raw != nil {
		if err = l.raw.Reload(names(file)); err != nil {
			err = flagError(rawFlag, err)
		}
	}
	if err == nil {
		err = l.apply(file)
	}
	if err == nil {
		return nil
	}
	if l.raw != nil {
		err = errors.Join(err, l.raw.Reload(names(l.file)))
	}
	l.logger.Error("Cannot reload the configuration of leak assessments, the one before stays in use", "err", OneLine(err))
	return err
}

// apply replaces the configuration, and logs what has changed.
func (l *leakAssessments) apply(file *assessmentfile.File) error {
	changes := assessmentfile.Compare(l.file, file)
	if err := l.set.Reload(file, l.measures.SetAssessments, monotonicNs); err != nil {
		return err
	}
	before := l.ringFull
	l.ringFull = l.kernelRingFull()
	for _, name := range changes.Kept {
		l.ringFull[name] = before[name]
	}
	l.file = file
	l.logger.Info("Leak assessments are configured", "path", l.options.leakFile,
		"added", changes.Added, "removed", changes.Removed, "changed", len(changes.Changed), "kept", changes.Kept)
	for _, change := range changes.Changed {
		l.logger.Info("Leak assessment begins again", "assessment", change.Name, "because", strings.Join(change.What, "; "))
	}
	return nil
}

// kernelRingFull returns the requests of each assessment that could not be recorded.
func (l *leakAssessments) kernelRingFull() map[string]uint64 {
	ringFull := map[string]uint64{}
	counts, _ := l.measures.ExchangeCounts()
	for i := range counts {
		ringFull[counts[i].Assessment] = counts[i].Excluded[bpf.ExclusionRingFull]
	}
	return ringFull
}

// reopen opens the raw files again.
func (l *leakAssessments) reopen() error {
	if l == nil || l.raw == nil {
		return nil
	}
	return l.raw.Reopen()
}

// run gives requests to their judges until the context ends.
func (l *leakAssessments) run(ctx context.Context) error {
	if l == nil {
		return nil
	}
	var isLosing bool
	var mu sync.Mutex
	record := func(feed func() error) {
		err := feed()
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err != nil && !isLosing:
			l.logger.Error("Raw response times are lost", "err", OneLine(err))
		case err == nil && isLosing:
			l.logger.Info("Raw response times are written again", "lost", l.raw.Counts().Lost())
		}
		isLosing = err != nil
	}
	var advancing sync.WaitGroup
	advancing.Go(func() {
		ticker := time.NewTicker(advanceInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				now := monotonicNs()
				record(func() error { return l.set.Advance(now - min(now, readingNs)) })
			}
		}
	})
	err := l.measures.ReadExchanges(ctx, func(batch []bpf.Exchange) {
		record(func() error { return l.set.Add(batch) })
	})
	advancing.Wait()
	record(l.set.Flush)
	return err
}

// close closes the raw files.
func (l *leakAssessments) close() error {
	if l == nil || l.raw == nil {
		return nil
	}
	return l.raw.Close()
}

// Snapshot returns the states of the assessments. What the judge got is complete with what the
// kernel could not record.
func (l *leakAssessments) Snapshot() []collector.LeakStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	states := l.set.Snapshot()
	ringFull := l.kernelRingFull()
	for i := range states {
		s := &states[i]
		lost := ringFull[s.Assessment.Name]
		lost -= min(lost, l.ringFull[s.Assessment.Name])
		s.Received += lost
		s.Excluded[bpf.ExclusionRingFull] += lost
	}
	return states
}

// monotonicNs returns the time of the clock of requests.
func monotonicNs() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // the clock exists
	return uint64(now.Nano())
}
