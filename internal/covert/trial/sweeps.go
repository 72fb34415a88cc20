// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package trial

import (
	"fmt"

	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// Sweep has kinds of flows of one family, with parameters that are far apart.
type Sweep struct {
	Name      string
	Flows     []Flows
	IsChannel bool
}

// add adds a kind of flow. The sweep names it by its number.
func (s *Sweep) add(kind traffic.Kind) {
	s.Flows = append(s.Flows, Flows{fmt.Sprint(s.Name, " ", len(s.Flows)), kind, nil})
}

// Sweeps returns the families, those without a channel first.
func Sweeps() []Sweep {
	return []Sweep{sweepSmooth(), sweepVoIP(), sweepSSH(), sweepTicks(), sweepBusy(), sweepSymbols(), sweepOnOff()}
}

func sweepSmooth() Sweep {
	s := Sweep{Name: "smooth, means of 0.1 to 200 ms, Weibull and gamma from shape 0.3, lognormal to σ = 2.5"}
	for _, mean := range []float64{0.1, 1, 5, 20, 60, 200} {
		ns := mean * milliseconds
		for _, shape := range []float64{0.3, 0.5, 0.7, 2} {
			s.add(traffic.Weibull(ns/2, shape))
			s.add(traffic.Gamma(ns, shape))
		}
		for _, sigma := range []float64{0.3, 1, 2, 2.5} {
			s.add(traffic.Lognormal(ns/2, sigma))
		}
		s.add(hyperexponential(ns/10, 2*ns))
		s.add(traffic.Mixture(0.8, traffic.Exponential(ns/30), traffic.Exponential(3*ns)))
		s.add(traffic.Exponential(ns))
		s.add(traffic.LogAR1(ns, 0.6, 0.9))
		s.add(traffic.Pareto(ns/5, 1.1))
	}
	return s
}

func sweepVoIP() Sweep {
	s := Sweep{Name: "VoIP, packets of 10 to 60 ms, noise of none to 200 ms, jitter of 0.1 to 3 ms"}
	for _, period := range []float64{10, 20, 30, 40, 60} {
		for _, noise := range []float64{0, 80, 160, 200} {
			for _, jitter := range []float64{0.1, 0.5, 3} {
				for _, talk := range []float64{1000, 2000} {
					kind := traffic.VoIP(period*milliseconds, talk*milliseconds, 1350*milliseconds, noise*milliseconds)
					s.add(traffic.Late(kind, jitter*milliseconds))
				}
			}
		}
	}
	return s
}

func sweepSSH() Sweep {
	s := Sweep{Name: "SSH keys and ACKs, round trips of 0.2 to 250 ms ± 1 to 30 %"}
	for _, roundTrip := range []float64{0.2, 1, 5, 10, 20, 40, 80, 150, 250} {
		for _, deviation := range []float64{0.01, 0.05, 0.1, 0.3} {
			for _, median := range []float64{100, 200} {
				ns := roundTrip * milliseconds
				s.add(traffic.SSHKeys(median*milliseconds, 0.6, ns, deviation*ns))
			}
		}
	}
	return s
}

func sweepTicks() Sweep {
	s := Sweep{Name: "ticks of 10 to 400 µs, means of 0.1 to 100 ms"}
	for _, tick := range []float64{10, 25, 50, 100, 125, 200, 250, 333, 400} {
		for _, mean := range []float64{0.1, 0.5, 2, 10, 100} {
			ns := mean * milliseconds
			for _, kind := range []traffic.Kind{traffic.Exponential(ns), traffic.Lognormal(ns, 1), traffic.Constant(ns, ns/20)} {
				s.add(traffic.Polled(kind, tick*microseconds, 300))
			}
		}
	}
	return s
}

func sweepBusy() Sweep {
	s := Sweep{Name: "senders of 1 to 20 ms on a host that is busy for 0.05 to 4 ms, with or without ticks of 50 µs"}
	for _, period := range []float64{1, 2, 5, 20} {
		for _, busy := range []float64{0.05, 0.2, 1, 4} {
			for _, ratio := range []float64{0.5, 2, 8} {
				kind := traffic.BusyHost(traffic.Constant(period*milliseconds, 10e3), busy*ratio*milliseconds, busy*milliseconds, 3e3)
				s.add(kind)
				s.add(traffic.Polled(kind, 50*microseconds, 300))
			}
		}
	}
	return s
}

func sweepSymbols() Sweep {
	s := Sweep{Name: "2 to 16 symbols, 2 to 40 ms apart, jitter of 1 to 15 %", IsChannel: true}
	for _, n := range []int{2, 3, 4, 8, 16} {
		for _, distance := range []float64{2, 3, 5, 10, 40} {
			for _, jitter := range []float64{0.01, 0.05, 0.1, 0.15} {
				s.add(equidistant(n, (5+distance)*milliseconds, distance*milliseconds, jitter))
			}
		}
	}
	return s
}

func sweepOnOff() Sweep {
	s := Sweep{Name: "a packet or none in 2 to 80 ms, jitter of 1 to 10 %", IsChannel: true}
	for _, interval := range []float64{2, 5, 10, 20, 40, 80} {
		for _, jitter := range []float64{0.01, 0.05, 0.1} {
			s.add(traffic.Ticks(interval*milliseconds, jitter*interval*milliseconds))
		}
	}
	return s
}
