// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"net/netip"
)

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type exchange_class -type exchange_assessment -type exchange_set -type exchange_connection -type exchange_record -type exchange_counts -type exchange_cpu -output-stem exchange leak xdp/exchange.bpf.c -- -O3 -mcpu=v3 -Wall -Wextra -Werror -Wpadded -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// The programs of exchange.bpf.c measure the response times of services: from the last byte of a
// request, at the XDP hook, to the first byte of its response, when it leaves the device. This
// file has the types, exchange_slots.go tells the programs what to measure, and exchange_ring.go
// reads what they have measured. internal/exchange is the model of the programs.

// The limits of the measurement of response times.
const (
	MaxAssessments         = 32
	MaxExchangeConnections = 1 << 22
	MaxExchangeRecords     = 1 << 20
)

// Assessment selects the packets of a service, and divides its requests into two classes.
type Assessment struct {
	Name     string
	Device   string   // empty: every audited device
	Protocol Protocol // ProtocolTCP or ProtocolUDP
	Port     uint16   // of the service
	Classes  [2]ClassMatch
}

// ClassMatch selects the packets of a class. All members that are set have to match.
type ClassMatch struct {
	DSCP        *uint8 // 6 bits
	SourcePorts *PortRange
	Source      netip.Prefix // the zero prefix matches every address
	VLAN        *uint16      // id of the outer tag; 0 without a tag
}

// PortRange is a range of ports, with both ends.
type PortRange struct{ First, Last uint16 }

// Exclusion says why a request has no response time.
type Exclusion uint8

// The exclusions, in the order of the counters in the maps.
const (
	ExclusionNone          Exclusion = iota // the request has a response time
	ExclusionPipelined                      // sent during a response, or answered too early
	ExclusionRetransmitted                  // a segment came again, or after a later one
	ExclusionUnclassified                   // of neither class
	ExclusionMixed                          // of both classes, or in part of neither
	ExclusionUnanswered                     // its connection ended
	ExclusionEvicted                        // its connection lost its place in the table
	ExclusionRingFull                       // its response time could not be recorded
	NumExclusions
)

var exclusionNames = [NumExclusions]string{
	"none", "pipelined", "retransmitted", "unclassified", "mixed", "unanswered", "evicted", "ring_full",
}

// String returns the exclusion as in the label of a metric.
func (e Exclusion) String() string {
	if e < NumExclusions {
		return exclusionNames[e]
	}
	return fmt.Sprintf("Exclusion(%d)", uint8(e))
}

// ClassNone is the class of an [Exchange] that has none.
const ClassNone = -1

// Exchange is a request that has ended: with a response, or excluded.
type Exchange struct {
	Assessment string // name
	Class      int    // 0, 1 or ClassNone
	Exclusion  Exclusion

	TimeNs     uint64 // CLOCK_MONOTONIC at the end
	ResponseNs uint64 // from the last byte of the request; TimeNs − ResponseNs is the arrival

	Connection uint64 // no other connection since the start has the number
	Position   uint32 // number of the request in the connection, from 0; excluded requests count
	HasStart   bool   // the connection was seen from its start, so that Position is right
}

// ExchangeCounts counts the requests of an assessment. Without traffic, Requests is the sum of
// Responses, Excluded and Outstanding.
type ExchangeCounts struct {
	Assessment  string
	Requests    uint64
	Responses   [2]uint64 // by class
	Excluded    [NumExclusions]uint64
	Outstanding uint64 // requests that wait for their response
}

// measuresExchanges reports whether response times are measured.
func (c Config) measuresExchanges() bool { return c.ExchangeConnections > 0 }

// exchangeSets returns the number of sets in the table of connections, a power of two.
func (c Config) exchangeSets() uint32 {
	return powerOfTwo((c.ExchangeConnections + exchangeWays - 1) / exchangeWays)
}

// exchangeRecords returns the number of records that a CPU keeps, a power of two.
func (c Config) exchangeRecords() uint32 {
	if c.ExchangeRecords == 0 {
		return 1 << 14
	}
	return powerOfTwo(c.ExchangeRecords)
}

const exchangeWays = uint32(len(leakExchangeSet{}.Connections))

