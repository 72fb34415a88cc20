// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// packetsOfAClass is the number of packets of each class that are sent to a device: few, so that
// no queue is ever full.
const packetsOfAClass = 10

// packetClass is an IP version with a transport protocol.
type packetClass struct {
	version  int
	protocol byte
}

func (c packetClass) String() string {
	return fmt.Sprintf("IPv%d %s", c.version, map[byte]string{unix.IPPROTO_UDP: "UDP", unix.IPPROTO_TCP: "TCP"}[c.protocol])
}

// labels are those of its counter of packets.
func (c packetClass) labels() []string {
	family, protocol, _ := strings.Cut(strings.ToLower(c.String()), " ")
	return []string{"family=" + family, "protocol=" + protocol}
}

// classes are those that a device carries. UDP is last: it is received, and tells when all
// packets have arrived.
func (k kind) classes() (classes []packetClass) {
	versions := k.carries
	if versions == nil {
		versions = []int{4, 6}
	}
	for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		for _, version := range versions {
			classes = append(classes, packetClass{version, protocol})
		}
	}
	return classes
}

// kindLab is a lab with a device of each kind, and a UDP server on all addresses of the audited
// namespace.
type kindLab struct {
	*lab
	port    uint16
	folder  string
	audited []*kindDevice
	last    scrape

	mu       sync.Mutex
	received map[uint16]map[int]uint32 // number of the last datagram, by kind and IP version
}

// kindDevice is a device of a kind.
type kindDevice struct {
	kind
	number  uint16
	name    string
	below   string // name of the device under it
	targets map[int]netip.Addr
	sources map[int]netip.Addr
	sender  *netlab.Namespace
	user    *tunDevice // the program that has a tun or tap device open
	sent    uint32
	result  deviceResult
}

// deviceResult is what a test inside another kernel reports about a device, for docs/devices.md.
type deviceResult struct {
	Device   string `json:"device"`
	LinkType string `json:"linkType"`
	Mode     string `json:"mode"` // that auto takes; empty if the device is refused
	Refused  string `json:"refused,omitempty"`
	Sees     string `json:"sees"`
	Reason   string `json:"reason,omitempty"`
	Below    string `json:"below,omitempty"` // what the audit of a device under it sees
}

// A device of each kind that the kernel can make is audited or refused as the table says. What
// the table calls audited is: every packet that is sent to it is counted, in its class.
func TestKindsOfDevice(t *testing.T) {
	k := newKindLab(t)
	for i, one := range allKinds {
		if err := k.add(one, uint16(i+1)); err != nil {
			t.Errorf("%s: %v", one.name, err)
		}
	}
	k.bringUp()

	e := k.startKinds("auto", func(*kindDevice) bool { return true })
	for _, d := range k.audited {
		k.expectMode(e, d, d.attached)
		if d.attached == "skb" && !d.isBare() {
			k.expectRefusal(e.process, d) // of native mode, which auto tries first
		}
		if d.attached != "" {
			k.expectSeen(e, d)
		}
	}
	e.expectStopped()

	// Where auto does not try native mode, it is refused too, as on a device without it. The error
	// has all refusals in one line.
	isRefused := func(d *kindDevice) bool { return d.isBare() || d.name == "lo" }
	p := k.start(binaries.exporter, k.arguments("drv", isRefused))
	if code := p.wait(); code != 1 {
		t.Errorf("exit code %d in native mode, want 1", code)
	}
	for _, d := range k.audited {
		if isRefused(d) {
			k.expectRefusal(p, d)
		}
	}

	// Generic mode sees the same as native mode.
	isNative := func(d *kindDevice) bool { return d.attached == "drv" }
	e = k.startKinds("skb", isNative)
	for _, d := range k.audited {
		if isNative(d) {
			k.expectMode(e, d, "skb")
			k.expectSeen(e, d)
		}
	}
	e.expectStopped()

	for _, d := range k.audited {
		line, err := json.Marshal(d.result)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("device %s", line)
	}
}

