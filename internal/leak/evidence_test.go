// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leak

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// rising returns x·(x+1)·…·(x+n−1).
func rising(x *big.Rat, n int) *big.Rat {
	product := big.NewRat(1, 1)
	for i := range n {
		product.Mul(product, new(big.Rat).Add(x, big.NewRat(int64(i), 1)))
	}
	return product
}

// betaRatio returns B(a+s, b+n−s)/B(a, b).
func betaRatio(a, b *big.Rat, s, n int) *big.Rat {
	ratio := new(big.Rat).Mul(rising(a, s), rising(b, n-s))
	return ratio.Quo(ratio, rising(new(big.Rat).Add(a, b), n))
}

func power(x *big.Rat, n int) *big.Rat {
	product := big.NewRat(1, 1)
	for range n {
		product.Mul(product, x)
	}
	return product
}

func checkLog(t *testing.T, name string, got float64, want *big.Rat) {
	t.Helper()
	f, _ := want.Float64()
	if math.Abs(got-math.Log(f)) > 1e-9 {
		t.Errorf("%s: got ln E = %.12f, want %.12f", name, got, math.Log(f))
	}
}

// The e-value of signs is that of the closed form, for every sequence, and its mean over all
// sequences is exactly 1.
func TestCoinIsExact(t *testing.T) {
	const n = 10
	for _, prior := range []float64{1, existencePrior} {
		a := new(big.Rat).SetFloat64(prior)
		sum := new(big.Rat)
		for signs := range 1 << n {
			c := coin{prior: prior}
			s := 0
			for i := range n {
				isPositive := signs>>i&1 == 1
				c.add(isPositive)
				if isPositive {
					s++
				}
			}
			want := new(big.Rat).Mul(betaRatio(a, a, s, n), power(big.NewRat(2, 1), n))
			checkLog(t, fmt.Sprintf("a = %v, signs %b", prior, signs), c.logE, want)
			checkLog(t, fmt.Sprintf("a = %v, %d of %d", prior, s, n), logBetaBinomial(prior, float64(s), n), want)
			sum.Add(sum, want)
		}
		if sum.Cmp(power(big.NewRat(2, 1), n)) != 0 {
			t.Errorf("a = %v: the mean over all sequences is not 1", prior)
		}
	}
}

// testDistribution has cells at the whole numbers from 0 to 63.
func testDistribution() *distribution {
	d := &distribution{}
	d.reset()
	sorted := make([]uint64, mostCells)
	for i := range sorted {
		sorted[i] = uint64(i)
	}
	d.fix(sorted)
	return d
}

// cellsOf returns the cell of a time in every partition, by its definition.
func cellsOf(ns uint64) (cells [partitions]int) {
	for i := range resolutions {
		cells[i] = int(ns) * (2 << i) / mostCells
	}
	for i := range tails {
		if int(ns) >= mostCells-1<<i {
			cells[resolutions+i] = 1
		}
		if int(ns) < 1<<i {
			cells[resolutions+tails+i] = 1
		}
	}
	return cells
}

// exactRandom returns the e-value of times and classes by its closed form: the mean over partitions
// and priors of Π B(n_Y + a/2, n_X + a/2)/B(a/2, a/2) over the cells, divided by the likelihood of
// the best share.
func exactRandom(times []uint64, classes []Class) *big.Rat {
	sum := new(big.Rat)
	var labels [2]int
	for _, class := range classes {
		labels[class]++
	}
	for i := range partitions {
		var counts [mostCells][2]int
		for k, ns := range times {
			counts[cellsOf(ns)[i]][classes[k]]++
		}
		for _, prior := range priors {
			half := new(big.Rat).SetFloat64(prior / 2)
			product := big.NewRat(1, 1)
			for _, n := range counts {
				product.Mul(product, betaRatio(half, half, n[Y], n[X]+n[Y]))
			}
			sum.Add(sum, product)
		}
	}
	sum.Quo(sum, big.NewRat(int64(mixed), 1))
	n := int64(len(classes))
	for _, of := range labels {
		sum.Quo(sum, power(big.NewRat(max(int64(of), 1), n), of))
	}
	return sum
}

func TestDistributionOfRandomLabelsIsExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for run := range 50 {
		d, of := testDistribution(), testDistribution()
		var times []uint64
		var classes []Class
		for range 1 + r.IntN(60) {
			class := Class(r.IntN(2))
			ns := uint64(r.IntN(mostCells))
			if run%2 == 1 {
				ns = uint64(r.IntN(mostCells/2)) + uint64(class)*mostCells/2
			}
			times, classes = append(times, ns), append(classes, class)
			d.add(class, ns, false)
			of.add(class, ns, true)
		}
		checkLog(t, fmt.Sprintf("run %d", run), d.logE(), exactRandom(times, classes))
		checkLog(t, fmt.Sprintf("run %d, unknown shares", run), of.logE(), exactUnknown(times, classes))
	}
}

// exactUnknown returns the e-value for unknown shares: each prediction has the share of the class
// so far as its mean.
func exactUnknown(times []uint64, classes []Class) *big.Rat {
	sum := new(big.Rat)
	var labels [2]int64
	for i := range partitions {
		for _, prior := range priors {
			var counts [mostCells][2]int64
			labels = [2]int64{}
			product := big.NewRat(1, 1)
			for k, ns := range times {
				class, cell := classes[k], &counts[cellsOf(ns)[i]]
				mean := big.NewRat(int64(prior)*(labels[class]+1), labels[X]+labels[Y]+2)
				mean.Add(mean, big.NewRat(cell[class], 1))
				product.Mul(product, mean.Quo(mean, big.NewRat(cell[X]+cell[Y]+int64(prior), 1)))
				cell[class]++
				labels[class]++
			}
			sum.Add(sum, product)
		}
	}
	sum.Quo(sum, big.NewRat(int64(mixed), 1))
	for _, of := range labels {
		sum.Quo(sum, power(big.NewRat(max(of, 1), labels[X]+labels[Y]), int(of)))
	}
	return sum
}

// exactBlocks returns the e-value of blocks: the mean over partitions and priors of the product of
// 2·odds/(1 + odds).
func exactBlocks(x, y []uint64) *big.Rat {
	sum := new(big.Rat)
	for i := range partitions {
		for _, prior := range priors {
			var counts [mostCells][2]int64
			ratio := func(cell int) *big.Rat {
				a := int64(prior)
				return big.NewRat(counts[cell][Y]+a, counts[cell][X]+a)
			}
			product := big.NewRat(1, 1)
			for k := range x {
				ofX, ofY := cellsOf(x[k])[i], cellsOf(y[k])[i]
				odds := new(big.Rat).Quo(ratio(ofY), ratio(ofX))
				product.Mul(product, new(big.Rat).Quo(new(big.Rat).Add(odds, odds), new(big.Rat).Add(big.NewRat(1, 1), odds)))
				counts[ofX][X]++
				counts[ofY][Y]++
			}
			sum.Add(sum, product)
		}
	}
	return sum.Quo(sum, big.NewRat(int64(mixed), 1))
}

func TestDistributionOfBlocksIsExact(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for run := range 50 {
		d := testDistribution()
		var x, y []uint64
		for range 1 + r.IntN(20) {
			x, y = append(x, uint64(r.IntN(mostCells))), append(y, uint64(min(mostCells-1, r.IntN(mostCells)+10)))
			d.addBlock(x[len(x)-1], y[len(y)-1])
		}
		checkLog(t, fmt.Sprintf("run %d", run), d.logE(), exactBlocks(x, y))
	}
}

