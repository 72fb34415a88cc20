// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"math"
	"runtime"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// The words of a sum as the program stores them. The model is of count_delta() and add_to_sum() in
// counters.h, on CPUs that keep stores in order, and on CPUs that do not.

// sumWords are the words of a sum in memory: low, high.
type sumWords [2]uint64

// sumStore is a store to a word. An exchange is visible after all earlier stores and before all
// later ones. Other stores are visible in any order, except for those to one word.
type sumStore struct {
	word       int
	value      uint64
	isExchange bool
}

// storeSum returns the stores that add v to a sum, and the words after them.
type storeSum func(words sumWords, v uint64) ([]sumStore, sumWords)

// storeCarry is add_to_sum().
func storeCarry(words sumWords, v uint64) ([]sumStore, sumWords) {
	low := words[0] + v
	if low >= v {
		return []sumStore{{0, low, false}}, sumWords{low, words[1]}
	}
	high := words[1] + 1
	return []sumStore{{1, high | sumCarries, true}, {0, low, true}, {1, high, true}}, sumWords{low, high}
}

// storeLowFirst stores the low word and then the carry, without a mark.
func storeLowFirst(words sumWords, v uint64) ([]sumStore, sumWords) {
	low := words[0] + v
	if low >= v {
		return []sumStore{{0, low, false}}, sumWords{low, words[1]}
	}
	return []sumStore{{0, low, false}, {1, words[1] + 1, false}}, sumWords{low, words[1] + 1}
}

// visibleOrders calls f with the stores of each order in which they can become visible.
func visibleOrders(stores []sumStore, isOrdered bool, f func([]sumStore)) {
	order := make([]sumStore, 0, len(stores))
	isVisible := make([]bool, len(stores))
	var extend func()
	extend = func() {
		if len(order) == len(stores) {
			f(order)
			return
		}
		for i, store := range stores {
			if isVisible[i] {
				continue
			}
			isNext := true
			for j, earlier := range stores[:i] {
				if !isVisible[j] && (isOrdered || earlier.word == store.word || earlier.isExchange || store.isExchange) {
					isNext = false
				}
			}
			if !isNext {
				continue
			}
			isVisible[i] = true
			order = append(order, store)
			extend()
			order = order[:len(order)-1]
			isVisible[i] = false
		}
	}
	extend()
}

// checkSums reads the words of a sum to which addends are added, in each order of stores and loads.
// It returns the number of readings, and the first that is not a sum between the packets that were
// complete before it and those that had begun at its end. The lock of the flow's set, an exchange,
// is between two packets.
func checkSums(start sumWords, addends []uint64, store storeSum, isOrdered bool) (readings int, wrong error) {
	sums := []Uint128{{Hi: start[1], Lo: start[0]}} // after each packet
	// The states of the memory that can follow each other, as paths. Packets multiply the paths.
	type state struct {
		words     sumWords
		completed int // packets whose stores are visible
		begun     int // packets of which a store may be visible
	}
	paths := [][]state{{{start, 0, 0}}}
	words := start
	for packet, v := range addends {
		var stores []sumStore
		stores, words = store(words, v)
		sums = append(sums, Uint128{Hi: words[1], Lo: words[0]})
		var longer [][]state
		visibleOrders(stores, isOrdered, func(order []sumStore) {
			for _, path := range paths {
				path = append([]state(nil), path...)
				memory := path[len(path)-1].words
				for i, s := range order {
					memory[s.word] = s.value
					completed := packet
					if i == len(order)-1 {
						completed++
					}
					path = append(path, state{memory, completed, packet + 1})
				}
				longer = append(longer, path)
			}
		})
		paths = longer
	}
	for _, path := range paths {
		for first := range path {
			for second := first; second < len(path); second++ {
				for third := second; third < len(path); third++ {
					high, low, again := path[first].words[1], path[second].words[0], path[third].words[1]
					sum, ok := wordsToSum(high, low, again)
					if first == third && !ok {
						return readings, fmt.Errorf("at rest in %x, the sum is not read", path[first].words)
					}
					if !ok {
						continue
					}
					readings++
					isSum := false
					for k := path[first].completed; k <= path[third].begun; k++ {
						isSum = isSum || sum == sums[k]
					}
					if !isSum && wrong == nil {
						wrong = fmt.Errorf("from %x, high %x, low %x, high %x was read as %v, not as one of the sums %v",
							start, high, low, again, sum, sums[path[first].completed:path[third].begun+1])
					}
				}
			}
		}
	}
	return readings, wrong
}

