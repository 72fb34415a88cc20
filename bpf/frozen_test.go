// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

// learningConfig has a baseline that can be saved.
func learningConfig(domain Domain) Config {
	config := testConfig()
	config.Domain, config.Baseline, config.Calibrate, config.EventRate = domain, BaselineDevice, 1e-2, MaxEventRate
	return config
}

func pareto(r *rand.Rand) float64 { return 1e4 * math.Pow(1-r.Float64(), -1/2.5) }

// learnOnce returns the learned state of a device after 60,000 packets.
func learnOnce(t *testing.T, config Config) Learnt {
	t.Helper()
	const packets = 60_000
	p := newProbe(t, config)
	r := rand.New(rand.NewPCG(1, 3))
	newInjector(t, p, packets).send(t, rounded(packets, func() float64 { return pareto(r) }))
	learnt, ok := p.Learnt()["test0"]
	if !ok {
		t.Fatal("no learned state")
	}
	if learnt.State != config.params().Corrected(p.block.Device.Baseline.state()) {
		t.Fatalf("learned %+v, but the maps hold %+v", learnt.State, p.block.Device.Baseline.state())
	}
	return learnt
}

// A frozen device is scored against the saved baseline, with the same outcome as the model for
// each packet. The baseline does not change. The flow has tokens of its own.
func TestFrozenBaselineDoesNotLearn(t *testing.T) {
	for _, domain := range []Domain{DomainLinear, DomainLog2} {
		t.Run(string(domain), func(t *testing.T) {
			config := learningConfig(domain)
			learnt := learnOnce(t, config)
			config.Frozen, config.FrozenSince = map[string]Learnt{"test0": learnt}, time.Unix(1e9, 0)
			if err := config.Validate(); err != nil {
				t.Fatal(err)
			}
			p, params := newProbe(t, config), config.params()
			saved := params.Clipped(learnt.State)
			m := newModel(config)
			r := rand.New(rand.NewPCG(2, 3))
			now, want := uint64(1e12), map[Outcome]uint64{OutcomeNewFlow: 1}
			run(t, p.program(0), udpFrame(), now, 1)
			for i := range 30_000 {
				// The deltas increase fourfold, which a learning baseline would follow.
				delta := uint64(pareto(r) * (1 + float64(i)/10_000))
				now += delta
				run(t, p.program(0), udpFrame(), now, 1)
				m.deltas++
				state, outcome := saved, OutcomeJudged
				decision, score := params.ObserveScore(&state, delta)
				switch decision {
				case timing.Early:
					outcome = OutcomeFlaggedEarly
				case timing.Late:
					outcome = OutcomeFlaggedLate
				}
				want[outcome]++
				if outcome != OutcomeJudged {
					m.flag(timing.Flagged{Score: score, DeltaNs: delta, IsLate: decision == timing.Late, NowNs: now, Samples: math.MaxUint64})
				}
			}
			suppressed := m.decisions[DecisionCommon] + m.decisions[DecisionNoToken]
			c := p.Counters()[0]
			for outcome := range NumOutcomes {
				if got := c.Packets.Outcome(outcome); got != want[outcome] {
					t.Errorf("%d packets with the outcome %s, want %d", got, outcome, want[outcome])
				}
			}
			if late := want[OutcomeFlaggedLate]; late < 300 || suppressed == 0 || c.Fates[FateSuppressed] != suppressed {
				t.Errorf("%d of %d late packets were suppressed, want %d", c.Fates[FateSuppressed], late, suppressed)
			}
			if p.block.Device != (programDeviceBaseline{}) {
				t.Error("the baseline changed")
			}
			if got := c.Baseline; got == nil || got.state() != learnt.State || !got.FrozenSince.Equal(time.Unix(1e9, 0)) {
				t.Errorf("baseline: got %+v, want %+v", got, learnt.State)
			}
			if c.Decisions != m.decisions {
				t.Errorf("decisions: got %v, want %v", c.Decisions, m.decisions)
			}
			if got := p.Learnt(); len(got) != 0 {
				t.Errorf("%d devices have a learned state to save", len(got))
			}
		})
	}
}

// A device without a saved baseline learns, although another device has one.
func TestUnfrozenDeviceLearns(t *testing.T) {
	config := learningConfig(DomainLinear)
	learnt := learnOnce(t, config)
	config.Devices = []string{"test0", "test1"}
	config.Frozen, config.FrozenSince = map[string]Learnt{"test0": learnt}, time.Now()
	p := newProbe(t, config)
	now := uint64(1e12)
	for range 200 {
		for i := range p.devices.listed {
			run(t, p.program(i), udpFrame(), now, 1)
		}
		now += 1e6
	}
	c := p.Counters()
	if got := c[0].Baseline; got.FrozenSince.IsZero() || got.state() != learnt.State {
		t.Errorf("frozen device: got %+v", got)
	}
	if got := c[1].Baseline; !got.FrozenSince.IsZero() || got.Samples != 199 || got.MeanNs() != 1e6 {
		t.Errorf("other device: got %+v", got)
	}
}

func TestFlowBaselinesAreNotSaved(t *testing.T) {
	p := newProbe(t, testConfig())
	p.learn(t, udpFrame())
	if got := p.Learnt(); len(got) != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestInvalidSavedBaselinesAreRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Config, *Learnt)
		want   string
	}{
		{"baselines of flows", func(c *Config, _ *Learnt) { c.Baseline = BaselineFlow }, "requires the baseline scope device"},
		{"fewer samples than the minimum", func(c *Config, _ *Learnt) { c.MinSamples = 2000 }, "1000 samples, too few"},
		{"too many samples", func(_ *Config, l *Learnt) { l.N = 1 << 30 }, "device test0: 1073741824 samples are not between"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := learningConfig(DomainLinear)
			learnt := Learnt{State: timing.State{N: 1000, MeanQ16: 1e6 << 16, M2: Uint128{Lo: 1e12}}}
			test.change(&config, &learnt)
			config.Frozen = map[string]Learnt{"test0": learnt}
			if err := config.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
