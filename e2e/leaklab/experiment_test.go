// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leaklab

import (
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/awake"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/testnumber"
)

// experiment is a number of runs of the same kind.
type experiment struct {
	server  string
	order   leak.Order
	jitter  time.Duration
	planted time.Duration
	pairs   int // of a run; the evidence has to be enough within it in 19 of 20 runs

	outcomes []outcome
}

// outcome is what a run found.
type outcome struct {
	kernel, client judged
	handler        float64 // ns: the effect by the clock of the handler
	capture        float64 // ns: the effect by the capture
	excluded       int
	overhead       []float64 // ns: response time of each request, less the time of the handler
	disagreement   []float64 // ns: by how much the kernel's time and that of the capture differ
}

// judged is what a judge says of times.
type judged struct {
	pairs             int // until the evidence is enough, or never
	effect, low, high float64
	verdict           leak.Verdict
}

// never is the number of pairs of a run without enough evidence.
const never = math.MaxInt

// truth is the effect that was measured independently: by the clock of the handler, and behind a
// proxy, whose own times overlap with those of the handler, by the capture.
func (e *experiment) truth(o *outcome) float64 {
	if e.server == nginx {
		return o.capture
	}
	return o.handler
}

// has reports whether an effect is inside of the interval.
func (j *judged) has(effect float64) bool { return j.low <= effect && effect <= j.high }

// jitter is the mean delay of a request on a path that is not steady.
const jitter = 100 * time.Microsecond

// pairsOf are the pairs within which an effect has to be found.
var pairsOf = map[time.Duration]int{time.Microsecond: 13_000, 10 * time.Microsecond: 600, 100 * time.Microsecond: 120}

// unplanted is the number of pairs of a run without an effect.
const unplanted = 3000

// manyPairs are the pairs from which on a run ends with half of them if the evidence is enough.
const manyPairs = 5000

// experiments returns those of the report.
func experiments() (all []*experiment) {
	for _, server := range serverNames {
		for _, planted := range []time.Duration{time.Microsecond, 10 * time.Microsecond, 100 * time.Microsecond} {
			pairs := pairsOf[planted]
			all = append(all,
				&experiment{server: server, order: leak.Blocks, planted: planted, pairs: pairs},
				&experiment{server: server, order: leak.Blocks, planted: planted, jitter: jitter, pairs: pairs * 6 / 5},
				&experiment{server: server, order: leak.Random, planted: planted, pairs: pairs})
		}
		all = append(all, &experiment{server: server, order: leak.Blocks, pairs: unplanted})
	}
	return all
}

// run makes one run.
func (e *experiment) run(l *lab, seed uint64) {
	l.t.Helper()
	r := rand.New(rand.NewPCG(seed, uint64(e.planted)<<8|uint64(e.order)))
	file := l.configuration(e.server, e.order)
	config := file.Assessments[0].Judged()
	m := l.run(e.server, r, e.order, e.pairs, e.planted, e.jitter, func(m *measured) bool {
		return e.pairs >= manyPairs && l.judge(m, config, m.kernel()).pairs != never
	})
	o := outcome{kernel: l.judge(m, config, m.kernel()), client: l.judge(m, config, m.client), excluded: m.excluded(),
		handler: medianDifference(m, m.handler), capture: medianDifference(m, m.capture)}
	if report := l.assess(m, file); report.EffectNs != o.kernel.effect || report.HighNs != o.kernel.high || report.Verdict != o.kernel.verdict {
		l.t.Errorf("the assessment of the exporter ends with %s, and that of the requests in order with %+v", report.Sentence, o.kernel)
	}
	for i, x := range m.records {
		o.overhead = append(o.overhead, float64(x.ResponseNs)-float64(m.handler[i]))
		o.disagreement = append(o.disagreement, math.Abs(float64(x.ResponseNs)-float64(m.capture[i])))
	}
	e.outcomes = append(e.outcomes, o)
}

// TestLeaksAreFound plants delays in real servers. It makes one run of each experiment that takes
// less than a second, and asks for what holds on any machine. LEAKLAB_RUNS=20 makes as many of all,
// and LEAKLAB_REPORT names the document of their figures: then the bounds for a machine at rest
// must hold.
func TestLeaksAreFound(t *testing.T) {
	l := newLab(t)
	path := os.Getenv("LEAKLAB_REPORT")
	runs := testnumber.Of(t, "LEAKLAB_RUNS", 1)
	all := experiments()
	if path != "" {
		awake.Keep(t)
	}
	if path == "" && runs == 1 {
		all = slices.DeleteFunc(all, func(e *experiment) bool { return e.planted == time.Microsecond })
		for _, e := range all {
			if e.planted > 0 {
				e.pairs *= 8 // for a machine that does much else
			}
		}
	}
	r := &report{experiments: all, load: loadAverage(t)}
	begin := time.Now()
	// The runs of an experiment are spread over the whole time, as what else the machine does is.
	for seed := range runs {
		for _, e := range all {
			e.run(l, uint64(seed))
		}
		if runs > 1 {
			t.Logf("%d of %d runs, after %v", seed+1, runs, time.Since(begin).Round(time.Second))
		}
	}
	r.took = time.Since(begin)
	text, failed := r.markdown()
	t.Logf("\n%s", text)
	if path != "" {
		if err := r.writeTo(path); err != nil {
			t.Error(err)
		}
		for _, reason := range failed {
			t.Error(reason)
		}
		return
	}
	for _, e := range all {
		for _, o := range e.outcomes {
			if e.planted > 0 && o.kernel.pairs == never {
				t.Errorf("%v was not found in %d pairs: %+v", e, e.pairs, o.kernel)
			}
			if e.planted == 0 && o.kernel.pairs != never {
				t.Errorf("%v was found: %+v", e, o.kernel)
			}
			slices.Sort(o.disagreement)
			if d := level(o.disagreement, 0.5); d > 10e3 {
				t.Errorf("%v: the capture differs from the kernel's times by %v ns in the median", e, d)
			}
		}
	}
}