func newKindLab(t *testing.T) *kindLab {
	t.Helper()
	k := &kindLab{lab: newLab(t), folder: t.TempDir(), received: map[uint16]map[int]uint32{}}
	for _, namespace := range []*netlab.Namespace{k.lab.audited.Namespace, k.sender.Namespace} {
		for name, value := range map[string]string{
			"ipv6/conf/default/addr_gen_mode": "1", "ipv6/conf/default/accept_ra": "0", "ipv6/conf/default/router_solicitations": "0",
			"ipv4/udp_l3mdev_accept": "1",
			// A device under another must not answer for its address.
			"ipv4/conf/all/arp_ignore": "1",
		} {
			err := namespace.Do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) })
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	var server *net.UDPConn
	err := k.lab.audited.Namespace.Do(func() (err error) {
		server, err = net.ListenUDP("udp", &net.UDPAddr{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	address, err := netip.ParseAddrPort(server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	k.port = address.Port()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.receive(server)
	}()
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
	return k
}

// receive notes which datagrams arrive: each has the number of its kind and its own.
func (k *kindLab) receive(server *net.UDPConn) {
	buffer := make([]byte, 2048)
	for {
		n, from, err := server.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		if n < payloadBytes {
			continue
		}
		version := 6
		if from.Addr().Unmap().Is4() {
			version = 4
		}
		k.mu.Lock()
		number := binary.BigEndian.Uint16(buffer)
		if k.received[number] == nil {
			k.received[number] = map[int]uint32{}
		}
		k.received[number][version] = binary.BigEndian.Uint32(buffer[2:])
		k.mu.Unlock()
	}
}

func (k *kindLab) lastReceived(d *kindDevice, version int) uint32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.received[d.number][version]
}

// add makes the device of a kind. Only a kernel without modules may lack kinds.
func (k *kindLab) add(one kind, number uint16) error {
	if !isAtLeast(k.t, one.since) {
		return nil
	}
	letters := strings.NewReplacer(",", "", " ", "", ".", "").Replace(one.name)
	d := &kindDevice{kind: one, number: number, name: letters + "0", sender: k.sender.Namespace}
	d.targets = map[int]netip.Addr{
		4: netip.AddrFrom4([4]byte{198, 18, byte(number), 1}), 6: netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 1, byte(number), 15: 1}),
	}
	d.sources = map[int]netip.Addr{4: d.targets[4].Next(), 6: d.targets[6].Next()}
	if one.name == "lo" {
		d.name, d.sender = "lo", k.lab.audited.Namespace
		d.targets = map[int]netip.Addr{4: netip.MustParseAddr("127.0.0.1"), 6: netip.IPv6Loopback()}
	}
	if one.below != "" {
		d.below = k.expand(d, one.below, true)
	}
	if err := k.make(d); err != nil {
		if os.Getenv(ownKernelVariable) == "1" || one.isEverywhere {
			return err
		}
		k.t.Logf("%s: not in this kernel: %v", one.name, err)
		return nil
	}
	k.audited = append(k.audited, d)
	return nil
}

// isAtLeast reports whether the kernel is of a version or later.
func isAtLeast(t *testing.T, version [2]int) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var release [2]int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &release[0], &release[1]); err != nil {
		t.Fatal(err)
	}
	return slices.Compare(release[:], version[:]) >= 0
}

// expand fills in the names of a line of one of the namespaces.
func (k *kindLab) expand(d *kindDevice, line string, isOwn bool) string {
	under, end := k.lab.audited.Device, "own"
	if !isOwn {
		under, end = k.sender.Device, "far"
	}
	return strings.NewReplacer(
		"{d}", d.name, "{u}", fmt.Sprintf("%s%d", end, d.number), "{n}", fmt.Sprint(d.number), "{under}", under,
		"{own4}", k.lab.audited.IPv4.Addr().String(), "{far4}", k.sender.IPv4.Addr().String(),
		"{own6}", k.lab.audited.IPv6.Addr().String(), "{far6}", k.sender.IPv6.Addr().String(),
		"{low-own4}", fmt.Sprintf("198.19.%d.1", d.number), "{low-far4}", fmt.Sprintf("198.19.%d.2", d.number),
		"{low-own6}", fmt.Sprintf("2001:db8:2:%d::1", d.number), "{low-far6}", fmt.Sprintf("2001:db8:2:%d::2", d.number),
		"{own-mac}", fmt.Sprintf("02:00:00:00:01:%02x", d.number), "{far-mac}", fmt.Sprintf("02:00:00:00:02:%02x", d.number),
		"{far-ns}", k.pathOf(k.sender.Namespace), "{key}", strings.Repeat("0f", 16),
	).Replace(line)
}

