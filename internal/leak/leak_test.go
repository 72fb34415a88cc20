// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// feed takes requests such as "X5 Y7 -X": class and nanoseconds, or the class of an excluded
// request.
func feed(j *Judge, requests string) {
	for i, word := range strings.Fields(requests) {
		r := Request{TimeNs: uint64(i)}
		excluded := strings.HasPrefix(word, "-")
		word = strings.TrimPrefix(word, "-")
		r.Class = Class(strings.Index("XY?", word[:1]))
		if excluded {
			j.Exclude(r)
			continue
		}
		var ns uint64
		if _, err := fmt.Sscan(word[1:], &ns); err != nil {
			panic(err)
		}
		j.Response(r, ns)
	}
}

// differencesOf returns all differences of pairs, in ascending order.
func differencesOf(j *Judge) (all []int64) {
	for rank := range j.differences.count() {
		least, _ := j.differences.atRank(rank + 1)
		all = append(all, int64(least))
	}
	return all
}

// Responses 2k and 2k+1 are a pair. Those of the same class are dropped, and excluded requests do
// not count.
func TestPairsOfRandomOrder(t *testing.T) {
	for _, test := range []struct {
		requests string
		want     []int64
	}{
		{"X1 Y3", []int64{2}},
		{"Y1 X3", []int64{-2}},
		{"X1 X3 Y10 X4", []int64{6}},
		{"X1 X3 Y10", nil},
		{"X1 -Y Y3", []int64{2}},
		{"X1 -? -X Y3 -Y Y5 Y6 X1 Y1", []int64{0, 2}},
	} {
		for _, order := range []Order{Random, Observed} {
			j := newTestJudge(t, order)
			feed(j, test.requests)
			if got := differencesOf(j); !slices.Equal(got, test.want) {
				t.Errorf("%v %s: got %v, want %v", order, test.requests, got, test.want)
			}
		}
	}
}

// onConnection takes the requests of one connection from a number on: classes, and "-" before an
// excluded one. "_" is a request that nobody reports.
func onConnection(j *Judge, connection uint64, number uint32, isMiddle bool, requests string) {
	for _, word := range strings.Fields(requests) {
		r := Request{Connection: connection, Number: number, IsMiddle: isMiddle}
		number++
		excluded := strings.HasPrefix(word, "-")
		switch strings.TrimPrefix(word, "-") {
		case "_":
			continue
		case "X":
			r.Class = X
		case "Y":
			r.Class = Y
		default:
			r.Class = Unknown
		}
		if excluded {
			j.Exclude(r)
		} else {
			j.Response(r, uint64(100+number)) // times say where a difference is from
		}
	}
}

func TestPairsOfBlocks(t *testing.T) {
	for _, test := range []struct {
		name, requests string
		isMiddle       bool
		want           []int64 // 1 for a block that begins with X, -1 for one with Y
		dropped        uint64
	}{
		{"two blocks", "X Y Y X", false, []int64{-1, 1}, 0},
		{"half a block", "X Y Y", false, []int64{1}, 0},
		{"the first is excluded", "-X Y Y X", false, []int64{-1}, 1},
		{"the second is excluded", "X -Y Y X", false, []int64{-1}, 1},
		{"both are excluded", "-X -Y Y X", false, []int64{-1}, 1},
		{"one is excluded and its class is unknown", "X -? Y X", false, []int64{-1}, 1},
		{"one is missing", "X _ Y X", false, []int64{-1}, 1},
		{"two of different blocks are missing", "X _ _ X Y X", false, []int64{-1}, 2},
		{"a block is missing", "X Y _ _ Y X", false, []int64{-1, 1}, 0},
		{"from the middle, nothing aligns it", "X Y X Y X Y", true, nil, 0},
		{"from the middle, two equal ones end and begin a block, which does not count", "Y X X Y X Y", true, []int64{1}, 0},
		{"from the middle, at an odd distance", "X X Y Y X", true, []int64{-1}, 0},
		{"from the middle, equal ones that do not follow each other", "X _ X Y X", true, nil, 0},
		{"from the middle, a missing one after alignment", "X X Y _ Y X Y", true, []int64{1}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := newTestJudge(t, Blocks)
			onConnection(j, 5, 0, test.isMiddle, test.requests)
			if got := differencesOf(j); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if j.dropped != test.dropped {
				t.Errorf("%d blocks are dropped, want %d", j.dropped, test.dropped)
			}
		})
	}
}

// A block with equal labels shows that blocks begin elsewhere. Its connection is aligned again, the
// others are not touched.
func TestBlocksWithEqualLabels(t *testing.T) {
	j := newTestJudge(t, Blocks)
	onConnection(j, 1, 0, false, "X Y")
	onConnection(j, 2, 0, false, "X X Y Y X")
	onConnection(j, 1, 2, false, "Y X")
	if got, want := differencesOf(j), []int64{-1, -1, 1}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if j.labels.blocks.count != 4 {
		t.Errorf("%v blocks are checked, want 4", j.labels.blocks.count)
	}
}

