// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessment

import (
	"math"
	"slices"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

const (
	// The native buckets: from the one that ends at 2^-30 s, about 1 ns, to that of 2^11 s, 34
	// minutes.
	nativeMin, nativeMax = -8 * 30, 8 * 11
	// The classic boundaries: from 2^-20 s, about 1 µs, to 2^4 s.
	classicMin, classicMax = -20, 4
)

// Histogram counts response times by the native buckets of schema [timing.NativeSchema]. Each
// boundary 2^(i/8) seconds is rounded down to nanoseconds and belongs to the bucket below it, so
// counts are exact, and those by classic buckets as well.
type Histogram struct {
	zeros   uint64 // of 0 ns
	buckets [nativeMax - nativeMin + 1]uint64
}

// nativeBounds are the upper bounds of the native buckets in nanoseconds.
type nativeBounds []uint64

func newNativeBounds() (bounds nativeBounds) {
	for i := nativeMin; i <= nativeMax; i++ {
		bounds = append(bounds, timing.NativeBound(i))
	}
	return bounds
}

// add takes a response time of at most leak.LongestNs.
func (h *Histogram) add(ns uint64, bounds nativeBounds) {
	if ns == 0 {
		h.zeros++
		return
	}
	bucket, _ := slices.BinarySearch(bounds, ns)
	h.buckets[bucket]++
}

// Count returns the number of response times.
func (h *Histogram) Count() uint64 {
	count := h.zeros
	for _, n := range h.buckets {
		count += n
	}
	return count
}

// Native returns the buckets that are not empty, in ascending order, and the number of times of
// 0 ns, which are in the zero bucket.
func (h *Histogram) Native() (buckets []timing.NativeBucket, zeros uint64) {
	for i, n := range h.buckets {
		if n > 0 {
			buckets = append(buckets, timing.NativeBucket{Index: nativeMin + i, Count: n})
		}
	}
	return buckets, h.zeros
}

// Classic returns the cumulative count at each of [ClassicBounds].
func (h *Histogram) Classic() (cumulative []uint64) {
	count, next := h.zeros, nativeMin
	for e := classicMin; e <= classicMax; e++ {
		for ; next <= 8*e; next++ {
			count += h.buckets[next-nativeMin]
		}
		cumulative = append(cumulative, count)
	}
	return cumulative
}

// ClassicBounds returns the upper bounds of the classic buckets in seconds, without +Inf. All are
// powers of two, so each is a boundary of native buckets too.
func ClassicBounds() (bounds []float64) {
	for e := classicMin; e <= classicMax; e++ {
		bounds = append(bounds, math.Ldexp(1, e))
	}
	return bounds
}
