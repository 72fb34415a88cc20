// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/xdp-audit/xdp_audit_exporter/internal/exchange"
	"github.com/xdp-audit/xdp_audit_exporter/internal/flowtable"
)

const (
	servicePort = 443
	dscpX       = 8
	dscpY       = 16
)

func ptr[T any](v T) *T { return &v }

// service is an assessment by DSCP.
func service(name string, protocol Protocol, port uint16) Assessment {
	return Assessment{Name: name, Protocol: protocol, Port: port, Classes: [2]ClassMatch{{DSCP: ptr[uint8](dscpX)}, {DSCP: ptr[uint8](dscpY)}}}
}

// loadExchanges is loadTest for an audit that measures response times.
func loadExchanges(t testing.TB, change func(*Config), assessments ...Assessment) *Audit {
	t.Helper()
	config := testConfig()
	config.ExchangeConnections = 1024
	if change != nil {
		change(&config)
	}
	audit := loadTest(t, config)
	if err := audit.SetAssessments(assessments); err != nil {
		t.Fatal(err)
	}
	return audit
}

// peer is a client of a service.
type peer struct {
	client, server netip.AddrPort
	isUDP          bool
	vlan           uint16 // 0 for no tag
}

// frame makes the frame of a segment.
func (p peer) frame(s exchange.Segment, dscp uint8) []byte {
	from, to := p.client, p.server
	if s.FromServer {
		from, to = to, from
	}
	payload := make([]byte, s.Len)
	transport := udp(int(from.Port()), int(to.Port()), payload)
	protocol := ipUDP
	if !p.isUDP {
		protocol = ipTCP
		transport = make([]byte, 20, 20+len(payload))
		binary.BigEndian.PutUint16(transport[0:], from.Port())
		binary.BigEndian.PutUint16(transport[2:], to.Port())
		binary.BigEndian.PutUint32(transport[4:], s.Seq)
		binary.BigEndian.PutUint32(transport[8:], s.Ack)
		transport[12], transport[13] = 5<<4, s.Flags
		transport = append(transport, payload...)
	}
	ethertype, packet := etherIPv4, []byte(nil)
	if from.Addr().Is4() {
		packet = ipv4(protocol, transport)
		packet[1] = dscp << 2
		copy(packet[12:16], from.Addr().AsSlice())
		copy(packet[16:20], to.Addr().AsSlice())
	} else {
		ethertype, packet = etherIPv6, ipv6(protocol, transport)
		packet[0], packet[1] = 6<<4|dscp>>2, dscp<<6
		copy(packet[8:24], from.Addr().AsSlice())
		copy(packet[24:40], to.Addr().AsSlice())
	}
	if p.vlan != 0 {
		return ethernet(tagVLAN, tagged(int(p.vlan), ethertype, packet))
	}
	return ethernet(ethertype, packet)
}

// hash returns the hash of the connection.
func (p peer) hash(keys flowtable.Keys) uint64 {
	family, protocol := FamilyIPv6, ipTCP
	if p.client.Addr().Is4() {
		family = FamilyIPv4
	}
	if p.isUDP {
		protocol = ipUDP
	}
	ports := uint32(networkOrder(p.client.Port())) | uint32(networkOrder(p.server.Port()))<<16
	words := []uint32{ports, uint32(family)<<8 | uint32(protocol)}
	source, destination := p.client.Addr().AsSlice(), p.server.Addr().AsSlice()
	for i := 0; i < len(source); i += 4 {
		words = append(words, binary.NativeEndian.Uint32(source[i:]), binary.NativeEndian.Uint32(destination[i:]))
	}
	h := flowtable.HashWords(words, &keys)
	return h.Set<<32 | uint64(h.Tag)
}

// skbContext is the beginning of the kernel's struct __sk_buff.
type skbContext struct {
	_        [38]uint32
	TimeNs   uint64
	_        [2]uint32
	_        uint64
	_        [2]uint32
	Hardware uint64
}