// A number that is used again is that of a new connection, which may be seen from its middle only.
// The open block of the old one is not lost by an exclusion.
func TestConnectionsThatAreUsedAgain(t *testing.T) {
	j := newTestJudge(t, Blocks)
	onConnection(j, 1, 0, false, "X Y Y")
	onConnection(j, 1, 0, false, "Y X")
	onConnection(j, 1, 0, true, "X Y")
	if got, want := differencesOf(j), []int64{-1, 1}; !slices.Equal(got, want) || j.dropped != 0 {
		t.Errorf("got %v and %d dropped blocks, want %v and none", got, j.dropped, want)
	}
}

// Blocks of interleaved connections are those of each connection alone, and a number that is used
// again is that of a new connection.
func TestInterleavedConnections(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	j := newTestJudge(t, Blocks)
	const connections = 1000
	var names [connections]uint64
	for i := range names {
		names[i] = r.Uint64()
	}
	var numbers [connections]uint32
	var first [connections]Class
	want := 0
	for range 20_000 {
		i := r.IntN(connections)
		if numbers[i]%2 == 0 && r.IntN(50) == 0 {
			numbers[i] = 0
		}
		class := 1 - first[i]
		if numbers[i]%2 == 0 {
			class = Class(r.IntN(2))
			first[i] = class
		} else {
			want++
		}
		j.Response(Request{Class: class, Connection: names[i], Number: numbers[i]}, 100)
		numbers[i]++
	}
	if got := int(j.Pairs()); got != want || j.dropped > 0 {
		t.Errorf("%d pairs and %d dropped blocks, want %d and 0", got, j.dropped, want)
	}
}

// More connections than slots lose blocks, not memory.
func TestConnectionsAreBounded(t *testing.T) {
	j := newTestJudge(t, Blocks)
	for number := range uint32(2) {
		for i := range uint64(100_000) {
			j.Response(Request{Class: Class(number), Connection: i, Number: number}, 100)
		}
	}
	for i := range uint64(100) {
		onConnection(j, i<<32, 0, false, "X Y")
	}
	if j.Pairs() < 100 || j.Pairs() > 100+1<<slotBits {
		t.Errorf("%d pairs", j.Pairs())
	}
	if size := unsafe.Sizeof(*j) + unsafe.Sizeof(*j.connections) + recentResponses*8 + mostBatches*unsafe.Sizeof(batch{}); size > 600<<10 {
		t.Errorf("a judge has %d bytes", size)
	}
}

// A report of every stage can be written as JSON, which has no infinite numbers.
func TestReportsAreFinite(t *testing.T) {
	for _, order := range []Order{Random, Blocks, Observed} {
		j := newTestJudge(t, order)
		r := rand.New(rand.NewPCG(1, 2))
		for i := range 5000 {
			if i < 100 || i%500 == 0 {
				if _, err := json.Marshal(j.Report()); err != nil {
					t.Fatalf("%v after %d responses: %v", order, i, err)
				}
			}
			class := Class(r.IntN(2))
			if order == Blocks && i%2 == 1 {
				class = 1 - j.connections.find(Request{Number: uint32(i)}).last
			}
			j.Response(Request{Class: class, Number: uint32(i)}, 1000+uint64(class)*uint64(i)*1e9)
		}
	}
}

// What a judge keeps does not grow, whatever comes.
func TestExtremeTimes(t *testing.T) {
	j := newTestJudge(t, Random)
	for i := range 3000 {
		j.Response(Request{Class: Class(i % 3)}, []uint64{0, math.MaxUint64, 1}[i/3%3])
	}
	j.Exclude(Request{Class: 200})
	r := j.Report()
	if r.ExcludedUnknown != 1001 || r.Classes[0].Responses+r.Classes[1].Responses != 2000 {
		t.Errorf("got %+v", r.Classes)
	}
	for _, c := range r.Classes {
		if c.SumNs != 333*(LongestNs+1) {
			t.Errorf("%s: the sum is %d ns", c.Name, c.SumNs)
		}
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	valid := Config{Order: Blocks, Classes: [2]string{"a", "b"}, TargetNs: 1000, Alpha: 1e-5, TickNs: 1}
	if _, err := New(valid); err != nil {
		t.Error(err)
	}
	for _, test := range []struct {
		name   string
		change func(*Config)
	}{
		{"order", func(c *Config) { c.Order = 3 }},
		{"target", func(c *Config) { c.TargetNs = -1 }},
		{"target", func(c *Config) { c.TargetNs = math.NaN() }},
		{"alpha", func(c *Config) { c.Alpha = 0 }},
		{"alpha", func(c *Config) { c.Alpha = math.NaN() }},
		{"tick", func(c *Config) { c.TickNs = math.Inf(1) }},
		{"different names", func(c *Config) { c.Classes[1] = "a" }},
	} {
		c := valid
		test.change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), test.name) {
			t.Errorf("%+v: got %v, want an error about %q", c, err, test.name)
		}
	}
}

func TestParseOrder(t *testing.T) {
	for _, order := range []Order{Random, Blocks, Observed} {
		if got, err := ParseOrder(order.String()); err != nil || got != order {
			t.Errorf("%v: got %v, %v", order, got, err)
		}
	}
	if _, err := ParseOrder("alternating"); err == nil || !strings.Contains(err.Error(), `"alternating"`) {
		t.Errorf("got %v, want an error with the name", err)
	}
}
