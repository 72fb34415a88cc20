// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// assessed returns the judge of an assessment after n requests, one in ten of which is excluded.
// Responses take 1.5 µs in the class fixed and 3 µs in the class random.
func assessed(t testing.TB, n int) *assessment.Set {
	t.Helper()
	file, err := assessmentfile.Parse("leak.yml", []byte(
		"assessments: [{name: login, protocol: tcp, port: 443, classes: {fixed: {dscp: 8}, random: {dscp: 16}}}]"))
	if err != nil {
		t.Fatal(err)
	}
	set := assessment.New(nil)
	err = set.Reload(file, func([]bpf.Assessment) error { return nil }, func() uint64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(n) {
		x := bpf.Exchange{Assessment: "login", Class: int(random(int(i), 2)), TimeNs: 1e6 * (i + 1), HasStart: true, Position: uint32(i)}
		x.ResponseNs = 1500 * uint64(1+x.Class)
		if i%10 == 9 {
			x.Exclusion = bpf.ExclusionRetransmitted
		}
		if err := set.Add([]bpf.Exchange{x}); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.Flush(); err != nil {
		t.Fatal(err)
	}
	return set
}

// fakeLeak was reloaded at a time with a fraction of a second.
type fakeLeak struct {
	*assessment.Set
	states      []LeakStatus // instead of those of the set
	hasNoReload bool
	raw         *LeakRawCounts
}

func (f fakeLeak) Snapshot() []LeakStatus {
	if f.states != nil {
		return f.states
	}
	return f.Set.Snapshot()
}

func (f fakeLeak) LastReload() (bool, time.Time) {
	return !f.hasNoReload, time.UnixMilli(1_800_000_000_500)
}

func (f fakeLeak) RawCounts() *LeakRawCounts { return f.raw }

func TestLeak(t *testing.T) {
	expect(t, newLeakCollector(nil), "")

	state := assessed(t, 10).Snapshot()[0]
	state.Responses, state.SumNs = [2]uint64{4, 5}, [2]uint64{6000, 15000}
	state.Times = [2]assessment.Histogram{}
	state.Excluded = [bpf.NumExclusions]uint64{bpf.ExclusionRetransmitted: 3, bpf.ExclusionRingFull: 7}
	state.Report = LeakReport{
		TargetNs: 1000, Pairs: 120, EvidenceLog10: 5.5, EvidenceCurrentLog10: 4.25, HasInterval: true,
		EffectNs: 10300, LowNs: 9700, HighNs: 10900, FloorNs: 600, Verdict: leak.Leak,
		Checks: []leak.Check{{Name: "order", Passes: true}, {Name: "loss"}},
		Scores: []leak.Score{{Order: 1, Scale: "linear", T: 3.5}, {Order: 2, Scale: "log2", T: -1}},
	}
	const report = `
# HELP xdp_audit_leak_check Whether the data of the assessment pass the check.
# TYPE xdp_audit_leak_check gauge
xdp_audit_leak_check{assessment="login",check="loss"} 0
xdp_audit_leak_check{assessment="login",check="order"} 1
# HELP xdp_audit_leak_effect_high_seconds Upper end of the 95 % confidence sequence of the effect in seconds; absent with fewer than 23 pairs.
# TYPE xdp_audit_leak_effect_high_seconds gauge
xdp_audit_leak_effect_high_seconds{assessment="login"} 1.09e-05
# HELP xdp_audit_leak_effect_low_seconds Lower end of the 95 % confidence sequence of the effect in seconds; absent with fewer than 23 pairs.
# TYPE xdp_audit_leak_effect_low_seconds gauge
xdp_audit_leak_effect_low_seconds{assessment="login"} 9.7e-06
# HELP xdp_audit_leak_effect_seconds Median of the differences of pairs in seconds, positive if the second class is slower; absent with fewer than 23 pairs.
# TYPE xdp_audit_leak_effect_seconds gauge
xdp_audit_leak_effect_seconds{assessment="login"} 1.03e-05
# HELP xdp_audit_leak_evidence_current_log10 Current decimal logarithm of the e-value; those of independent hosts may be added up.
# TYPE xdp_audit_leak_evidence_current_log10 gauge
xdp_audit_leak_evidence_current_log10{assessment="login"} 4.25
# HELP xdp_audit_leak_evidence_log10 Highest decimal logarithm so far of the e-value against equal response times of both classes, which decides.
# TYPE xdp_audit_leak_evidence_log10 gauge
xdp_audit_leak_evidence_log10{assessment="login"} 5.5
# HELP xdp_audit_leak_excluded_total Total number of requests without a response time, by the reason.
# TYPE xdp_audit_leak_excluded_total counter
xdp_audit_leak_excluded_total{assessment="login",reason="evicted"} 0
xdp_audit_leak_excluded_total{assessment="login",reason="mixed"} 0
xdp_audit_leak_excluded_total{assessment="login",reason="pipelined"} 0
xdp_audit_leak_excluded_total{assessment="login",reason="retransmitted"} 3
xdp_audit_leak_excluded_total{assessment="login",reason="ring_full"} 7
xdp_audit_leak_excluded_total{assessment="login",reason="unanswered"} 0
xdp_audit_leak_excluded_total{assessment="login",reason="unclassified"} 0
# HELP xdp_audit_leak_floor_seconds Half of the width of the confidence sequence in seconds: smaller effects cannot be seen; absent with fewer than 23 pairs.
# TYPE xdp_audit_leak_floor_seconds gauge
xdp_audit_leak_floor_seconds{assessment="login"} 6e-07
# HELP xdp_audit_leak_pairs_total Total number of pairs of responses, one of each class.
# TYPE xdp_audit_leak_pairs_total counter
xdp_audit_leak_pairs_total{assessment="login"} 120
# HELP xdp_audit_leak_responses_total Total number of requests of the class with a response time.
# TYPE xdp_audit_leak_responses_total counter
xdp_audit_leak_responses_total{assessment="login",class="fixed"} 4
xdp_audit_leak_responses_total{assessment="login",class="random"} 5
# HELP xdp_audit_leak_target_seconds Configured difference in seconds up to which differences do not matter.
# TYPE xdp_audit_leak_target_seconds gauge
xdp_audit_leak_target_seconds{assessment="login"} 1e-06
# HELP xdp_audit_leak_tscore Welch's t between the classes, of means (order 1) or variances (order 2), on the scale; it decides nothing.
# TYPE xdp_audit_leak_tscore gauge
xdp_audit_leak_tscore{assessment="login",order="1",scale="linear"} 3.5
xdp_audit_leak_tscore{assessment="login",order="2",scale="log2"} -1
# HELP xdp_audit_leak_verdict Whether this is the verdict of the assessment; exactly one is 1.
# TYPE xdp_audit_leak_verdict gauge
xdp_audit_leak_verdict{assessment="login",verdict="difference"} 0
xdp_audit_leak_verdict{assessment="login",verdict="inconclusive"} 0
xdp_audit_leak_verdict{assessment="login",verdict="invalid"} 0
xdp_audit_leak_verdict{assessment="login",verdict="leak"} 1
xdp_audit_leak_verdict{assessment="login",verdict="no_difference"} 0
xdp_audit_leak_verdict{assessment="login",verdict="none"} 0
xdp_audit_leak_verdict{assessment="login",verdict="waiting"} 0
`
	var names []string
	for line := range strings.Lines(report) {
		if name, isType := strings.CutPrefix(line, "# TYPE "); isType {
			names = append(names, strings.Fields(name)[0])
		}
	}
	gather := gatherer(t, registered{t, newLeakCollector(fakeLeak{states: []LeakStatus{state}})})
	if err := testutil.GatherAndCompare(gather, strings.NewReader(report), names...); err != nil {
		t.Error(err)
	}

	state.Report.HasInterval = false
	gather = gatherer(t, registered{t, newLeakCollector(fakeLeak{states: []LeakStatus{state}})})
	for _, name := range []string{"effect", "effect_low", "effect_high", "floor"} {
		if n, err := testutil.GatherAndCount(gather, "xdp_audit_leak_"+name+"_seconds"); err != nil || n > 0 {
			t.Errorf("without an interval there are %d series of %s: %v", n, name, err)
		}
	}
}

// What is not of an assessment.
func TestLeakReload(t *testing.T) {
	expect(t, newLeakCollector(fakeLeak{states: []LeakStatus{}, hasNoReload: true, raw: &LeakRawCounts{Lines: 7, Bytes: 42, Lost: 3}}), `
# HELP xdp_audit_config_last_reload_success_timestamp_seconds Time of the last successful reload of the configuration of leak assessments, or of the start, in seconds since the epoch.
# TYPE xdp_audit_config_last_reload_success_timestamp_seconds gauge
xdp_audit_config_last_reload_success_timestamp_seconds 1.8000000005e+09
# HELP xdp_audit_config_last_reload_successful Whether the last reload of the configuration of leak assessments succeeded.
# TYPE xdp_audit_config_last_reload_successful gauge
xdp_audit_config_last_reload_successful 0
# HELP xdp_audit_leak_raw_bytes_total Total number of bytes written to raw files.
# TYPE xdp_audit_leak_raw_bytes_total counter
xdp_audit_leak_raw_bytes_total 42
# HELP xdp_audit_leak_raw_lines_total Total number of responses written to raw files.
# TYPE xdp_audit_leak_raw_lines_total counter
xdp_audit_leak_raw_lines_total 7
# HELP xdp_audit_leak_raw_write_errors_total Total number of responses that could not be written to raw files.
# TYPE xdp_audit_leak_raw_write_errors_total counter
xdp_audit_leak_raw_write_errors_total 3
`)
}

// The counters, both histograms and the pairs are those of the requests.
func TestLeakOfRequests(t *testing.T) {
	const requests = 1000
	set := assessed(t, requests)
	families, err := gatherer(t, registered{t, newLeakCollector(fakeLeak{Set: set})}).Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			name, isOfAssessment := strings.CutPrefix(family.GetName(), "xdp_audit_leak_")
			if !isOfAssessment {
				continue
			}
			for _, label := range m.Label[1:] {
				name += " " + label.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetHistogram().GetSampleSum()
			if h := m.GetHistogram(); h != nil {
				checkLeakHistogram(t, h, m.Label[1].GetValue())
			}
		}
	}
	fixed, random := got["responses_total fixed"], got["responses_total random"]
	if fixed+random != 0.9*requests || got["excluded_total retransmitted"] != 0.1*requests {
		t.Errorf("%v and %v responses, and %v excluded, of %d requests", fixed, random, got["excluded_total retransmitted"], requests)
	}
	for name, want := range map[string]string{
		"response_seconds fixed": fmt.Sprintf("%.9f", 1.5e-6*fixed), "response_seconds random": fmt.Sprintf("%.9f", 3e-6*random),
		"effect_seconds": "0.000001500", "target_seconds": "0.000001000", "verdict leak": "1.000000000", "check order": "1.000000000",
	} {
		if text := fmt.Sprintf("%.9f", got[name]); text != want {
			t.Errorf("%s is %s, want %s", name, text, want)
		}
	}
	if got["evidence_log10"] < 5 || got["evidence_current_log10"] > got["evidence_log10"] {
		t.Errorf("evidence %v, currently %v", got["evidence_log10"], got["evidence_current_log10"])
	}
}

// checkLeakHistogram expects all times of a class in one bucket of both kinds.
func checkLeakHistogram(t *testing.T, h *dto.Histogram, class string) {
	t.Helper()
	// 1.5 µs are above 2^-20 s and 3 µs above 2^-19 s; the indices are in eighths of an octave.
	first, index := 1, -154
	if class == "random" {
		first, index = 2, -146
	}
	for i, bucket := range h.Bucket {
		want := uint64(0)
		if i >= first {
			want = h.GetSampleCount()
		}
		if bucket.GetCumulativeCount() != want {
			t.Errorf("%s: %d times up to %v s, want %d", class, bucket.GetCumulativeCount(), bucket.GetUpperBound(), want)
		}
	}
	if len(h.PositiveSpan) != 1 || int(h.PositiveSpan[0].GetOffset()) != index || uint64(h.PositiveDelta[0]) != h.GetSampleCount() {
		t.Errorf("%s: native spans %v with %v, want one bucket %d of %d", class, h.PositiveSpan, h.PositiveDelta, index, h.GetSampleCount())
	}
}

// docs/metrics.md has the number of series.
func TestLeakSeries(t *testing.T) {
	const bucketsSumCount = 28 // of a classic histogram
	collector := registered{t, newLeakCollector(fakeLeak{Set: assessed(t, 1000), raw: &LeakRawCounts{}})}
	// A histogram is one metric here.
	if got, want := testutil.CollectAndCount(collector)+2*(bucketsSumCount-1), 88+2+3; got != want {
		t.Errorf("an assessment with raw files has %d series, want %d", got, want)
	}
}
