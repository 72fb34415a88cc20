// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package leak judges whether the response time of a service depends on the class of the request.
//
// A [Judge] takes the responses of one assessment in the order in which their requests arrived. Its
// conclusions are valid however often it is asked: they rest on e-processes (Ville, 1939; Ramdas et
// al., 2023) under the hypothesis that the labels were assigned at random. docs/leak.md says what
// each conclusion means, what it does not mean, and which simulations support it.
package leak

import (
	"fmt"
	"math"
	"slices"
)

// Class is the class of a request.
type Class uint8

// The two classes of an assessment. Unknown is the class of an excluded request that has none, or
// several.
const (
	X Class = iota
	Y
	Unknown
)

// Order says how the client assigned classes to requests.
type Order uint8

// The orders. Random: each class by a fair coin. Blocks: blocks of two on each connection, one
// request of each class in random order. Observed: nobody assigned the classes.
const (
	Random Order = iota
	Blocks
	Observed
)

var orderNames = [...]string{"random", "blocks", "observed"}

// String returns the value of the configuration.
func (o Order) String() string { return orderNames[o] }

// ParseOrder returns the order of that name.
func ParseOrder(name string) (Order, error) {
	for order, known := range orderNames {
		if name == known {
			return Order(order), nil
		}
	}
	return 0, fmt.Errorf("order %.50q is not known: use random, blocks or observed", name)
}

// Config is the configuration of an assessment.
type Config struct {
	Order    Order
	Classes  [2]string // names of X and Y
	TargetNs float64   // differences up to this do not matter
	Alpha    float64   // greatest probability of enough evidence without a difference
	TickNs   float64   // resolution of the clock
}

// Validate returns an error that names a value that cannot be used.
func (c Config) Validate() error {
	switch {
	case int(c.Order) >= len(orderNames):
		return fmt.Errorf("order %d is not known: use Random, Blocks or Observed", c.Order)
	case !(c.TargetNs >= 0) || math.IsInf(c.TargetNs, 0):
		return fmt.Errorf("target %v ns is not a duration: use 0 or more", c.TargetNs)
	case !(c.Alpha > 0 && c.Alpha < 1):
		return fmt.Errorf("alpha %v is not a probability: use a value between 0 and 1, such as 1e-5", c.Alpha)
	case !(c.TickNs >= 0) || math.IsInf(c.TickNs, 0):
		return fmt.Errorf("tick %v ns is not a duration: use 0 or more", c.TickNs)
	case c.Classes[0] == c.Classes[1]:
		return fmt.Errorf("both classes have the name %q: use two different names", c.Classes[0])
	}
	return nil
}

// Request is the place of a request. The order Blocks needs its connection and its number in it.
type Request struct {
	Class Class
	// TimeNs is the time of the request by any clock.
	TimeNs uint64
	// Connection identifies the connection among those that are open.
	Connection uint64
	// Number counts the requests of the connection from 0, including excluded ones.
	Number uint32
	// IsMiddle says that the connection was first seen after its beginning, so that an unknown
	// number of requests came before number 0.
	IsMiddle bool
}

// Judge judges one assessment. Its memory does not grow. It is not safe for concurrent use.
type Judge struct {
	config Config

	classes  [2]class
	excluded [3]uint64 // by class
	dropped  uint64    // blocks with an excluded member
	labels   labels

	half        response // the first of a pair of the orders Random and Observed
	hasHalf     bool
	connections *connections // nil for other orders than Blocks

	recent       []uint64 // times since the last quantiles
	distribution distribution
	existence    coin
	evidence     evidence
	differences  differences
	levels       levels
	history      history
}

// response is a response of which the logarithm is known.
type response struct {
	class  Class
	ns     uint64
	octave float64 // log2 of ns
	timeNs uint64
}

// New returns a Judge without any response.
func New(config Config) (*Judge, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return newJudge(config, recentResponses), nil
}

// recentResponses is the number of responses after which there are new quantiles.
const recentResponses = 512

// newJudge takes new quantiles after that many responses.
func newJudge(config Config, every int) *Judge {
	j := &Judge{
		config: config, existence: coin{prior: existencePrior}, labels: newLabels(config.Order), recent: make([]uint64, 0, every),
		levels: levels{targetNs: config.TargetNs}, history: newHistory(),
	}
	if config.Order == Blocks {
		j.connections = newConnections()
	}
	j.distribution.reset()
	return j
}

// Response takes a clean response that needed that many nanoseconds, at most [LongestNs]. One of no
// known class is excluded.
func (j *Judge) Response(r Request, ns uint64) {
	if r.Class >= Unknown {
		j.Exclude(r)
		return
	}
	ns = min(ns, LongestNs)
	now := response{r.Class, ns, math.Log2(float64(max(ns, 1))), r.TimeNs}
	j.classes[r.Class].add(ns, now.octave)
	if len(j.recent) == cap(j.recent) {
		slices.Sort(j.recent)
		j.distribution.fix(j.recent)
		j.levels.fix(j.recent)
		j.recent = j.recent[:0]
	}
	j.recent = append(j.recent, ns)
	if j.connections != nil {
		j.connections.add(j, r, now, false)
		return
	}
	j.labels.all.add(r.Class)
	j.labels.included.add(r.Class)
	j.distribution.add(r.Class, ns, j.config.Order == Observed)
	if !j.hasHalf {
		j.half, j.hasHalf = now, true
		return
	}
	j.hasHalf = false
	if j.half.class != now.class {
		j.pair(j.half, now)
	}
	j.look(j.distribution.logE())
}

// Exclude takes a request without a clean response, or whose class is Unknown.
func (j *Judge) Exclude(r Request) {
	r.Class = min(r.Class, Unknown)
	j.excluded[r.Class]++
	if j.connections != nil {
		j.connections.add(j, r, response{class: r.Class}, true)
		return
	}
	if r.Class != Unknown {
		j.labels.all.add(r.Class)
	}
}

// block takes a complete block without an excluded member.
func (j *Judge) block(first, second response) {
	x, y := inOrder(first, second)
	j.distribution.addBlock(x.ns, y.ns)
	j.pair(first, second)
	j.look(j.distribution.logE())
}

// pair takes two responses of different classes in the order in which their requests arrived.
func (j *Judge) pair(first, second response) {
	x, y := inOrder(first, second)
	d := int64(y.ns) - int64(x.ns)
	if d != 0 {
		j.existence.add(d > 0)
	}
	j.differences.add(d)
	j.levels.add(x.ns, y.ns)
	j.history.add(x.octave, y.octave, second.timeNs)
}

// look evaluates the evidence at the end of a pair.
func (j *Judge) look(logDistribution float64) {
	j.evidence.look(j.existence.logE, logDistribution)
	if j.history.isDue() {
		j.history.next(j.evidence)
	}
}

func inOrder(a, b response) (x, y response) {
	if a.class == X {
		return a, b
	}
	return b, a
}
