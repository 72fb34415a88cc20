// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package collector

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

var (
	leakResponsesDesc = newDesc("leak_responses_total", "Total number of requests of the class with a response time.", "assessment", "class")
	leakExcludedDesc  = newDesc("leak_excluded_total", "Total number of requests without a response time, by the reason.", "assessment", "reason")
	leakResponseDesc  = newDesc("leak_response_seconds",
		"Time from the last byte of a request of the class to the first byte of its response in seconds.", "assessment", "class")
	leakPairsDesc    = newDesc("leak_pairs_total", "Total number of pairs of responses, one of each class.", "assessment")
	leakEvidenceDesc = newDesc("leak_evidence_log10",
		"Highest decimal logarithm so far of the e-value against equal response times of both classes, which decides.", "assessment")
	leakCurrentDesc = newDesc("leak_evidence_current_log10",
		"Current decimal logarithm of the e-value; those of independent hosts may be added up.", "assessment")
	leakEffectDesc = newDesc("leak_effect_seconds",
		"Median of the differences of pairs in seconds, positive if the second class is slower; absent with fewer than 23 pairs.", "assessment")
	leakLowDesc = newDesc("leak_effect_low_seconds",
		"Lower end of the 95 % confidence sequence of the effect in seconds; absent with fewer than 23 pairs.", "assessment")
	leakHighDesc = newDesc("leak_effect_high_seconds",
		"Upper end of the 95 % confidence sequence of the effect in seconds; absent with fewer than 23 pairs.", "assessment")
	leakFloorDesc = newDesc("leak_floor_seconds",
		"Half of the width of the confidence sequence in seconds: smaller effects cannot be seen; absent with fewer than 23 pairs.", "assessment")
	leakTargetDesc    = newDesc("leak_target_seconds", "Configured difference in seconds up to which differences do not matter.", "assessment")
	leakVerdictDesc   = newDesc("leak_verdict", "Whether this is the verdict of the assessment; exactly one is 1.", "assessment", "verdict")
	leakCheckDesc     = newDesc("leak_check", "Whether the data of the assessment pass the check.", "assessment", "check")
	leakRawLinesDesc  = newDesc("leak_raw_lines_total", "Total number of responses written to raw files.")
	leakRawBytesDesc  = newDesc("leak_raw_bytes_total", "Total number of bytes written to raw files.")
	leakRawErrorsDesc = newDesc("leak_raw_write_errors_total", "Total number of responses that could not be written to raw files.")
	reloadDesc        = newDesc("config_last_reload_successful", "Whether the last reload of the configuration of leak assessments succeeded.")
	reloadedDesc      = newDesc("config_last_reload_success_timestamp_seconds",
		"Time of the last successful reload of the configuration of leak assessments, or of the start, in seconds since the epoch.")
	leakTScoreDesc = newDesc("leak_tscore",
		"Welch's t between the classes, of means (order 1) or variances (order 2), on the scale; it decides nothing.", "assessment", "order", "scale")
)

// Leak has the states of leak assessments. It must be safe for concurrent use.
type Leak interface {
	// Snapshot returns the states in the order of the configuration.
	Snapshot() []LeakStatus
	// LastReload returns whether the last reload of the configuration succeeded, and the time of
	// the last one that did.
	LastReload() (isSuccessful bool, succeededAt time.Time)
	// RawCounts returns what became of the lines of raw files, or nil without raw files.
	RawCounts() *LeakRawCounts
}

// LeakRawCounts counts the lines of raw files.
type LeakRawCounts struct{ Lines, Bytes, Lost uint64 }

