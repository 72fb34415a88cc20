// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/exchange"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// requestAndResponse returns a packet of a client that is a request, and one of the server that is
// its response.
func requestAndResponse(p peer) (request, response []byte) {
	s := exchange.Segment{Flags: exchange.ACK, Seq: 1000, Ack: 5000, Len: 10}
	request = p.frame(s, dscpX)
	s.Seq, s.Ack, s.FromServer = s.Ack, s.Seq+s.Len, true
	return request, p.frame(s, 0)
}

var (
	ipv4Peer = peer{client: netip.MustParseAddrPort("192.0.2.77:40000"), server: netip.MustParseAddrPort("198.51.100.9:443")}
	ipv6Peer = peer{client: netip.MustParseAddrPort("[2001:db8::77]:40000"), server: netip.MustParseAddrPort("[2001:db8:1::9]:443")}
)

// in inserts bytes into a frame.
func in(frame []byte, at int, b ...byte) []byte { return slices.Insert(slices.Clone(frame), at, b...) }

func set16(frame []byte, at int, v int) []byte {
	changed := slices.Clone(frame)
	binary.BigEndian.PutUint16(changed[at:], uint16(v))
	return changed
}

func get16(frame []byte, at int) int { return int(binary.BigEndian.Uint16(frame[at:])) }

// Frames of all forms in which a request and its response may come.
func TestFormsOfExchanges(t *testing.T) {
	const ip = 14
	request4, response4 := requestAndResponse(ipv4Peer)
	request6, response6 := requestAndResponse(ipv6Peer)
	withOptions := func(frame []byte) []byte {
		longer := in(frame, ip+20, 1, 1, 1, 1)
		longer[ip] = 0x46
		return set16(longer, ip+2, get16(frame, ip+2)+4)
	}
	withExtension := func(frame []byte) []byte { // destination options of 8 bytes
		longer := in(frame, ip+40, frame[ip+6], 0, 1, 4, 0, 0, 0, 0)
		longer[ip+6] = 60
		return set16(longer, ip+4, get16(frame, ip+4)+8)
	}
	withTCPOptions := func(frame []byte) []byte {
		longer := in(frame, ip+40, 1, 1, 1, 0)
		longer[ip+32] = 6 << 4
		return set16(longer, ip+2, get16(frame, ip+2)+4)
	}
	tag := func(frame []byte, tags ...byte) []byte { return in(frame, 12, tags...) }
	padded := func(frame []byte) []byte { return append(slices.Clone(frame), make([]byte, 20)...) }
	udp4, udp6 := ipv4Peer, ipv6Peer
	udp4.isUDP, udp6.isUDP = true, true
	udpRequest4, udpResponse4 := requestAndResponse(udp4)
	udpRequest6, udpResponse6 := requestAndResponse(udp6)
	for _, test := range []struct {
		about             string
		request, response []byte
		link              netdev.LinkLayer
		isNone            bool // no request
	}{
		{about: "IPv4", request: request4, response: response4},
		{about: "IPv6", request: request6, response: response6},
		{about: "UDP over IPv4", request: udpRequest4, response: udpResponse4},
		{about: "UDP over IPv6", request: udpRequest6, response: udpResponse6},
		{about: "options of IPv4", request: withOptions(request4), response: withOptions(response4)},
		{about: "an extension header of IPv6", request: withExtension(request6), response: withExtension(response6)},
		{about: "options of TCP", request: withTCPOptions(request4), response: withTCPOptions(response4)},
		{about: "a VLAN tag on the request", request: tag(request4, 0x81, 0, 0, 5), response: response4},
		{about: "two VLAN tags", request: tag(request6, 0x88, 0xa8, 0, 5, 0x81, 0, 0, 6), response: tag(response6, 0x88, 0xa8, 0, 5, 0x81, 0, 0, 6)},
		{about: "padding", request: padded(request4), response: padded(response4)},
		{about: "a device without Ethernet", request: request4[ip:], response: response4[ip:], link: netdev.LinkIP},
		{about: "a device without Ethernet, IPv6", request: request6[ip:], response: response6[ip:], link: netdev.LinkIP},
		{about: "a fragment, whose length is not that of the request", request: set16(request4, ip+6, 0x2000), response: response4, isNone: true},
		{about: "PPPoE, which hides the response", request: ethernet(etherPPPoE, pppoe(pppIPv4, request4[ip:])), response: response4, isNone: true},
		{about: "no data", request: set16(request4, ip+2, 40), response: response4, isNone: true},
	} {
		t.Run(test.about, func(t *testing.T) {
			protocol := ProtocolTCP
			if strings.HasPrefix(test.about, "UDP") {
				protocol = ProtocolUDP
			}
			config := testConfig()
			config.ExchangeConnections = 64
			audit := loadTestOn(t, config, test.link)
			if err := audit.SetAssessments([]Assessment{service("login", protocol, servicePort)}); err != nil {
				t.Fatal(err)
			}
			run(t, audit.program(0), test.request, 5000, 1)
			if test.link == netdev.LinkEthernet { // a test run expects Ethernet of this program
				runSent(t, audit.devices.listed[0].program.egress, test.response, 9000)
			}
			c, _ := audit.ExchangeCounts()
			want := ExchangeCounts{Assessment: "login", Requests: 1, Responses: [2]uint64{1, 0}}
			switch {
			case test.isNone:
				want.Requests, want.Responses = 0, [2]uint64{}
			case test.link != netdev.LinkEthernet:
				want.Responses, want.Outstanding = [2]uint64{}, 1
			}
			if c[0] != want {
				t.Errorf("counted %+v, want %+v", c[0], want)
			}
		})
	}
}