// A reader that loads the words while packets are added, in whatever order the stores become
// visible, gets a sum that was exact meanwhile, or none. It gets one at once if nothing is stored
// between its loads, even if the program stands still between two stores: it never waits for a CPU.
func TestSumsInEachOrderOfStoresAndLoads(t *testing.T) {
	const most = uint64(timing.MaxDelta) * uint64(timing.MaxDelta) // the largest addend
	if most > 1<<62 {
		t.Fatalf("an addend has more than 62 bits: %x", most)
	}
	starts := []sumWords{{0, 0}, {math.MaxUint64, 0}, {math.MaxUint64 - 4, 7}, {1<<63 - 1, 1}, {1 << 63, 1}, {math.MaxUint64 - most + 1, 2}, {most - 1, 3}}
	addends := []uint64{0, 1, 5, 1 << 31, most}
	for _, test := range []struct {
		name      string
		store     storeSum
		isOrdered bool
		isExact   bool
	}{
		{"stores in order, as on x86", storeCarry, true, true},
		{"stores in any order, as on arm64", storeCarry, false, true},
		// That the model finds wrong sums.
		{"the low word first, without a mark, in order", storeLowFirst, true, false},
		{"the low word first, without a mark, in any order", storeLowFirst, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			readings, wrong := 0, error(nil)
			for _, start := range starts {
				for i := range len(addends) * len(addends) * len(addends) {
					n := len(addends)
					r, err := checkSums(start, []uint64{addends[i%n], addends[i/n%n], addends[i/n/n]}, test.store, test.isOrdered)
					readings += r
					if wrong == nil {
						wrong = err
					}
				}
			}
			t.Logf("%d readings; wrong: %v", readings, wrong)
			if isExact := wrong == nil; isExact != test.isExact || readings == 0 {
				t.Errorf("all %d sums are exact: %t, want %t: %v", readings, isExact, test.isExact, wrong)
			}
		})
	}
}

// A sum whose high word changes at each attempt is the last one, and no reading waits for it. A sum
// does not decrease, whatever is in memory.
func TestSumsThatCannotBeRead(t *testing.T) {
	last := Uint128{Hi: 1, Lo: 1<<64 - 5}
	for _, test := range []struct {
		description string
		words       [2]uint64
		want        Uint128
	}{
		{"below the last one", [2]uint64{3, 1}, last},
		{"before the low word wraps", [2]uint64{1<<64 - 2, 2 | sumCarries}, Uint128{Hi: 1, Lo: 1<<64 - 2}},
		{"after the low word has wrapped", [2]uint64{3, 2 | sumCarries}, Uint128{Hi: 2, Lo: 3}},
		{"after the carry", [2]uint64{3, 2}, Uint128{Hi: 2, Lo: 3}},
	} {
		if got := loadUint128(&test.words, &last); got != test.want {
			t.Errorf("%s: got %v, want %v", test.description, got, test.want)
		}
	}
}

// The program adds deltas whose squares carry at every fourth packet, while its sums are read. Each
// reading is a multiple of that square.
func TestSumsAreExactWhileTheProgramCarries(t *testing.T) {
	config := testConfig()
	config.IdleTimeout = timing.MaxDelta
	cpus := twoCPUs(t)
	p := newProbe(t, config) // on the first of them
	now := uint64(1e12)
	run(t, p.program(0), udpFrame(), now, 1)
	run(t, p.program(0), udpFrame(), now+1, 1) // the reference is 1 ns
	now++
	const packets = 4000
	const distance = uint64(timing.MaxDelta) - 1
	var last Uint128
	read := func() (multiple uint64) {
		t.Helper()
		sum := loadUint128(&p.block.Sums.Squared, &last)
		if sum.Cmp(last) < 0 {
			t.Fatalf("the sum decreased from %v to %v", last, sum)
		}
		last = sum
		square := Uint128{Lo: distance * distance}
		for multiple = sum.Hi*4 + sum.Lo>>62; square.Mul64(multiple).Cmp(sum) < 0; multiple++ {
		}
		if square.Mul64(multiple) != sum {
			t.Fatalf("the sum %v is not a multiple of the square of %d", sum, distance)
		}
		return multiple
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
		if err := moveTo(cpus[0]); err != nil {
			done <- err
			return
		}
		for range packets {
			now += timing.MaxDelta
			run(t, p.program(0), udpFrame(), now, 1)
		}
		done <- nil
	}()
	if err := moveTo(cpus[1]); err != nil {
		t.Fatal(err)
	}
	readings := 0
	for isRunning := true; isRunning; readings++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			isRunning = false
		default:
		}
		read()
	}
	if got := read(); got != packets || last.Hi < packets/5 {
		t.Errorf("the sum has %d squares, want %d, and %d carries", got, packets, last.Hi)
	}
	t.Logf("%d readings, %d carries", readings, last.Hi)
}