// pathOf returns the file of a namespace for other processes.
func (k *kindLab) pathOf(namespace *netlab.Namespace) (path string) {
	_ = namespace.Do(func() error {
		path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		return nil
	})
	return path
}

// batch runs lines of ip -batch in one of the namespaces.
func (k *kindLab) batch(d *kindDevice, isOwn bool, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	namespace := k.lab.audited.Namespace
	if !isOwn {
		namespace = k.sender.Namespace
	}
	cmd := exec.Command("ip", "-batch", "-")
	var output strings.Builder
	cmd.Stdin, cmd.Stderr, cmd.Stdout = strings.NewReader(k.expand(d, strings.Join(lines, "\n"), isOwn)+"\n"), &output, &output
	if err := namespace.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, strings.ReplaceAll(strings.TrimSpace(output.String()), "\n", ": "))
	}
	return nil
}

// make makes the device and its far end, with addresses.
func (k *kindLab) make(d *kindDevice) error {
	own, far := slices.Clone(d.own), slices.Clone(d.far)
	usesPair := strings.Contains(strings.Join(append(slices.Clone(own), d.ownOn, d.farOn), " "), "{u}")
	if usesPair {
		pair := "link add {u} address {own-mac} type veth peer name " + fmt.Sprintf("far%d", d.number) + " address {far-mac} netns {far-ns}"
		own = slices.Concat([]string{pair, "link set {u} up"}, own)
		far = slices.Concat([]string{"link set {u} up"}, far)
	}
	hasAddresses := d.name != "lo" && d.attached != ""
	if hasAddresses && d.setUp == nil {
		own = append(own, k.addresses(d.ownOn, d.targets)...)
	}
	if hasAddresses && d.setUp == nil && d.send == nil {
		far = append(far, k.addresses(d.farOn, d.sources)...)
	}
	if err := k.batch(d, true, own); err != nil {
		return err
	}
	if err := k.batch(d, false, far); err != nil {
		return err
	}
	if d.setUp == nil {
		return nil
	}
	if err := d.setUp(k, d); err != nil {
		return err
	}
	if err := k.batch(d, true, k.addresses(d.ownOn, d.targets)); err != nil {
		return err
	}
	if d.send != nil {
		return nil // no stack sends to it
	}
	return k.batch(d, false, k.addresses(d.farOn, d.sources))
}

// addresses returns lines that give a device its addresses and set it up, and {d} too.
func (k *kindLab) addresses(on string, addresses map[int]netip.Addr) []string {
	if on == "" {
		on = "{d}"
	}
	return []string{
		"link set " + on + " up",
		fmt.Sprintf("address add %s/24 dev %s", addresses[4], on),
		fmt.Sprintf("address add %s/64 dev %s nodad", addresses[6], on),
	}
}