// runSent sends a frame through the program of outgoing packets at a time.
func runSent(t testing.TB, program *ebpf.Program, frame []byte, atNs uint64) {
	t.Helper()
	encoded, err := binary.Append(nil, binary.NativeEndian, skbContext{TimeNs: atNs})
	if err != nil {
		t.Fatal(err)
	}
	verdict, err := program.Run(&ebpf.RunOptions{Data: frame, Context: encoded, Repeat: 1})
	if err != nil {
		t.Fatal(err)
	}
	if int32(verdict) != -1 {
		t.Fatalf("verdict %d, want that the next program decides", int32(verdict))
	}
}

// exchangeProbe sends segments through the programs and through the model.
type exchangeProbe struct {
	audit *Audit
	keys  flowtable.Keys
	model *exchange.Table
	nowNs uint64
	read  []Exchange
}

func newExchangeProbe(t testing.TB, audit *Audit) *exchangeProbe {
	return &exchangeProbe{
		audit: audit, keys: audit.maps.devices.identity(0).keys, model: exchange.NewTable(int(audit.config.exchangeSets())), nowNs: 5e12,
	}
}

func (p *exchangeProbe) send(t testing.TB, to peer, s exchange.Segment) {
	t.Helper()
	s.NowNs, s.Hash, s.IsUDP = p.nowNs, to.hash(p.keys), to.isUDP
	dscp := uint8(0)
	switch s.Class {
	case exchange.ClassX:
		dscp = dscpX
	case exchange.ClassY:
		dscp = dscpY
	}
	frame := to.frame(s, dscp)
	program := p.audit.devices.listed[0].program
	if s.FromServer {
		runSent(t, program.egress, frame, p.nowNs)
	} else {
		run(t, program.Program, frame, p.nowNs, 1)
	}
	p.model.Observe(s)
}

// compare compares everything with the model.
func (p *exchangeProbe) compare(t testing.TB) {
	t.Helper()
	p.audit.exchanges.read(func(batch []Exchange) { p.read = append(p.read, batch...) })
	counts, lost := p.audit.ExchangeCounts()
	m := p.model
	want := ExchangeCounts{
		Assessment: counts[0].Assessment, Requests: m.Requests, Responses: m.Responses, Excluded: m.Excluded, Outstanding: m.Outstanding(),
	}
	if counts[0] != want || lost != 0 {
		t.Fatalf("counted %+v, want %+v; %d lost", counts[0], want, lost)
	}
	if err := checkIdentity(counts[0]); err != nil {
		t.Fatal(err)
	}
	var wantRead []Exchange
	for _, r := range m.Records {
		wantRead = append(wantRead, Exchange{
			Assessment: counts[0].Assessment, Class: int(r.Class), Exclusion: Exclusion(r.Reason), TimeNs: r.TimeNs, ResponseNs: r.ElapsedNs,
			Connection: r.Connection, Position: r.Position, HasStart: r.HasStart,
		})
	}
	if !reflect.DeepEqual(p.read, wantRead) {
		for i := range wantRead {
			if i >= len(p.read) || p.read[i] != wantRead[i] {
				t.Fatalf("record %d of %d and %d is %+v, want %+v", i, len(p.read), len(wantRead), p.read[min(i, len(p.read)-1)], wantRead[i])
			}
		}
		t.Fatalf("%d records, want %d", len(p.read), len(wantRead))
	}
}

func checkIdentity(c ExchangeCounts) error {
	ended := c.Responses[0] + c.Responses[1] + c.Outstanding
	for _, n := range c.Excluded {
		ended += n
	}
	if ended != c.Requests {
		return fmt.Errorf("%d requests, and %d responses, excluded and outstanding ones: %+v", c.Requests, ended, c)
	}
	return nil
}

// actor sends random segments on one connection, most of which follow the protocol.
type actor struct {
	peer
	seq, ack uint32 // next numbers of the client and of the server
}

