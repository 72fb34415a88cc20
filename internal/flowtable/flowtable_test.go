// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package flowtable

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// flowOf returns the hash of the i-th flow of a set whose preferred way is way.
func flowOf(i int, set uint64, way uint32) Hash {
	return Hash{Set: set, Way: way, Mark: uint16(i), Tag: uint32(i + 1)}
}

func randomKeys(r *rand.Rand) *Keys {
	var keys Keys
	for i := range keys {
		keys[i] = r.Uint32()
	}
	return &keys
}

func TestFlowIsFoundWhereItWasInserted(t *testing.T) {
	table := New(4, Ways)
	for i := range 4 * Ways {
		set, way := uint64(i/Ways), uint32(i%Ways)
		if got, before := table.Insert(flowOf(i, set, way), uint64(1000+8*i)); got != int(way) || before != (Slot{}) {
			t.Fatalf("flow %d: inserted in way %d over %+v, want its own way %d, free", i, got, before, way)
		}
	}
	for i := range 4 * Ways {
		if got, want := table.Find(flowOf(i, uint64(i/Ways), 0)), i%Ways; got != want {
			t.Errorf("flow %d: found in way %d, want %d", i, got, want)
		}
	}
	if got := table.Find(flowOf(3, 4, 3)); got != 3 {
		t.Errorf("set 4 of 4 is set 0: found in way %d, want 3", got)
	}
}

func TestFindComparesTagAndMark(t *testing.T) {
	table := New(2, Ways)
	h := Hash{Set: 1, Way: 5, Mark: 7, Tag: 9}
	table.Insert(h, 1000)
	for name, other := range map[string]Hash{
		"of another mark": {Set: 1, Way: 5, Mark: 8, Tag: 9},
		"of another tag":  {Set: 1, Way: 5, Mark: 7, Tag: 8},
		"of another set":  {Set: 0, Way: 5, Mark: 7, Tag: 9},
	} {
		if got := table.Find(other); got != -1 {
			t.Errorf("a flow %s was found in way %d", name, got)
		}
	}
}

// Which slot a new flow takes. Each case is a set of 8 slots with the times they were last
// seen; 0 is a free slot.
func TestInsertTakes(t *testing.T) {
	for _, test := range []struct {
		name string
		last [Ways]uint64
		way  uint32
		want int
	}{
		{"its own way, if all are free", [Ways]uint64{}, 6, 6},
		{"its own way, if that is free", [Ways]uint64{800, 0, 0, 800, 800, 0, 800, 800}, 5, 5},
		{"the free way nearest by exclusive or, if its own is taken", [Ways]uint64{0, 800, 800, 800, 800, 800, 0, 800}, 5, 6},
		{"a free way rather than its own, however old", [Ways]uint64{800, 800, 16, 800, 800, 800, 800, 0}, 2, 7},
		{"the oldest, wherever it is", [Ways]uint64{800, 808, 816, 792, 824, 832, 840, 848}, 0, 3},
		{"the oldest, if it is by 8 ns", [Ways]uint64{808, 808, 808, 808, 808, 808, 808, 800}, 0, 7},
		{"its own way, if nothing is older by 8 ns", [Ways]uint64{801, 800, 802, 803, 804, 805, 806, 807}, 4, 4},
		{"the nearest of the oldest to within 8 ns", [Ways]uint64{808, 808, 800, 807, 808, 808, 808, 808}, 1, 3},
		{"its own way, if all are of the same age", [Ways]uint64{800, 800, 800, 800, 800, 800, 800, 800}, 3, 3},
		{"the oldest of times near the end of the range", [Ways]uint64{
			math.MaxUint64, math.MaxUint64, math.MaxUint64, math.MaxUint64, math.MaxUint64, math.MaxUint64 - 8, math.MaxUint64, math.MaxUint64,
		}, 0, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			table := New(1, Ways)
			set := table.Set(0)
			for way, last := range test.last {
				if last != 0 {
					set[way] = Slot{Tag: uint32(100 + way), LastNs: last}
				}
			}
			occupant := set[test.want]
			h := flowOf(0, 0, test.way)
			way, before := table.Insert(h, 1000)
			if way != test.want || before != occupant {
				t.Errorf("took way %d of %+v, want way %d of %+v", way, before, test.want, occupant)
			}
			if got, want := set[test.want], (Slot{Tag: h.Tag, Mark: h.Mark, LastNs: 1000}); got != want {
				t.Errorf("the slot has %+v, want %+v", got, want)
			}
		})
	}
}

