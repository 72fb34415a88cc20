// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package traffic

import (
	"math"
	"math/rand/v2"
)

// Legitimate applications whose packets are neither independent nor regular. The packets of one
// direction of a connection are the flow.

// VoIP returns speech with silences. During talk there is a packet each period of the
// codec; during a silence there is one each noisePeriodNs, as codecs with comfort noise send,
// or none if noisePeriodNs is 0. Talking and silences have exponential lengths.
func VoIP(periodNs, talkNs, silenceNs, noisePeriodNs float64) Kind {
	return func(r *rand.Rand) Source {
		talk, silence := talkNs*r.ExpFloat64(), 0.0 // what is left of each
		return func() float64 {
			if talk -= periodNs; talk > 0 {
				return periodNs
			}
			if silence <= 0 {
				silence = silenceNs * r.ExpFloat64()
			}
			if noisePeriodNs > 0 && silence > noisePeriodNs {
				silence -= noisePeriodNs
				return noisePeriodNs
			}
			delta := silence + periodNs
			talk, silence = talkNs*r.ExpFloat64(), 0
			return delta
		}
	}
}

// SSHKeys returns what an SSH client sends while a user types: a packet for each key, and an
// acknowledgement of its echo one round trip later. A key that comes before the echo carries the
// acknowledgement. Deltas between keys are lognormal, round trips are normal.
func SSHKeys(medianNs, sigma, roundTripNs, deviationNs float64) Kind {
	return func(r *rand.Rand) Source {
		untilKey, untilEcho := 0.0, math.Inf(1)
		return func() float64 {
			if untilEcho < untilKey {
				delta := untilEcho
				untilKey, untilEcho = untilKey-delta, math.Inf(1)
				return delta
			}
			delta := untilKey
			untilKey = medianNs * math.Exp(sigma*r.NormFloat64())
			untilEcho = max(0, roundTripNs+deviationNs*r.NormFloat64())
			return delta
		}
	}
}

// Frames returns messages of several packets, one message each interval: frames of a video, or
// answers to requests. The numbers of packets are uniform from least to most, independent of
// each other. The packets of a message follow one another at the distance spacingNs.
func Frames(intervalNs float64, least, most int, spacingNs float64) Kind {
	return func(r *rand.Rand) Source {
		left, rest := 0, 0.0
		return func() float64 {
			if left--; left > 0 {
				rest -= spacingNs
				return spacingNs
			}
			delta := rest
			left, rest = least+r.IntN(most-least+1), intervalNs
			return delta
		}
	}
}

// Timers returns a sender with several timers, each of which sends a packet per period. They
// start at random phases.
func Timers(periodsNs ...float64) Kind {
	return func(r *rand.Rand) Source {
		until := make([]float64, len(periodsNs))
		for i, period := range periodsNs {
			until[i] = period * r.Float64()
		}
		return func() float64 {
			next := 0
			for i := range until {
				if until[i] < until[next] {
					next = i
				}
			}
			delta := until[next]
			for i := range until {
				until[i] -= delta
			}
			until[next] = periodsNs[next]
			return delta
		}
	}
}

// moved returns the packets of a source at other times: arrive gets the time at which a packet is
// sent and the time at which the packet before it arrived, both since the start of the flow.
func moved(source Source, arrive func(sent, before float64) float64) Source {
	sent, arrived := 0.0, 0.0
	return func() float64 {
		sent += source()
		before := arrived
		arrived = arrive(sent, before)
		return arrived - before
	}
}

// Late delays each packet by an exponential time, as queues on its path do. Packets keep their
// order.
func Late(kind Kind, meanNs float64) Kind {
	return func(r *rand.Rand) Source {
		return moved(kind(r), func(sent, before float64) float64 { return max(before, sent+meanNs*r.ExpFloat64()) })
	}
}

// BusyHost delays packets as a receiver does whose CPU has other work: free and busy times
// alternate and have exponential lengths. Packets that arrive in a busy time are processed at
// its end, one after another at the distance packetNs.
func BusyHost(kind Kind, freeNs, busyNs, packetNs float64) Kind {
	return func(r *rand.Rand) Source {
		source := kind(r)
		from := freeNs * r.ExpFloat64()
		to := from + busyNs*r.ExpFloat64()
		return moved(source, func(sent, before float64) float64 {
			for to < sent {
				from = to + freeNs*r.ExpFloat64()
				to = from + busyNs*r.ExpFloat64()
			}
			processed := max(sent, before+packetNs)
			if processed > from {
				processed = max(to, before+packetNs)
			}
			return processed
		})
	}
}
