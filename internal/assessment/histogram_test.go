// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessment

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// Each time is in the native bucket of its own, 2^((i-1)/8) < t ≤ 2^(i/8) seconds, and in the
// classic buckets whose bound it does not exceed.
func TestHistogram(t *testing.T) {
	bounds := newNativeBounds()
	times := []uint64{0, 1, 2, 999, 1000, 1e9, leak.LongestNs}
	for i := nativeMin; i <= nativeMax; i++ {
		bound := timing.NativeBound(i)
		times = append(times, bound, bound+1)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		times = append(times, r.Uint64N(leak.LongestNs)>>r.IntN(40))
	}
	var all Histogram
	classic := make([]uint64, len(ClassicBounds()))
	zeros := uint64(0)
	for _, ns := range times {
		ns = min(ns, leak.LongestNs)
		all.add(ns, bounds)
		for i, bound := range ClassicBounds() {
			if float64(ns) <= bound*1e9 {
				classic[i]++
			}
		}
		var one Histogram
		one.add(ns, bounds)
		buckets, zero := one.Native()
		zeros += zero
		if ns == 0 {
			if len(buckets) != 0 || zero != 1 {
				t.Errorf("0 ns is in %v", buckets)
			}
			continue
		}
		if len(buckets) != 1 || buckets[0].Count != 1 {
			t.Fatalf("%d ns is in %v", ns, buckets)
		}
		index := buckets[0].Index
		above, below := math.Exp2(float64(index)/8)*1e9*(1+1e-12), math.Exp2(float64(index-1)/8)*1e9*(1-1e-12)
		if v := float64(ns); v > above || v < below {
			t.Errorf("%d ns is in bucket %d, which is of %v to %v ns", ns, index, below, above)
		}
	}
	if all.Count() != uint64(len(times)) {
		t.Errorf("%d times, want %d", all.Count(), len(times))
	}
	for i, n := range all.Classic() {
		if n != classic[i] {
			t.Errorf("%d times up to %v s, want %d", n, ClassicBounds()[i], classic[i])
		}
	}
	native, zero := all.Native()
	sum := zero
	for i, bucket := range native {
		sum += bucket.Count
		if i > 0 && bucket.Index <= native[i-1].Index {
			t.Errorf("bucket %d after %d", bucket.Index, native[i-1].Index)
		}
	}
	if sum != all.Count() || zero != zeros {
		t.Errorf("%d times in native buckets, %d of 0 ns, want %d, %d", sum, zero, all.Count(), zeros)
	}
}