// The mean of the e-values over all assignments of classes to given times is 1, and less with
// unknown shares.
func TestMeanOverAllAssignments(t *testing.T) {
	times := []uint64{0, 63, 1, 60, 31, 32, 5, 5, 40, 62}
	all, random, unknown, blocks := 0., 0., 0., 0.
	for assigned := range 1 << len(times) {
		d, of, block := testDistribution(), testDistribution(), testDistribution()
		for i, ns := range times {
			class := Class(assigned >> i & 1)
			d.add(class, ns, false)
			of.add(class, ns, true)
			if i%2 == 1 && assigned>>i&1 == 1 {
				block.addBlock(times[i-1], ns)
			} else if i%2 == 1 {
				block.addBlock(ns, times[i-1])
			}
		}
		all++
		random += math.Exp(d.logE() + logShare(d.labels[X], d.labels[Y]))
		unknown += math.Exp(of.logE())
		blocks += math.Exp(block.logE())
	}
	if math.Abs(random/all-1) > 1e-9 || math.Abs(blocks/all-1) > 1e-9 || unknown/all > 1 {
		t.Errorf("the means are %v for known shares, %v for blocks, want 1; %v for unknown shares, want at most 1", random/all, blocks/all, unknown/all)
	}
}

// Values far out of the range of a float64 are kept by a common unit.
func TestDistributionDoesNotOverflow(t *testing.T) {
	d := testDistribution()
	for i := range 100_000 {
		d.add(Class(i%2), uint64(i%2)*63, false)
		d.logE()
	}
	got := d.logE()
	// Each response of two cells is foretold, except the first of each.
	if want := 100_000 * math.Ln2; got < want-100 || got > want {
		t.Errorf("got %v, want about %v", got, want)
	}
}

// The cells follow the times, and each response is judged by cells that come from earlier ones.
func TestCellsFollowTimes(t *testing.T) {
	j := newTestJudge(t, Random)
	r := rand.New(rand.NewPCG(1, 2))
	feed := func(mean float64) {
		for range recentResponses {
			j.Response(Request{Class: Class(r.IntN(2))}, uint64(mean+1000*r.NormFloat64()))
		}
	}
	d := &j.distribution
	judged := func() float64 { return d.labels[X] + d.labels[Y] }
	if feed(1e5); judged() != 0 {
		t.Errorf("%v responses are judged by cells that come from them", judged())
	}
	if feed(2e5); judged() != recentResponses || d.edges[mostCells-2] > 110_000 {
		t.Errorf("%v responses are judged, by the cells %v", judged(), d.edges)
	}
	if feed(3e5); judged() != 2*recentResponses || d.edges[0] < 190_000 {
		t.Errorf("%v responses are judged, by the cells %v", judged(), d.edges)
	}
}

// The one-sided values are at most the mixture over the upper half, so their mean
// over all outcomes of a fair coin is at most 1.
func TestOneSided(t *testing.T) {
	const n = 40
	mean, choose := 0., 1.
	for s := 0.; s <= n; s++ {
		mean += choose * math.Exp(logOneSided(s, n)-n*math.Ln2)
		choose *= (n - s) / (s + 1)
	}
	if mean > 1 || mean < 0.4 {
		t.Errorf("the mean is %v, want 0.4 to 1", mean)
	}
	if got := logOneSided(40, 40); got < math.Log(1e10) {
		t.Errorf("40 of 40: ln E = %v", got)
	}
}

// A bet on few differences pays on average at most 1 if the probability is at the limit.
func TestFewer(t *testing.T) {
	for _, p := range [][2]float64{{0.02, 0.015}, {0.3, 0.295}, {tolerated, 0}} {
		mean := 0.
		const n = 30
		for x := range n + 1 {
			for y := range n + 1 - x {
				a, _ := math.Lgamma(n + 1)
				b, _ := math.Lgamma(float64(x + 1))
				c, _ := math.Lgamma(float64(y + 1))
				e, _ := math.Lgamma(float64(n - x - y + 1))
				probability := math.Exp(a-b-c-e) * math.Pow(p[0], float64(y)) * math.Pow(p[1], float64(x)) * math.Pow(1-p[0]-p[1], float64(n-x-y))
				mean += probability * math.Exp(logFewer(float64(y), float64(x), n))
			}
		}
		if math.Abs(mean-1) > 1e-9 {
			t.Errorf("%v: the mean is %v, want 1", p, mean)
		}
	}
	if logFewer(40, 40, 8000) < math.Log(20) || logFewer(80, 40, 8000) > 0 {
		t.Error("1 in 200 of 8,000 pairs: 40 each must do, 80 against 40 must not")
	}
}
