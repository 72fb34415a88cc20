// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package trial simulates assessments: services whose response times depend on each other and
// drift, and clients that assign classes to their requests.
package trial

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

// Service is a kind of response times in nanoseconds when the class does not matter.
type Service struct {
	Name string
	Kind traffic.Kind
}

// Effect changes a response time of class Y.
type Effect func(r *rand.Rand, ns float64) float64

// Client assigns classes to requests.
type Client struct {
	Name        string
	Order       leak.Order
	ShareOfY    float64    // of the order Random
	Connections int        // that are used in random order
	Lost        [2]float64 // probability that a request is excluded, by class
	Run         int        // requests of a class in a row, instead of random classes; 0 for none
}

// Trial is a kind of assessment.
type Trial struct {
	Client  Client
	Service Service
	Effect  Effect // nil for none
	Config  leak.Config
}

// Config returns a configuration with a target of 1 µs.
func Config(order leak.Order) leak.Config {
	return leak.Config{Order: order, Classes: [2]string{"fixed", "random"}, TargetNs: 1000, Alpha: 1e-5, TickNs: 1}
}

// New returns a trial.
func New(c Client, s Service, e Effect) Trial { return Trial{c, s, e, Config(c.Order)} }

// String returns the name of the trial.
func (t *Trial) String() string { return t.Client.Name + ": " + t.Service.Name }

// request is a request of the client.
type request struct {
	leak.Request
	isLost bool
}

// requests returns a function that returns the next request of the client.
func (c *Client) requests(r *rand.Rand) func() request {
	numbers, first := make([]uint32, c.Connections), make([]leak.Class, c.Connections)
	sent := 0
	coin := func(p float64) leak.Class {
		if r.Float64() < p {
			return leak.Y
		}
		return leak.X
	}
	return func() request {
		i := r.IntN(c.Connections)
		q := request{Request: leak.Request{Connection: uint64(i), Number: numbers[i], TimeNs: uint64(sent) * 1e6}}
		switch {
		case c.Run > 0:
			q.Class = leak.Class(sent / c.Run % 2)
		case c.Order != leak.Blocks:
			q.Class = coin(c.ShareOfY)
		case numbers[i]%2 == 0:
			q.Class = coin(0.5)
			first[i] = q.Class
		default:
			q.Class = 1 - first[i]
		}
		q.isLost = r.Float64() < c.Lost[q.Class]
		numbers[i]++
		sent++
		return q
	}
}

// Run runs an assessment with that many pairs, or until stop returns true after a pair. Without any
// pair in a thousand requests per wanted pair it ends too.
func (t *Trial) Run(seed uint64, pairs int, stop func(*leak.Judge) bool) *leak.Judge {
	j, err := leak.New(t.Config)
	if err != nil {
		panic(fmt.Sprintf("trial: %v", err))
	}
	r := traffic.Rand(seed, t.String())
	next, service := t.Client.requests(r), t.Service.Kind(r)
	seen := uint64(0)
	for range 1000 * pairs {
		q := next()
		ns := service()
		if q.Class == leak.Y && t.Effect != nil {
			ns = t.Effect(r, ns)
		}
		if q.isLost {
			j.Exclude(q.Request)
		} else {
			j.Response(q.Request, uint64(math.Round(max(ns, 0))))
		}
		if j.Pairs() == seen {
			continue
		}
		seen = j.Pairs()
		if seen >= uint64(pairs) || stop != nil && stop(j) {
			break
		}
	}
	return j
}

// PairsOf returns the pairs of that many responses of each class. Half of the pairs of random order
// have equal classes.
func PairsOf(order leak.Order, responses int) int {
	if order == leak.Blocks {
		return responses
	}
	return responses / 2
}

// IsFound stops a run at that evidence.
func IsFound(log10 float64) func(*leak.Judge) bool {
	return func(j *leak.Judge) bool { return j.EvidenceLog10() >= log10 }
}