// bringUp waits until packets arrive from each device.
func (k *kindLab) bringUp() {
	k.t.Helper()
	var devices []netdev.Device
	err := k.lab.audited.Namespace.Do(func() (err error) {
		devices, err = netdev.List()
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
	for _, d := range k.audited {
		i := slices.IndexFunc(devices, func(on netdev.Device) bool { return on.Name == d.name })
		d.result = deviceResult{Device: d.kind.name, LinkType: devices[i].LinkType, Mode: d.attached, Refused: d.refused()}
		if d.attached == "" || d.isSilent {
			continue
		}
		for _, class := range d.classes() {
			if class.protocol != unix.IPPROTO_UDP {
				continue
			}
			ctx, cancel := context.WithTimeout(k.ctx, patience)
			err := netlab.Poll(ctx, func() error {
				if err := k.sendTo(d, class); err != nil {
					return err
				}
				return k.checkReceived(d, class.version, 100*time.Millisecond)
			})
			cancel()
			if err != nil {
				k.t.Errorf("%s carries no %v: %v", d.kind.name, class, err)
			}
		}
	}
}

// checkReceived returns an error unless the last datagram arrives within a time.
func (k *kindLab) checkReceived(d *kindDevice, version int, within time.Duration) error {
	ctx, cancel := context.WithTimeout(k.ctx, within)
	defer cancel()
	return netlab.Poll(ctx, func() error {
		if got := k.lastReceived(d, version); got != d.sent {
			return fmt.Errorf("datagram %d is the last that has arrived over IPv%d, want %d", got, version, d.sent)
		}
		return nil
	})
}

// sendTo sends one packet.
func (k *kindLab) sendTo(d *kindDevice, class packetClass) error {
	d.sent++
	payload := make([]byte, payloadBytes)
	binary.BigEndian.PutUint16(payload, d.number)
	binary.BigEndian.PutUint32(payload[2:], d.sent)
	send := d.send
	if send == nil {
		send = sendByStack
	}
	return send(k, d, class, payload)
}

// sendByStack sends a packet from the stack of the sender. A TCP segment is a reset, which nobody
// answers.
func sendByStack(k *kindLab, d *kindDevice, class packetClass, payload []byte) error {
	target := d.targets[class.version]
	return d.sender.Do(func() error {
		if class.protocol == unix.IPPROTO_UDP {
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(target, k.port)))
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.Write(payload)
			return err
		}
		conn, err := net.DialIP(fmt.Sprintf("ip%d:tcp", class.version), nil, &net.IPAddr{IP: target.AsSlice()})
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(append(resetHeader(k.port), payload...))
		return err
	})
}

// resetHeader is the header of a TCP segment that resets a connection. Its checksum is wrong.
func resetHeader(port uint16) []byte {
	header := make([]byte, 20)
	binary.BigEndian.PutUint16(header, 40000)
	binary.BigEndian.PutUint16(header[2:], port)
	header[12], header[13] = 5<<4, 4
	return header
}

// socket is where an exporter listens in a mode. It does not listen on lo, which is audited.
func (k *kindLab) socket(mode string) string { return filepath.Join(k.folder, mode) }

// arguments returns those of an exporter that audits some of the devices.
func (k *kindLab) arguments(mode string, isAudited func(*kindDevice) bool) []string {
	var devices []string
	for _, d := range k.audited {
		if !isAudited(d) {
			continue
		}
		// The exporter has to attach to the lower device first.
		for _, name := range []string{d.name, d.below} {
			if name != "" && !slices.Contains(devices, name) && (mode != "drv" || name == d.name) {
				devices = append(devices, name)
			}
		}
	}
	return []string{
		"--web.listen-address=unix:" + k.socket(mode), "--audit.mode=" + mode, "--audit.max-devices=64",
		"--audit.device=" + strings.Join(devices, ","),
		// The counters are read for each device, and would take a slow machine a second.
		"--collector.disable-defaults", "--collector.packets", "--collector.program",
	}
}