// The keys of a class.
func TestClassesOfRequests(t *testing.T) {
	client4, client6 := ipv4Peer.client, ipv6Peer.client
	ports := func(first, last uint16) *PortRange { return &PortRange{first, last} }
	never := ClassMatch{SourcePorts: ports(1, 1), DSCP: ptr[uint8](63), VLAN: ptr[uint16](99)}
	audit := loadExchanges(t, nil)
	isn := uint32(1000)
	for _, test := range []struct {
		about   string
		match   ClassMatch
		on      peer
		isOther bool
	}{
		{"dscp", ClassMatch{DSCP: ptr[uint8](dscpX)}, ipv4Peer, false},
		{"another dscp", ClassMatch{DSCP: ptr[uint8](0)}, ipv4Peer, true},
		{"dscp of IPv6", ClassMatch{DSCP: ptr[uint8](dscpX)}, ipv6Peer, false},
		{"the lowest port", ClassMatch{SourcePorts: ports(40_000, 40_010)}, ipv4Peer, false},
		{"the highest port", ClassMatch{SourcePorts: ports(39_990, 40_000)}, ipv6Peer, false},
		{"a port below", ClassMatch{SourcePorts: ports(40_001, 65_535)}, ipv4Peer, true},
		{"a port above", ClassMatch{SourcePorts: ports(0, 39_999)}, ipv4Peer, true},
		{"an address", ClassMatch{Source: netip.PrefixFrom(client4.Addr(), 32)}, ipv4Peer, false},
		{"another address", ClassMatch{Source: netip.PrefixFrom(client4.Addr().Next(), 32)}, ipv4Peer, true},
		{"a network of 27 bits", ClassMatch{Source: netip.MustParsePrefix("192.0.2.64/27")}, ipv4Peer, false},
		{"the next network", ClassMatch{Source: netip.MustParsePrefix("192.0.2.96/27")}, ipv4Peer, true},
		{"all of IPv4", ClassMatch{Source: netip.MustParsePrefix("0.0.0.0/0")}, ipv4Peer, false},
		{"IPv6 is not of IPv4", ClassMatch{Source: netip.MustParsePrefix("0.0.0.0/0")}, ipv6Peer, true},
		{"an address of IPv6", ClassMatch{Source: netip.PrefixFrom(client6.Addr(), 128)}, ipv6Peer, false},
		{"a network of IPv6", ClassMatch{Source: netip.MustParsePrefix("2001:db8::/45")}, ipv6Peer, false},
		{"another network of IPv6", ClassMatch{Source: netip.MustParsePrefix("2001:db8:1::/48")}, ipv6Peer, true},
		{"a VLAN", ClassMatch{VLAN: ptr[uint16](7)}, peer{client4, ipv4Peer.server, false, 7}, false},
		{"another VLAN", ClassMatch{VLAN: ptr[uint16](8)}, peer{client4, ipv4Peer.server, false, 7}, true},
		{"no VLAN", ClassMatch{VLAN: ptr[uint16](0)}, ipv4Peer, false},
		{"all keys", ClassMatch{ptr[uint8](dscpX), ports(40_000, 40_000), netip.MustParsePrefix("192.0.2.0/24"), ptr[uint16](7)},
			peer{client4, ipv4Peer.server, false, 7}, false},
		{"all keys but one", ClassMatch{ptr[uint8](dscpX), ports(40_001, 40_001), netip.MustParsePrefix("192.0.2.0/24"), ptr[uint16](7)},
			peer{client4, ipv4Peer.server, false, 7}, true},
	} {
		t.Run(test.about, func(t *testing.T) {
			for class := range 2 {
				a := Assessment{Name: "login", Protocol: ProtocolTCP, Port: servicePort, Classes: [2]ClassMatch{never, never}}
				a.Classes[class] = test.match
				audit.exchanges.set([]Assessment{a}) // the classes may overlap here
				isn -= 100                           // of a connection that is new each time
				run(t, audit.program(0), test.on.frame(exchange.Segment{Flags: exchange.SYN, Seq: isn - 1}, dscpX), 5000, 1)
				s := exchange.Segment{Flags: exchange.ACK, Seq: isn, Len: 10}
				run(t, audit.program(0), test.on.frame(s, dscpX), 5000, 1)
				s = exchange.Segment{FromServer: true, Flags: exchange.ACK, Ack: isn + 10, Len: 10}
				runSent(t, audit.devices.listed[0].program.egress, test.on.frame(s, 0), 9000)
				audit.exchanges.read(func(batch []Exchange) {
					want := class
					if test.isOther {
						want = ClassNone
					}
					if len(batch) != 1 || batch[0].Class != want || batch[0].ResponseNs != 4000 {
						t.Errorf("got %+v, want class %d", batch, want)
					}
				})
			}
		})
	}
}