// powerOfTwo returns the smallest power of two that is not below n.
func powerOfTwo(n uint32) uint32 {
	power := uint32(1)
	for power < n {
		power *= 2
	}
	return power
}

func (c Config) validateExchanges() error {
	if !c.measuresExchanges() {
		return nil
	}
	switch {
	case c.Mode == ModeHW:
		return fmt.Errorf("mode hw and response times cannot be combined: use mode drv or skb")
	case c.ExchangeConnections < exchangeWays || c.ExchangeConnections > MaxExchangeConnections:
		return invalid("ExchangeConnections", "table of %d connections is not between %d and %d", c.ExchangeConnections, exchangeWays, MaxExchangeConnections)
	case c.ExchangeRecords == 1 || c.ExchangeRecords > MaxExchangeRecords:
		return invalid("ExchangeRecords", "%d records of a CPU are not between 2 and %d", c.ExchangeRecords, MaxExchangeRecords)
	}
	return nil
}

// validateAssessments returns an error that names the first assessment that is not valid, the value
// and the remedy.
func validateAssessments(assessments []Assessment) error {
	if n := len(assessments); n > MaxAssessments {
		return fmt.Errorf("%d assessments exceed the maximum of %d: remove some", n, MaxAssessments)
	}
	type service struct {
		protocol Protocol
		port     uint16
	}
	names, services := map[string]bool{}, map[service]string{}
	for i := range assessments {
		a := &assessments[i]
		if a.Name == "" || names[a.Name] {
			return fmt.Errorf("assessment %d has the name %q: give each assessment a name of its own", i+1, a.Name)
		}
		names[a.Name] = true
		if err := a.validate(); err != nil {
			return fmt.Errorf("assessment %s: %w", a.Name, err)
		}
		s := service{a.Protocol, a.Port}
		if other, isTaken := services[s]; isTaken {
			return fmt.Errorf("assessments %s and %s are both of port %d: remove one", other, a.Name, a.Port)
		}
		services[s] = a.Name
	}
	return nil
}

func (a *Assessment) validate() error {
	switch {
	case a.Protocol != ProtocolTCP && a.Protocol != ProtocolUDP:
		return fmt.Errorf("protocol %v is not tcp or udp", a.Protocol)
	case a.Port == 0:
		return fmt.Errorf("port 0 is not between 1 and 65535")
	}
	for i := range a.Classes {
		if err := a.Classes[i].validate(); err != nil {
			return fmt.Errorf("class %d: %w", i+1, err)
		}
	}
	if a.Classes[0].overlaps(&a.Classes[1]) {
		return fmt.Errorf("a packet may be of both classes: give both a value for the same key, and different ones")
	}
	return nil
}

func (m *ClassMatch) validate() error {
	switch {
	case m.DSCP == nil && m.SourcePorts == nil && !m.Source.IsValid() && m.VLAN == nil:
		return fmt.Errorf("every packet matches: set dscp, source_port, source or vlan")
	case m.DSCP != nil && *m.DSCP > 63:
		return fmt.Errorf("dscp %d is not between 0 and 63", *m.DSCP)
	case m.SourcePorts != nil && m.SourcePorts.First > m.SourcePorts.Last:
		return fmt.Errorf("source ports %d-%d are in the wrong order: exchange them", m.SourcePorts.First, m.SourcePorts.Last)
	case m.VLAN != nil && *m.VLAN > 4094:
		return fmt.Errorf("vlan %d is not between 0 and 4094", *m.VLAN)
	}
	return nil
}

// overlaps reports whether a packet may match both.
func (m *ClassMatch) overlaps(other *ClassMatch) bool {
	switch {
	case m.DSCP != nil && other.DSCP != nil && *m.DSCP != *other.DSCP,
		m.VLAN != nil && other.VLAN != nil && *m.VLAN != *other.VLAN,
		m.Source.IsValid() && other.Source.IsValid() && !m.Source.Overlaps(other.Source):
		return false
	}
	a, b := m.SourcePorts, other.SourcePorts
	return a == nil || b == nil || a.First <= b.Last && b.First <= a.Last
}