// Flows that arrive at the same time fill a set in the order of exclusive or with their way.
func TestTiesGoToTheNearestWay(t *testing.T) {
	for preferred := range uint32(Ways) {
		table := New(1, Ways)
		for i := range Ways {
			way, _ := table.Insert(flowOf(i, 0, preferred), 1000)
			if want := i ^ int(preferred); way != want {
				t.Errorf("flow %d of way %d: got way %d, want %d", i, preferred, way, want)
			}
		}
	}
}

func TestFewerWaysStayInTheirSet(t *testing.T) {
	for _, ways := range []int{1, 2, 4} {
		table := New(4, ways)
		for i := range 100 {
			table.Insert(flowOf(i, 2, uint32(i)%Ways), uint64(1000+8*i))
		}
		for set := range uint64(4) {
			used := 0
			for _, slot := range table.Set(set) {
				if slot.Tag != 0 {
					used++
				}
			}
			if want := map[bool]int{true: ways}[set == 2]; used != want {
				t.Errorf("%d ways: set %d has %d flows, want %d", ways, set, used, want)
			}
		}
		for i := range ways {
			if table.Find(flowOf(99-i, 2, 0)) < 0 {
				t.Errorf("%d ways: flow %d from the end is not found", ways, i)
			}
		}
	}
}

// Words that are the negatives of the keys hash to 0. Without the lowest bit the tag would be
// that of a free slot.
func TestTagIsNeverZero(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, words := range []int{4, Words} {
		keys := randomKeys(r)
		flow := make([]uint32, words)
		for i := range flow {
			flow[i] = -keys[i]
		}
		if got := HashWords(flow, keys); got.Tag != 1 || got.Mark != 0 {
			t.Errorf("%d words that hash to 0: got tag %d and mark %d, want 1 and 0", words, got.Tag, got.Mark)
		}
	}
	keys := randomKeys(r)
	for range 100_000 {
		if h := HashWords([]uint32{r.Uint32(), r.Uint32(), r.Uint32(), r.Uint32()}, keys); h.Tag == 0 || h.Way >= Ways {
			t.Fatalf("got tag %d and way %d", h.Tag, h.Way)
		}
	}
}

func TestHashDependsOnEveryWordAndKey(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for _, words := range []int{4, Words} {
		keys := randomKeys(r)
		flow := make([]uint32, words)
		for i := range flow {
			flow[i] = r.Uint32()
		}
		want := HashWords(flow, keys)
		for i := range flow {
			other := slices.Clone(flow)
			other[i]++
			if got := HashWords(other, keys); got.Set == want.Set || got.Tag == want.Tag {
				t.Errorf("word %d of %d does not change set and tag", i, words)
			}
			others := *keys
			others[i]++
			if got := HashWords(flow, &others); got.Set == want.Set || got.Tag == want.Tag {
				t.Errorf("key %d of %d does not change set and tag", i, words)
			}
		}
	}
}

// Flows with consecutive addresses or ports share sets like flows with random hashes. The hit
// rates of the simulation rely on it.
func TestConsecutiveFlowsSpreadLikeRandomOnes(t *testing.T) {
	const sets, flows, tables = 8192, 32_768, 20
	for name, word := range map[string]int{"ports": 0, "sources": 2, "destinations": 3} {
		r := rand.New(rand.NewPCG(3, uint64(word)))
		fit := 0
		for range tables {
			keys := randomKeys(r)
			var count [sets]int
			for i := range flows {
				words := []uint32{443<<16 | 5000, 0x20006, 0x0a000001, 0x0a000002}
				words[word] += uint32(i)
				count[HashWords(words, keys).Set%sets]++
			}
			for _, n := range count {
				if n <= Ways {
					fit += n
				}
			}
		}
		got, want := float64(fit)/(flows*tables), fewerThan(Ways, float64(flows)/sets)
		if math.Abs(got-want) > 0.005 {
			t.Errorf("consecutive %s: %.4f of the flows are in sets that hold them, want %.4f", name, got, want)
		}
	}
}
