// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"cmp"
	"context"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// The records are read at intervals between these two. The interval follows the rate of
	// records, so that an eighth of the ring of a CPU fills up in the meantime.
	minExchangeInterval = 2 * time.Millisecond
	maxExchangeInterval = 20 * time.Millisecond

	// writingTries is how often a CPU that is about to write a record is looked at. It takes a
	// fraction of a microsecond, unless the CPU is interrupted.
	writingTries = 1000
)

// exchangeRing is the reader of the records of all CPUs.
type exchangeRing struct {
	capacity int    // records of a CPU
	limitNs  uint64 // all records up to this time have been read
	raw      []leakExchangeRecord
	batch    []Exchange
}

// ReadExchanges reads the requests that have ended, and calls f for them in the order of TimeNs
// across CPUs, until the context ends. The slice is valid during the call. It is called from one
// goroutine at a time. Without Config.ExchangeConnections it waits for the end of the context. It
// returns nil.
func (a *Audit) ReadExchanges(ctx context.Context, f func([]Exchange)) error {
	if a.exchanges == nil {
		<-ctx.Done()
		return nil
	}
	timer := time.NewTimer(minExchangeInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			a.exchanges.read(f)
			return nil
		case <-timer.C:
		}
		timer.Reset(a.exchanges.read(f))
	}
}

// read calls f for the requests that have ended. It returns the time until the next read.
func (e *exchanges) read(f func([]Exchange)) time.Duration {
	batch, fullest := e.drain()
	if len(batch) > 0 {
		f(batch)
	}
	if fullest >= e.ring.capacity/8 {
		return minExchangeInterval
	}
	return max(minExchangeInterval, maxExchangeInterval-maxExchangeInterval*time.Duration(8*fullest)/time.Duration(e.ring.capacity))
}

// drain returns the requests that have ended, in the order of time. A later call returns no request
// of an earlier time. fullest is the largest number of records in the ring of a CPU.
func (e *exchanges) drain() (batch []Exchange, fullest int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.isClosed {
		return nil, 0
	}
	r := &e.ring
	limitNs := monotonicNs()
	if e.hasInjectedTime {
		limitNs = math.MaxUint64
	}
	if !e.isAnyWriting() {
		r.limitNs = limitNs
	}
	r.raw = r.raw[:0]
	for cpu := range e.cpus.len() {
		own := e.cpus.at(cpu)
		read, written := own.Read, atomic.LoadUint64(&own.Written)
		fullest = max(fullest, int(written-read))
		for ; read < written; read++ {
			record := *e.records.at(cpu*r.capacity + int(read)&(r.capacity-1))
			if record.TimeNs > r.limitNs {
				break
			}
			r.raw = append(r.raw, record)
		}
		atomic.StoreUint64(&own.Read, read)
	}
	slices.SortStableFunc(r.raw, func(a, b leakExchangeRecord) int { return cmp.Compare(a.TimeNs, b.TimeNs) })
	r.batch = r.batch[:0]
	for i := range r.raw {
		if s := &e.slots[r.raw[i].Slot]; s.name != "" && r.raw[i].TimeNs >= s.sinceNs {
			r.batch = append(r.batch, r.raw[i].exchange(s.name))
		}
	}
	return r.batch, fullest
}

// OldestOutstanding returns when the oldest outstanding request arrived, in nanoseconds of
// CLOCK_MONOTONIC, of those that arrived at sinceNs or later. It returns the greatest number
// without any. It reads the whole table of connections.
func (a *Audit) OldestOutstanding(sinceNs uint64) uint64 {
	if a.exchanges == nil {
		return math.MaxUint64
	}
	return a.exchanges.oldestOutstanding(sinceNs, monotonicNs())
}

func (e *exchanges) oldestOutstanding(sinceNs, nowNs uint64) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	oldestNs := uint64(math.MaxUint64)
	if e.isClosed {
		return oldestNs
	}
	for request := range e.outstandingRequests() {
		const timeMask = 1<<46 - 1 // REQUEST_TIME_MASK in xdp/exchange_request.h
		elapsedNs := (nowNs - request) & timeMask
		if elapsedNs > timeMask/2 { // it has arrived since now
			continue
		}
		if arrivalNs := nowNs - min(nowNs, elapsedNs); arrivalNs >= sinceNs {
			oldestNs = min(oldestNs, arrivalNs)
		}
	}
	return oldestNs
}

// isAnyWriting reports whether a CPU may still write a record of an earlier time than now.
func (e *exchanges) isAnyWriting() bool {
	for cpu := range e.cpus.len() {
		own := e.cpus.at(cpu)
		for try := 0; atomic.LoadUint64(&own.IsWriting) != 0; try++ {
			if try == writingTries {
				return true
			}
			runtime.Gosched()
		}
	}
	return false
}

func (r *leakExchangeRecord) exchange(assessment string) Exchange {
	x := Exchange{
		Assessment: assessment, Class: int(r.Class), Exclusion: Exclusion(r.Exclusion), TimeNs: r.TimeNs, ResponseNs: r.ElapsedNs,
		Connection: r.Connection, Position: r.Position, HasStart: r.HasStart != 0,
	}
	if x.Class > 1 {
		x.Class = ClassNone
	}
	return x
}
