// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
)

const (
	// readingNs is the longest time between the end of a request and its reading.
	readingNs = 1e9
	// advanceInterval is the time after which the last requests of a burst are judged.
	advanceInterval = 100 * time.Millisecond
	// lookInterval is the least time after which the kernel's table is looked at again, and
	// lookShare the greatest share of a CPU that it takes.
	lookInterval = 500 * time.Millisecond
	lookShare    = 0.05
)

// leakAssessments are the leak assessments of an exporter, whose configuration may change.
type leakAssessments struct {
	options *options
	logger  *slog.Logger
	set     *assessment.Set
	raw     *assessment.Raw // nil for none

	measures measurer // nil before the start

	reloading sync.Mutex // held during a reload; guards file
	file      *assessmentfile.File

	// mu is held for short times only, so that a reload that reads a slow disk delays no scrape.
	mu         sync.Mutex // guards what follows
	isReloaded bool       // the last reload has succeeded
	reloadedAt time.Time  // of the last that has
	// excluded has what the kernel had counted of an assessment when its judge began. The kernel
	// counts on if only the judge begins again.
	excluded map[string][bpf.NumExclusions]uint64
}

// measurer measures response times.
type measurer interface {
	SetAssessments([]bpf.Assessment) error
	ReadExchanges(ctx context.Context, handle func([]bpf.Exchange)) error
	ExchangesExcluded() map[string][bpf.NumExclusions]uint64
	OldestOutstanding(sinceNs uint64) uint64
}

// openLeak opens the raw files, if there are to be any, and returns nil without a configuration
// file.
func (o *options) openLeak(logger *slog.Logger) (*leakAssessments, error) {
	if o.leak == nil {
		return nil, nil
	}
	l := &leakAssessments{options: o, logger: logger, excluded: map[string][bpf.NumExclusions]uint64{}}
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
	l.reloading.Lock()
	defer l.reloading.Unlock()
	l.measures = measures
	if err := l.apply(l.options.leak, l.logger); err != nil {
		return flagError(leakFlag, fmt.Errorf("%s: %w", l.options.leakFile, err))
	}
	return nil
}

// reload reads the configuration again. What did not change continues. After an error everything
// continues.
func (l *leakAssessments) reload(logger *slog.Logger) error {
	if l == nil {
		return nil
	}
	l.reloading.Lock()
	defer l.reloading.Unlock()
	err := l.replace(logger)
	if err != nil {
		l.mu.Lock()
		l.isReloaded = false
		l.mu.Unlock()
		logger.Error("Cannot reload the configuration of leak assessments, the one before stays in use", "err", OneLine(err))
	}
	return err
}

func (l *leakAssessments) replace(logger *slog.Logger) error {
	file, err := l.options.readAssessments()
	if err != nil {
		return err
	}
	if l.raw == nil {
		return l.apply(file, logger)
	}
	if err = l.raw.Reload(names(file)); err != nil {
		err = flagError(rawFlag, err)
	} else {
		err = l.apply(file, logger)
	}
	if err != nil {
		err = errors.Join(err, l.raw.Reload(names(l.file)))
	}
	return err
}

// apply replaces the configuration, and logs what has changed.
func (l *leakAssessments) apply(file *assessmentfile.File, logger *slog.Logger) error {
	changes := assessmentfile.Compare(l.file, file)
	if err := l.exchange(file, changes.Kept); err != nil {
		return err
	}
	l.file = file
	level := slog.LevelInfo
	if len(changes.Added)+len(changes.Removed)+len(changes.Changed) == 0 {
		level = slog.LevelDebug // a client may reload without end
	}
	logger.Log(context.Background(), level, "Leak assessments are configured", "path", l.options.leakFile,
		"added", changes.Added, "removed", changes.Removed, "changed", len(changes.Changed), "kept", changes.Kept)
	for _, change := range changes.Changed {
		logger.Info("Leak assessment begins again", "assessment", change.Name, "because", strings.Join(change.What, "; "))
	}
	return nil
}

// exchange replaces the configuration in the kernel and of the judges.
func (l *leakAssessments) exchange(file *assessmentfile.File, kept []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.set.Reload(file, l.measures.SetAssessments, monotonicNs); err != nil {
		return err
	}
	before := l.excluded
	l.excluded = l.measures.ExchangesExcluded()
	for _, name := range kept {
		l.excluded[name] = before[name]
	}
	l.isReloaded, l.reloadedAt = true, time.Now()
	return nil
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
		var next time.Time
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				if begin := time.Now(); begin.After(next) {
					l.set.Await(l.measures.OldestOutstanding, monotonicNs)
					next = begin.Add(max(lookInterval, time.Duration(float64(time.Since(begin))/lookShare)))
				}
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

// Snapshot returns the states of the assessments. Excluded requests are those that the kernel has
// counted: a judge does not get those for which there was no space, and gets others later.
func (l *leakAssessments) Snapshot() []collector.LeakStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	states := l.set.Snapshot()
	excluded := l.measures.ExchangesExcluded()
	for i := range states {
		s := &states[i]
		now, before := excluded[s.Assessment.Name], l.excluded[s.Assessment.Name]
		s.Held -= s.HeldExcluded
		s.Received = s.Responses[0] + s.Responses[1] + s.Held
		for reason := range now {
			s.Excluded[reason] = now[reason] - min(now[reason], before[reason])
			s.Received += s.Excluded[reason]
		}
	}
	return states
}

// LastReload returns whether the last reload succeeded, and when the last one that did.
func (l *leakAssessments) LastReload() (isSuccessful bool, succeededAt time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isReloaded, l.reloadedAt
}

// RawCounts returns what became of the lines of raw files, or nil without raw files.
func (l *leakAssessments) RawCounts() *collector.LeakRawCounts {
	if l.raw == nil {
		return nil
	}
	c := l.raw.Counts()
	return &collector.LeakRawCounts{Lines: c.Lines(), Bytes: c.Bytes(), Lost: c.Lost()}
}

// monotonicNs returns the time of the clock of requests.
func monotonicNs() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // the clock exists
	return uint64(now.Nano())
}