func (a *actor) next(r *rand.Rand) exchange.Segment {
	s := exchange.Segment{Class: exchange.Class(r.IntN(2)), Flags: exchange.ACK}
	if r.IntN(20) == 0 {
		s.Class = exchange.ClassNone
	}
	n := uint32(1 + r.IntN(40)*r.IntN(40))
	if a.isUDP {
		s.FromServer, s.Len = r.IntN(5) > 1, n
		return s
	}
	chaos := uint32(r.IntN(5) - 2)
	switch r.IntN(40) {
	case 0: // a connection begins
		a.seq, a.ack = r.Uint32(), r.Uint32()
		s.Flags, s.Seq = exchange.SYN, a.seq
		a.seq++
	case 1:
		s.FromServer, s.Flags, s.Seq, s.Ack = true, exchange.SYN|exchange.ACK, a.ack, a.seq
		a.ack++
	case 2:
		s.FromServer, s.Flags, s.Seq = r.IntN(2) == 0, exchange.RST, a.seq
	case 3:
		s.FromServer, s.Flags, s.Seq, s.Ack = r.IntN(2) == 0, exchange.FIN|exchange.ACK, a.seq, a.ack
	case 4: // a probe, or something that came again
		s.Seq, s.Ack, s.Len = a.seq-1, a.ack, uint32(r.IntN(3))
	case 5:
		s.Seq, s.Ack, s.Len = a.seq-n, a.ack, n
	case 6:
		s.Seq, s.Ack, s.Len = a.seq+chaos, a.ack+uint32(r.IntN(3)-1), n
		a.seq = s.Seq + n
	case 7:
		s.FromServer, s.Seq, s.Ack, s.Len = true, a.ack+chaos, a.seq-uint32(r.IntN(2)), n
		a.ack = s.Seq + n
	case 8: // with a segment of TCP Fast Open
		s.Flags, s.Seq, s.Len = exchange.SYN, a.seq, n
		a.seq += 1 + n
	case 9, 10, 11, 12:
		s.FromServer, s.Seq, s.Ack = r.IntN(2) == 0, a.seq, a.ack
	case 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24:
		s.Seq, s.Ack, s.Len = a.seq, a.ack, n
		a.seq += n
	default:
		s.FromServer, s.Seq, s.Ack, s.Len = true, a.ack, a.seq, n
		a.ack += n
	}
	return s
}

// TestExchangesEqualModel sends random segments of more connections than the table holds, and
// compares what is counted and recorded with the model.
func TestExchangesEqualModel(t *testing.T) {
	const actors, enough = 100, 100
	packets := 40_000
	if testing.Short() {
		packets /= 4
	}
	for name, addresses := range map[string][2]string{"IPv4": {"192.0.2.0", "198.51.100.9"}, "IPv6": {"2001:db8::", "2001:db8:1::9"}} {
		for _, protocol := range []Protocol{ProtocolTCP, ProtocolUDP} {
			t.Run(fmt.Sprint(name, "/", protocol), func(t *testing.T) {
				t.Parallel()
				r := rand.New(rand.NewPCG(19, uint64(protocol)))
				audit := loadExchanges(t, func(c *Config) { c.ExchangeConnections = 64 }, service("login", protocol, servicePort))
				p := newExchangeProbe(t, audit)
				var all []*actor
				client := netip.MustParseAddr(addresses[0])
				for i := range actors {
					client = client.Next()
					all = append(all, &actor{peer: peer{
						netip.AddrPortFrom(client, uint16(1024+i)), netip.AddrPortFrom(netip.MustParseAddr(addresses[1]), servicePort),
						protocol == ProtocolUDP, uint16(i % 3 * 7),
					}})
				}
				for i := range packets {
					p.nowNs += r.Uint64N(1e6)
					if r.IntN(1000) == 0 {
						p.nowNs += r.Uint64N(10e9)
					}
					// Few actors at a time, so that connections stay in the table.
					a := all[(i/500*7+r.IntN(12))%actors]
					p.send(t, a.peer, a.next(r))
					if i%500 == 499 {
						p.compare(t)
					}
				}
				p.compare(t)
				m := p.model
				t.Logf("%d requests, responses %v, excluded %v", m.Requests, m.Responses, m.Excluded)
				if slices.Min(m.Responses[:]) < enough {
					t.Error("too few responses to tell anything")
				}
				for reason := exchange.Pipelined; reason < exchange.RingFull; reason++ {
					isOfTCP := reason == exchange.Retransmitted || reason == exchange.Mixed
					if m.Excluded[reason] == 0 && (protocol == ProtocolTCP || !isOfTCP) {
						t.Errorf("no request is excluded as %v", Exclusion(reason))
					}
				}
			})
		}
	}
}