// startKinds starts an exporter that audits some of the devices.
func (k *kindLab) startKinds(mode string, isAudited func(*kindDevice) bool) *exporter {
	k.t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", k.socket(mode))
	}}
	k.t.Cleanup(transport.CloseIdleConnections)
	e := &exporter{
		k.start(binaries.exporter, k.arguments(mode, isAudited)),
		&http.Client{Transport: transport, Timeout: patience}, "http",
	}
	// A program is loaded for each device, which takes a slow machine half a minute.
	ctx, cancel := context.WithTimeout(k.ctx, 6*patience)
	defer cancel()
	err := netlab.Poll(ctx, func() error {
		if e.hasEnded() {
			k.t.Fatalf("the exporter ended: %s", &e.stderr)
		}
		status, _, err := e.ask("/-/ready")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	if err != nil {
		k.t.Fatal(err)
	}
	k.last = e.scrape()
	return e
}

// expectMode expects that a device is audited in a mode, or refused if the mode is empty.
func (k *kindLab) expectMode(e *exporter, d *kindDevice, mode string) {
	k.t.Helper()
	got := ""
	if k.last.sum("hook_up", "device="+d.name) == 1 {
		got = k.last.label(k.t, "hook_info", "mode", "device="+d.name)
	}
	if got != mode {
		k.t.Errorf("%s is audited in mode %q, want %q", d.kind.name, got, mode)
	}
	if mode == "" {
		k.expectRefusal(e.process, d)
	}
}

// expectRefusal expects a message that has the name of the device and the key phrase.
func (k *kindLab) expectRefusal(p *process, d *kindDevice) {
	k.t.Helper()
	for message := range strings.FieldsFuncSeq(p.stderr.String(), func(r rune) bool { return r == '\n' || r == ';' }) {
		if strings.Contains(message, d.name) && strings.Contains(message, d.refusal) {
			return
		}
	}
	k.t.Errorf("%s: no message says %q:\n%s", d.kind.name, d.refusal, &p.stderr)
}

// expectSeen sends packets to a device and expects the audits of it and of the device under it to
// count what the table says.
func (k *kindLab) expectSeen(e *exporter, d *kindDevice) {
	k.t.Helper()
	before := k.last
	for _, class := range d.classes() {
		for range packetsOfAClass {
			if err := k.sendTo(d, class); err != nil {
				k.t.Errorf("%s: sending %v: %v", d.kind.name, class, err)
				return
			}
		}
		if class.protocol == unix.IPPROTO_UDP && !d.isSilent {
			if err := k.checkReceived(d, class.version, patience); err != nil {
				k.t.Errorf("%s: %v", d.kind.name, err)
				return
			}
		}
	}
	// The packets have arrived. Those without a receiver may be a little late.
	ctx, cancel := context.WithTimeout(k.ctx, patience/2)
	defer cancel()
	err := netlab.Poll(ctx, func() error {
		k.last = e.scrape()
		sees, below := whatIsSeen(d, d.name, before, k.last), ""
		if d.below != "" {
			below = whatIsSeen(d, d.below, before, k.last)
		}
		if sees != d.sees || below != d.belowSees {
			return fmt.Errorf("the audit sees %q and below %q, want %q and %q", sees, below, d.sees, d.belowSees)
		}
		d.result.Sees, d.result.Below, d.result.Reason = sees, below, d.reason
		return nil
	})
	if err != nil {
		k.t.Errorf("%s: %v", d.kind.name, err)
	}
}

// whatIsSeen says what the audit of a device has counted between two scrapes, of the packets that
// were sent to the kind d.
func whatIsSeen(d *kindDevice, device string, before, after scrape) string {
	counted := func(labels ...string) float64 {
		labels = append(labels, "device="+device)
		return after.sum("packets_total", labels...) - before.sum("packets_total", labels...)
	}
	isExact := true
	for _, class := range d.classes() {
		isExact = isExact && counted(class.labels()...) == packetsOfAClass
	}
	sent := float64(packetsOfAClass * len(d.classes()))
	outer := "family=ipv4"
	if strings.Contains(strings.Join(d.own, " "), "own6}") {
		outer = "family=ipv6"
	}
	unparsed := after.sum("outcomes_total", "outcome=unparsed", "device="+device) - before.sum("outcomes_total", "outcome=unparsed", "device="+device)
	switch {
	case isExact && d.isTunnel() || isExact && device != d.name:
		return seesInner
	case isExact:
		return seesAll
	case unparsed >= sent:
		return seesUnparsed
	case counted(outer, "protocol=udp") >= sent:
		return seesOuterUDP
	case counted(outer, "protocol=other") >= sent:
		return seesOuter
	}
	counts := map[string]float64{}
	for _, m := range after.series("packets_total", "device="+device) {
		var labels []string
		for _, pair := range m.GetLabel() {
			if pair.GetName() != "device" {
				labels = append(labels, pair.GetName()+"="+pair.GetValue())
			}
		}
		// A stack may send some packets of its own, such as multicast reports.
		if n := counted(labels...); n > 0 && !slices.Contains(labels, "protocol=icmp") {
			counts[strings.Join(labels, " ")] = n
		}
	}
	if len(counts) == 0 {
		return seesNothing
	}
	return fmt.Sprintf("%v of %v, %v unparsed", counts, sent, unparsed)
}