// The types of the state of a leak assessment.
type (
	// LeakStatus is the state of an assessment.
	LeakStatus = assessment.Status
	// LeakAssessment is the configuration of an assessment.
	LeakAssessment = assessmentfile.Assessment
	// LeakConfig is the part of it that the judge needs.
	LeakConfig = leak.Config
	// LeakClass selects the packets of a class.
	LeakClass = assessmentfile.Class
	// LeakOrder says how the client assigned classes to requests.
	LeakOrder = leak.Order
	// LeakTimes is the histogram of the response times of a class.
	LeakTimes = assessment.Histogram
	// LeakBucket is a native bucket of [LeakTimes].
	LeakBucket = timing.NativeBucket
	// LeakReport is what the judge of an assessment says.
	LeakReport = leak.Report
	// LeakVerdict is the conclusion of a [LeakReport].
	LeakVerdict = leak.Verdict
	// LeakCheck is a check of the data.
	LeakCheck = leak.Check
	// LeakClassReport describes the responses of a class.
	LeakClassReport = leak.ClassReport
	// LeakScore is Welch's t between the classes.
	LeakScore = leak.Score
	// LeakDrift has correlations between batches of pairs.
	LeakDrift = leak.Drift
	// LeakPoint is the evidence after a number of pairs.
	LeakPoint = leak.Point
)

type leakCollector struct {
	leak Leak
}

// newLeakCollector takes nil without assessments.
func newLeakCollector(leak Leak) leakCollector { return leakCollector{leak} }

// Update sends the state of each assessment, and nothing without any.
func (c leakCollector) Update(ch chan<- prometheus.Metric) error {
	if c.leak == nil {
		return nil
	}
	isSuccessful, succeededAt := c.leak.LastReload()
	ch <- gauge(reloadDesc, oneIf(isSuccessful))
	ch <- gauge(reloadedDesc, float64(succeededAt.UnixNano())/1e9)
	if raw := c.leak.RawCounts(); raw != nil {
		ch <- counter(leakRawLinesDesc, float64(raw.Lines))
		ch <- counter(leakRawBytesDesc, float64(raw.Bytes))
		ch <- counter(leakRawErrorsDesc, float64(raw.Lost))
	}
	bounds := assessment.ClassicBounds()
	states := c.leak.Snapshot()
	for i := range states {
		sendResponses(ch, &states[i], bounds)
		sendReport(ch, label("assessment", states[i].Assessment.Name), &states[i].Report)
	}
	return nil
}

// sendResponses sends what became of the requests of an assessment.
func sendResponses(ch chan<- prometheus.Metric, s *LeakStatus, bounds []float64) {
	name := label("assessment", s.Assessment.Name)
	for i := range s.Responses {
		class := label("class", s.Assessment.Classes[i].Name)
		ch <- counter(leakResponsesDesc, float64(s.Responses[i]), name, class)
		native, zeros := s.Times[i].Native()
		ch <- newHistogram(leakResponseDesc, s.Responses[i], float64(s.SumNs[i])/1e9, bounds, s.Times[i].Classic(), native, zeros, name, class)
	}
	for reason := bpf.ExclusionNone + 1; reason < bpf.NumExclusions; reason++ {
		ch <- counter(leakExcludedDesc, float64(s.Excluded[reason]), name, label("reason", reason.String()))
	}
}

// sendReport sends what the judge of an assessment says.
func sendReport(ch chan<- prometheus.Metric, name *dto.LabelPair, r *LeakReport) {
	ch <- counter(leakPairsDesc, float64(r.Pairs), name)
	ch <- gauge(leakEvidenceDesc, r.EvidenceLog10, name)
	ch <- gauge(leakCurrentDesc, r.EvidenceCurrentLog10, name)
	ch <- gauge(leakTargetDesc, r.TargetNs/1e9, name)
	if r.HasInterval {
		ch <- gauge(leakEffectDesc, r.EffectNs/1e9, name)
		ch <- gauge(leakLowDesc, r.LowNs/1e9, name)
		ch <- gauge(leakHighDesc, r.HighNs/1e9, name)
		ch <- gauge(leakFloorDesc, r.FloorNs/1e9, name)
	}
	for verdict := range leak.NumVerdicts {
		ch <- gauge(leakVerdictDesc, oneIf(verdict == r.Verdict), name, label("verdict", verdict.String()))
	}
	for _, check := range r.Checks {
		ch <- gauge(leakCheckDesc, oneIf(check.Passes), name, label("check", check.Name))
	}
	for _, score := range r.Scores {
		ch <- gauge(leakTScoreDesc, score.T, name, label("order", strconv.Itoa(score.Order)), label("scale", score.Scale))
	}
}