// Clients returns clients whose classes have no influence: the evidence must stay low.
func Clients() []Client {
	return []Client{
		{Name: "random", Order: leak.Random, ShareOfY: 0.5, Connections: 1},
		{Name: "blocks", Order: leak.Blocks, Connections: 1},
		{Name: "random, shares of 60:40", Order: leak.Random, ShareOfY: 0.6, Connections: 1},
		{Name: "random, 30 % of one class lost", Order: leak.Random, ShareOfY: 0.5, Connections: 1, Lost: [2]float64{0, 0.3}},
		{Name: "blocks, 30 % of one class lost", Order: leak.Blocks, Connections: 1, Lost: [2]float64{0.3, 0}},
		{Name: "random, 50 connections", Order: leak.Random, ShareOfY: 0.5, Connections: 50},
		{Name: "blocks, 50 connections", Order: leak.Blocks, Connections: 50},
	}
}

// Noises returns services for the interval of an effect.
func Noises() []Service {
	return append(Services(),
		Service{"exponential", traffic.Exponential(20e3)},
		Service{"lognormal, σ = 0.5", traffic.Lognormal(50e3, 0.5)},
		Service{"Pareto, shape 1.5", traffic.Pareto(30e3, 1.5)},
	)
}

// IsValid reports whether no check may refuse the data of the client.
func (c *Client) IsValid() bool {
	return c.Run == 0 && c.Lost == [2]float64{} && (c.Order != leak.Random || c.ShareOfY == 0.5)
}

// Services returns services whose response times depend on each other.
func Services() []Service {
	return []Service{
		{"normal", traffic.Constant(200e3, 10e3)},
		{"AR(1), ρ = 0.9, with drift", Drifting(0.9)},
		{"sawtooth", Sawtooth(200e3, 100e3, 400, 5e3)},
	}
}

// Drifting is an AR(1) process of a standard deviation of 10 µs, whose mean grows from 200 µs by 5
// ns a response.
func Drifting(rho float64) traffic.Kind {
	return func(r *rand.Rand) traffic.Source {
		source := traffic.AR1(200e3, 10e3, rho)(r)
		drift := 0.
		return func() float64 {
			drift += 5
			return source() + drift
		}
	}
}

// Moved is a normal kind whose mean doubles to 200 µs after that many responses.
func Moved(responses int, deviationNs float64) traffic.Kind {
	return traffic.Shift(traffic.Constant(100e3, deviationNs), responses, traffic.Constant(200e3, deviationNs))
}

// Rising is a normal kind whose mean grows from 200 µs by that much a response.
func Rising(byNs, deviationNs float64) traffic.Kind {
	return func(r *rand.Rand) traffic.Source {
		mean := 200e3
		return func() float64 {
			mean += byNs
			return mean + deviationNs*r.NormFloat64()
		}
	}
}

// Sawtooth grows by height within a period of responses and falls back, as the times of a process
// with a garbage collector do.
func Sawtooth(lowestNs, heightNs float64, period int, deviationNs float64) traffic.Kind {
	return func(r *rand.Rand) traffic.Source {
		i := r.IntN(period)
		return func() float64 {
			i = (i + 1) % period
			return lowestNs + heightNs*float64(i)/float64(period) + deviationNs*r.NormFloat64()
		}
	}
}

// Longer is an effect that adds a constant.
func Longer(ns float64) Effect { return func(_ *rand.Rand, t float64) float64 { return t + ns } }

// Sometimes is an effect that adds a constant to a fraction of the responses.
func Sometimes(fraction, ns float64) Effect {
	return func(r *rand.Rand, t float64) float64 {
		if r.Float64() < fraction {
			return t + ns
		}
		return t
	}
}

// Moving is an effect that multiplies by a factor which changes with time: the exponential of an
// AR(1) process around the mean logarithm of the factor.
func Moving(logMean, deviation, rho float64) func(r *rand.Rand) Effect {
	return func(r *rand.Rand) Effect {
		state := deviation * r.NormFloat64()
		return func(r *rand.Rand, t float64) float64 {
			state = rho*state + deviation*math.Sqrt(1-rho*rho)*r.NormFloat64()
			return t * math.Exp(logMean+state)
		}
	}
}

// Wider is an effect that multiplies the variance around a median.
func Wider(medianNs, variance float64) Effect {
	return func(_ *rand.Rand, t float64) float64 { return medianNs + (t-medianNs)*math.Sqrt(variance) }
}