func TestLimitsOfExchanges(t *testing.T) {
	for _, test := range []struct {
		connections, records uint32
		mode                 Mode
		wantSets             uint32 // 0: refused
		wantField            string
	}{
		{8, 16_384, ModeDriver, 1, ""},
		{9, 16_384, ModeDriver, 2, ""},
		{65_536, 2, ModeGeneric, 8192, ""},
		{MaxExchangeConnections, MaxExchangeRecords, ModeAuto, MaxExchangeConnections / 8, ""},
		{8, 0, ModeDriver, 1, ""},
		{7, 2, ModeDriver, 0, "ExchangeConnections"},
		{MaxExchangeConnections + 1, 2, ModeDriver, 0, "ExchangeConnections"},
		{8, 1, ModeDriver, 0, "ExchangeRecords"},
		{8, MaxExchangeRecords + 1, ModeDriver, 0, "ExchangeRecords"},
		{8, 16_384, ModeHW, 0, ""},
		{0, 0, ModeDriver, 1, ""},
	} {
		config := testConfig()
		config.ExchangeConnections, config.ExchangeRecords, config.Mode = test.connections, test.records, test.mode
		err := config.Validate()
		var field *ConfigError
		errors.As(err, &field)
		if (err == nil) != (test.wantSets > 0) || (field != nil) != (test.wantField != "") || field != nil && field.Field != test.wantField {
			t.Errorf("%+v: %v", test, err)
		}
		if sets := config.exchangeSets(); test.wantSets > 0 && sets != test.wantSets {
			t.Errorf("%+v: %d sets", test, sets)
		}
	}
}

func TestAssessmentsAreChecked(t *testing.T) {
	valid := service("login", ProtocolTCP, 443)
	changed := func(f func(*Assessment)) []Assessment {
		a := service("other", ProtocolTCP, 444)
		f(&a)
		return []Assessment{valid, a}
	}
	many := make([]Assessment, MaxAssessments+1)
	for _, test := range []struct {
		about string
		given []Assessment
		want  string // empty: valid
	}{
		{"two", changed(func(*Assessment) {}), ""},
		{"the same port of another protocol", changed(func(a *Assessment) { a.Port, a.Protocol = 443, ProtocolUDP }), ""},
		{"the same port", changed(func(a *Assessment) { a.Port = 443 }), "login and other are both of port 443"},
		{"the same port of other devices", changed(func(a *Assessment) { a.Port, a.Device = 443, "eth1" }), "port 443"},
		{"the same name", changed(func(a *Assessment) { a.Name = "login" }), `"login"`},
		{"no name", changed(func(a *Assessment) { a.Name = "" }), "name of its own"},
		{"too many", many, "maximum of 32"},
		{"a protocol without ports", changed(func(a *Assessment) { a.Protocol = ProtocolICMP }), "icmp is not tcp or udp"},
		{"no port", changed(func(a *Assessment) { a.Port = 0 }), "port 0"},
		{"no key", changed(func(a *Assessment) { a.Classes[1] = ClassMatch{} }), "class 2: every packet"},
		{"too large a dscp", changed(func(a *Assessment) { a.Classes[0].DSCP = ptr[uint8](64) }), "dscp 64"},
		{"too large a VLAN id", changed(func(a *Assessment) { a.Classes[0].VLAN = ptr[uint16](4095) }), "vlan 4095"},
		{"ports in the wrong order", changed(func(a *Assessment) { a.Classes[0].SourcePorts = &PortRange{2, 1} }), "2-1"},
		{"equal classes", changed(func(a *Assessment) { a.Classes[1] = a.Classes[0] }), "of both classes"},
		{"classes with different keys", changed(func(a *Assessment) {
			a.Classes = [2]ClassMatch{{DSCP: ptr[uint8](1)}, {VLAN: ptr[uint16](1)}}
		}), "of both classes"},
		{"networks of which one has the other", changed(func(a *Assessment) {
			a.Classes = [2]ClassMatch{{Source: netip.MustParsePrefix("10.0.0.0/8")}, {Source: netip.MustParsePrefix("10.1.0.0/16")}}
		}), "of both classes"},
		{"ranges of ports that share a port", changed(func(a *Assessment) {
			a.Classes = [2]ClassMatch{{SourcePorts: &PortRange{1, 10}}, {SourcePorts: &PortRange{10, 20}}}
		}), "of both classes"},
		{"ranges of ports that share none", changed(func(a *Assessment) {
			a.Classes = [2]ClassMatch{{SourcePorts: &PortRange{1, 10}}, {SourcePorts: &PortRange{11, 20}}}
		}), ""},
	} {
		t.Run(test.about, func(t *testing.T) {
			err := validateAssessments(test.given)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// An assessment that is replaced does not get the responses of another, and one that stays keeps
// its counts and its outstanding requests.
func TestAssessmentsAreReplaced(t *testing.T) {
	kept, old := service("kept", ProtocolTCP, 443), service("old", ProtocolTCP, 444)
	audit := loadExchanges(t, nil, old, kept)
	program := audit.devices.listed[0].program
	of := func(port uint16) (request, response []byte) {
		p := ipv4Peer
		p.server = netip.AddrPortFrom(p.server.Addr(), port)
		return requestAndResponse(p)
	}
	requestKept, responseKept := of(443)
	requestOld, responseOld := of(444)
	run(t, program.Program, requestKept, 1000, 1)
	run(t, program.Program, requestOld, 2000, 1)
	changed := old
	changed.Classes[0].DSCP = ptr[uint8](1)
	for range 3 * assessmentSlots { // every slot is used again
		if err := audit.SetAssessments([]Assessment{kept, changed}); err != nil {
			t.Fatal(err)
		}
		changed.Classes[0].DSCP = ptr(*changed.Classes[0].DSCP ^ 1)
	}
	counts, _ := audit.ExchangeCounts()
	want := []ExchangeCounts{{Assessment: "kept", Requests: 1, Outstanding: 1}, {Assessment: "old"}}
	if !reflect.DeepEqual(counts, want) {
		t.Errorf("after the change: got %+v, want %+v", counts, want)
	}
	runSent(t, program.egress, responseOld, 3000)
	runSent(t, program.egress, responseKept, 4000)
	want[0].Outstanding, want[0].Responses[0] = 0, 1
	if counts, _ = audit.ExchangeCounts(); !reflect.DeepEqual(counts, want) {
		t.Errorf("after the responses: got %+v, want %+v", counts, want)
	}
	if err := audit.SetAssessments(nil); err != nil {
		t.Fatal(err)
	}
	run(t, program.Program, requestKept, 5000, 1)
	if counts, _ = audit.ExchangeCounts(); len(counts) != 0 {
		t.Errorf("without assessments: %+v", counts)
	}
	if err := audit.SetAssessments([]Assessment{kept, kept}); err == nil {
		t.Error("two assessments of one name were accepted")
	}
}

// The oldest outstanding request is that of the assessments in use, and not older than asked for.
func TestOldestOutstanding(t *testing.T) {
	kept, old := service("kept", ProtocolTCP, 443), service("old", ProtocolTCP, 444)
	audit := loadExchanges(t, nil, kept, old)
	program := audit.devices.listed[0].program
	const none, nowNs = math.MaxUint64, 10_000
	expect := func(when string, sinceNs, want uint64) {
		t.Helper()
		for _, wrapNs := range []uint64{0, 1 << 46} { // the kernel keeps 46 bits
			wanted := want
			if want != none {
				wanted += wrapNs
			}
			if got := audit.exchanges.oldestOutstanding(wrapNs+sinceNs, wrapNs+nowNs); got != wanted {
				t.Errorf("%s, since %d ns: got %d, want %d", when, wrapNs+sinceNs, got, wanted)
			}
		}
	}
	expect("at first", 0, none)
	var responses [][]byte
	for i, port := range []uint16{444, 443} {
		p := ipv4Peer
		p.server = netip.AddrPortFrom(p.server.Addr(), port)
		request, response := requestAndResponse(p)
		responses = append(responses, response)
		run(t, program.Program, request, uint64(1000*(i+1)), 1)
	}
	expect("two requests", 0, 1000)
	expect("two requests", 1000, 1000)
	expect("two requests", 1001, 2000)
	expect("two requests", 2001, none)
	if err := audit.SetAssessments([]Assessment{kept}); err != nil {
		t.Fatal(err)
	}
	expect("one was removed", 0, 2000)
	runSent(t, program.egress, responses[1], 3000)
	expect("after the response", 0, none)
	if got := audit.OldestOutstanding(0); got != none {
		t.Errorf("now: got %d", got)
	}
}

// An assessment of a device is not one of others.
func TestAssessmentsOfDevices(t *testing.T) {
	a := service("login", ProtocolTCP, servicePort)
	a.Device = "test1"
	audit := loadExchanges(t, func(c *Config) { c.Devices = []string{"test0", "test1"} }, a)
	request, _ := requestAndResponse(ipv4Peer)
	for device, want := range []uint64{0, 1} {
		run(t, audit.program(device), request, 1000, 1)
		if counts, _ := audit.ExchangeCounts(); counts[0].Requests != want {
			t.Errorf("after a request on device %d: %+v", device, counts)
		}
	}
}

// Without space, a response is counted as excluded, and an excluded request as lost.
func TestFullRing(t *testing.T) {
	audit := loadExchanges(t, func(c *Config) { c.ExchangeRecords = 2 }, service("login", ProtocolTCP, servicePort))
	pinToCPU(t) // each CPU has a ring
	p := newExchangeProbe(t, audit)
	on := peerOf(0)
	seq, ack := uint32(0), uint32(0)
	for i := range 4 {
		p.nowNs += 1000
		class := exchange.ClassX
		if i == 3 {
			class = exchange.ClassNone
		}
		p.send(t, on, exchange.Segment{Flags: exchange.ACK, Seq: seq, Ack: ack, Len: 1, Class: class})
		seq++
		p.send(t, on, exchange.Segment{FromServer: true, Flags: exchange.ACK, Seq: ack, Ack: seq, Len: 1})
		ack++
	}
	counts, lost := audit.ExchangeCounts()
	want := ExchangeCounts{Assessment: "login", Requests: 4, Responses: [2]uint64{2, 0}}
	want.Excluded[ExclusionRingFull], want.Excluded[ExclusionUnclassified] = 1, 1
	if counts[0] != want || lost != 1 {
		t.Errorf("%d lost, and counted %+v, want %+v", lost, counts[0], want)
	}
}
