// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package assessmentfile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

const example = `assessments:
  - name: login            # comment
    device: eth0
    protocol: tcp
    port: 443
    classes:
      fixed:  {dscp: 8, source_port: 1024-2047}
      random: {dscp: 16, source: 192.0.2.0/24, vlan: 7}
    order: blocks
    target: 2us
    alpha: 1e-6
  - name: dns
    protocol: udp
    port: 53
    classes:
      y:
        source_port: 7
      x:
        source_port: 8
`

func TestParse(t *testing.T) {
	got, err := Parse("leak.yml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	want := []Assessment{
		{
			Name: "login", Device: "eth0", Protocol: bpf.ProtocolTCP, Port: 443,
			Classes: [2]Class{
				{"fixed", bpf.ClassMatch{DSCP: new(uint8(8)), SourcePorts: &bpf.PortRange{First: 1024, Last: 2047}}},
				{"random", bpf.ClassMatch{DSCP: new(uint8(16)), Source: netip.MustParsePrefix("192.0.2.0/24"), VLAN: new(uint16(7))}},
			},
			Order: leak.Blocks, Target: 2 * time.Microsecond, Alpha: 1e-6,
		},
		{
			Name: "dns", Protocol: bpf.ProtocolUDP, Port: 53,
			Classes: [2]Class{ // in the order of the file
				{"y", bpf.ClassMatch{SourcePorts: &bpf.PortRange{First: 7, Last: 7}}},
				{"x", bpf.ClassMatch{SourcePorts: &bpf.PortRange{First: 8, Last: 8}}},
			},
			Order: leak.Random, Target: time.Microsecond, Alpha: 1e-5,
		},
	}
	if !reflect.DeepEqual(got.Assessments, want) {
		t.Errorf("%+v,\nwant %+v", got.Assessments, want)
	}
	measured, judged := want[0].Measured(), want[0].Judged()
	if measured.Name != "login" || measured.Device != "eth0" || measured.Classes[1].VLAN == nil || measured.Port != 443 {
		t.Errorf("measured: %+v", measured)
	}
	if judged != (leak.Config{Order: leak.Blocks, Classes: [2]string{"fixed", "random"}, TargetNs: 2000, Alpha: 1e-6, TickNs: 1}) {
		t.Errorf("judged: %+v", judged)
	}
	if empty, err := Parse("leak.yml", []byte("assessments: []\n")); err != nil || len(empty.Assessments) != 0 {
		t.Errorf("no assessments: %+v, %v", empty, err)
	}
}

// Each error is one line with the file, the line, and what to do.
func TestErrors(t *testing.T) {
	const valid = "assessments:\n  - name: a\n    protocol: tcp\n    port: 1\n    classes:\n      x: {dscp: 1}\n      y: {dscp: 2}\n"
	with := func(before, after string) string {
		if !strings.Contains(valid, before) {
			t.Fatalf("%q is not in the text", before)
		}
		return strings.Replace(valid, before, after, 1)
	}
	second := "  - name: b\n    protocol: tcp\n    port: 2\n    classes: {x: {dscp: 1}, y: {dscp: 2}}\n"
	many := "assessments:\n"
	for i := range bpf.MaxAssessments + 1 {
		many += fmt.Sprintf("  - {name: a%d, protocol: tcp, port: %d, classes: {x: {dscp: 1}, y: {dscp: 2}}}\n", i, i+1)
	}
	for _, test := range []struct {
		name, text string
		line       int
		says       []string
	}{
		{"nothing", "", 1, []string{"empty", "assessments: []"}},
		{"a comment only", "# nothing\n", 1, []string{"empty"}},
		{"another key", "assessment: []\n", 1, []string{`"assessment"`, "use assessments"}},
		{"no list", "assessments: {a: b}\n", 1, []string{"not a list"}},
		{"a word", "hello\n", 1, []string{"no keys"}},
		{"no YAML", with("port: 1", "port: a: b"), 4, []string{"not YAML"}},
		{"no UTF-8", valid + "# \xff\n", 8, []string{"UTF-8"}},
		{"two documents", valid + "---\n" + valid, 8, []string{"second document"}},
		{"unknown key", with("port: 1", "prot: 1"), 4, []string{`assessment`, `"prot"`, "use name"}},
		{"unknown key of a class", with("x: {dscp: 1}", "x: {tos: 1}"), 6, []string{"class x", `"tos"`, "use dscp"}},
		{"key twice", with("port: 1", "port: 1\n    port: 2"), 5, []string{`"port"`, "line 4", "remove one"}},
		{"class twice", with("y: {dscp: 2}", "x: {dscp: 2}"), 7, []string{`"x"`, "line 6"}},
		{"no name", with("- name: a\n    protocol", "- protocol"), 2, []string{"no name", "add it"}},
		{"no port", with("    port: 1\n", ""), 2, []string{"assessment a has no port"}},
		{"no protocol", with("    protocol: tcp\n", ""), 2, []string{"no protocol"}},
		{"no value", with("port: 1", "port:"), 4, []string{"port has no value"}},
		{"a list", with("port: 1", "port: [1]"), 4, []string{"port is not a single value"}},
		{"a tag", with("port: 1", "port: !x 1"), 4, []string{"port is not a single value"}},
		{"bad name", with("name: a", "name: Log-in"), 2, []string{`"Log-in"`, "a-z"}},
		{"long name", with("name: a", "name: "+strings.Repeat("a", 65)), 2, []string{"1 to 64"}},
		{"bad class name", with("x: {", "X: {"), 6, []string{"assessment a", `"X"`, "a-z"}},
		{"bad device", with("port: 1", "port: 1\n    device: a/b"), 5, []string{`"a/b"`, "without"}},
		{"long device", with("port: 1", "port: 1\n    device: abcdefghijklmnop"), 5, []string{"at most 15"}},
		{"bad protocol", with("tcp", "sctp"), 3, []string{`"sctp"`, "use tcp or udp"}},
		{"port 0", with("port: 1", "port: 0"), 4, []string{`"0"`, "between 1 and 65535"}},
		{"large port", with("port: 1", "port: 65536"), 4, []string{`"65536"`}},
		{"octal", with("port: 1", "port: 010"), 4, []string{`"010"`, "leading zeros"}},
		{"fraction", with("port: 1", "port: 1.0"), 4, []string{`"1.0"`}},
		{"negative", with("x: {dscp: 1}", "x: {dscp: -1}"), 6, []string{`"-1"`, "class x"}},
		{"large dscp", with("x: {dscp: 1}", "x: {dscp: 64}"), 6, []string{`"64"`, "0 and 63"}},
		{"large vlan", with("x: {dscp: 1}", "x: {vlan: 4095}"), 6, []string{`"4095"`, "0 and 4094"}},
		{"ports in the wrong order", with("x: {dscp: 1}", "x: {source_port: 9-8}"), 6, []string{"9-8", "write 8-9"}},
		{"half a range", with("x: {dscp: 1}", "x: {source_port: 9-}"), 6, []string{`""`, "source_port"}},
		{"no prefix", with("x: {dscp: 1}", "x: {source: host}"), 6, []string{`"host"`, "192.0.2.0/24"}},
		{"an address", with("x: {dscp: 1}", "x: {source: 192.0.2.1}"), 6, []string{"write 192.0.2.1/32"}},
		{"bits after the prefix", with("x: {dscp: 1}", "x: {source: 192.0.2.1/24}"), 6, []string{"write 192.0.2.0/24"}},
		{"IPv4 in IPv6", with("x: {dscp: 1}", `x: {source: "::ffff:192.0.2.0/120"}`), 6, []string{"write it as IPv4"}},
		{"every packet", with("x: {dscp: 1}", "x: {}"), 6, []string{"every packet", "use dscp"}},
		{"class without keys", with("x: {dscp: 1}", "x:"), 6, []string{"class x", "no keys"}},
		{"one class", with("      y: {dscp: 2}\n", ""), 6, []string{"1 classes", "use two"}},
		{"three classes", valid + "      z: {dscp: 3}\n", 6, []string{"3 classes", "use two"}},
		{"equal classes", with("dscp: 2", "dscp: 1"), 7, []string{"dscp 1", "both classes, x and y"}},
		{"other keys", with("y: {dscp: 2}", "y: {vlan: 0}"), 7, []string{"dscp 1, vlan 0", "same key"}},
		{"bad order", valid + "    order: coin\n", 8, []string{`"coin"`, "random, blocks or observed"}},
		{"target without unit", valid + "    target: 1000\n", 8, []string{`"1000"`, "1us"}},
		{"negative target", valid + "    target: -1us\n", 8, []string{`"-1us"`}},
		{"large target", valid + "    target: 2m\n", 8, []string{`"2m"`}},
		{"small target", valid + "    target: 0.5ns\n", 8, []string{`"0.5ns"`}},
		{"bad alpha", valid + "    alpha: small\n", 8, []string{`"small"`, "1e-5"}},
		{"alpha 0", valid + "    alpha: 0\n", 8, []string{`"0"`}},
		{"alpha 1", valid + "    alpha: 1\n", 8, []string{`"1"`}},
		{"alpha NaN", valid + "    alpha: .nan\n", 8, []string{`".nan"`}},
		{"same name", valid + strings.Replace(second, "b", "a", 1), 8, []string{"assessment a", "line 2"}},
		{"same port", valid + strings.Replace(second, "port: 2", "port: 1", 1), 8, []string{"assessments a and b", "port 1 of tcp", "remove one"}},
		{"same port on two devices", with("port: 1", "port: 1\n    device: eth0") + strings.Replace(second, "port: 2", "port: 1\n    device: eth1", 1), 9, []string{"port 1 of tcp"}},
		{"too many", many, 34, []string{"33 assessments", "maximum of 32"}},
	} {
		file, err := Parse("leak.yml", []byte(test.text))
		if err == nil {
			t.Errorf("%s: accepted as %+v", test.name, file)
			continue
		}
		for _, phrase := range append(test.says, fmt.Sprintf("leak.yml:%d: ", test.line)) {
			if !strings.Contains(err.Error(), phrase) {
				t.Errorf("%s: %q does not say %q", test.name, err, phrase)
			}
		}
		if printable.Line(err.Error()) != err.Error() {
			t.Errorf("%s: %q is not one line", test.name, err)
		}
	}
	for _, text := range []string{valid, valid + second, valid + strings.NewReplacer("port: 2", "port: 1", "tcp", "udp").Replace(second)} {
		if _, err := Parse("leak.yml", []byte(text)); err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
	}
}

// packet is what classes look at.
type packet struct {
	dscp   uint8
	port   uint16
	source netip.Addr
	vlan   uint16
}

func (p packet) isOf(m *bpf.ClassMatch) bool {
	return (m.DSCP == nil || *m.DSCP == p.dscp) && (m.VLAN == nil || *m.VLAN == p.vlan) &&
		(m.SourcePorts == nil || m.SourcePorts.First <= p.port && p.port <= m.SourcePorts.Last) &&
		(!m.Source.IsValid() || m.Source.Contains(p.source))
}

// universe has packets among which any two overlapping classes of randomMatch have a common one.
func universe() (packets []packet) {
	var sources []netip.Addr
	for i := range byte(16) {
		sources = append(sources, netip.AddrFrom4([4]byte{192, 0, 2, i << 4}), netip.AddrFrom16([16]byte{0x20, 1, 15: i << 4}))
	}
	for dscp := range uint8(2) {
		for port := range uint16(6) {
			for _, source := range sources {
				for vlan := range uint16(2) {
					packets = append(packets, packet{dscp, port, source, vlan})
				}
			}
		}
	}
	return packets
}

func randomMatch(r *rand.Rand) (m bpf.ClassMatch) {
	if r.IntN(2) == 0 {
		m.DSCP = new(uint8(r.IntN(2)))
	}
	if r.IntN(2) == 0 {
		m.VLAN = new(uint16(r.IntN(2)))
	}
	if r.IntN(2) == 0 {
		first := r.IntN(6)
		m.SourcePorts = &bpf.PortRange{First: uint16(first), Last: uint16(first + r.IntN(6-first))}
	}
	if r.IntN(2) == 0 {
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(16)) << 4})
		if r.IntN(2) == 0 {
			a = netip.AddrFrom16([16]byte{0x20, 1, 15: byte(r.IntN(16)) << 4})
		}
		lengths := []int{0, 24, 25, 26, 27, 28}
		m.Source = netip.PrefixFrom(a, lengths[r.IntN(len(lengths))]+(a.BitLen()-32)*r.IntN(2)).Masked()
	}
	return m
}

// Whether classes overlap is decided as by trying every packet, and the packet of the message is of
// both.
func TestOverlap(t *testing.T) {
	packets := universe()
	r := rand.New(rand.NewPCG(1, 2))
	overlaps := 0
	for range 3000 {
		a, b := randomMatch(r), randomMatch(r)
		if a == (bpf.ClassMatch{}) || b == (bpf.ClassMatch{}) {
			continue
		}
		want := false
		for _, p := range packets {
			if want = p.isOf(&a) && p.isOf(&b); want {
				break
			}
		}
		got := overlap(&a, &b)
		if (got != "") != want || (overlap(&b, &a) != "") != want {
			x, y := Class{"x", a}, Class{"y", b}
			t.Fatalf("%v and %v: %q, want %v", x.String(), y.String(), got, want)
		}
		if want {
			overlaps++
			p := packet{source: packets[0].source}
			for word := range strings.SplitSeq(got, ", ") {
				key, value, _ := strings.Cut(word, " ")
				switch key {
				case "dscp":
					_, _ = fmt.Sscan(value, &p.dscp)
				case "source_port":
					_, _ = fmt.Sscan(value, &p.port)
				case "source":
					p.source = netip.MustParseAddr(value)
				case "vlan":
					_, _ = fmt.Sscan(value, &p.vlan)
				}
			}
			if !p.isOf(&a) || !p.isOf(&b) {
				x, y := Class{"x", a}, Class{"y", b}
				t.Fatalf("%q is not of both, %v and %v", got, x.String(), y.String())
			}
		}
	}
	if overlaps < 300 {
		t.Errorf("only %d of the classes overlapped", overlaps)
	}
}

func TestCompare(t *testing.T) {
	parse := func(text string) *File {
		t.Helper()
		f, err := Parse("leak.yml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	before := parse(example)
	if c := Compare(nil, before); !reflect.DeepEqual(c, Changes{Added: []string{"login", "dns"}}) {
		t.Errorf("from nothing: %+v", c)
	}
	if c := Compare(before, parse("# another comment\n"+example)); !reflect.DeepEqual(c, Changes{Kept: []string{"login", "dns"}}) {
		t.Errorf("a comment: %+v", c)
	}
	for _, test := range []struct{ old, new, what string }{
		{"device: eth0", "device: eth1", "device is eth1 and was eth0"},
		{"    device: eth0\n", "", "device is every audited device and was eth0"},
		{"protocol: tcp", "protocol: udp", "protocol is udp and was tcp"},
		{"port: 443", "port: 444", "port is 444 and was 443"},
		{"dscp: 8,", "dscp: 9,", "first class is fixed: {dscp: 9, source_port: 1024-2047} and was fixed: {dscp: 8, source_port: 1024-2047}"},
		{"192.0.2.0/24", "192.0.3.0/24", `second class is random: {dscp: 16, source: "192.0.3.0/24", vlan: 7} and was random: {dscp: 16, source: "192.0.2.0/24", vlan: 7}`},
		{"order: blocks", "order: random", "order is random and was blocks"},
		{"target: 2us", "target: 1us", "target is 1µs and was 2µs"},
		{"alpha: 1e-6", "alpha: 1e-7", "alpha is 1e-07 and was 1e-06"},
	} {
		c := Compare(before, parse(strings.Replace(example, test.old, test.new, 1)))
		if !reflect.DeepEqual(c, Changes{Kept: []string{"dns"}, Changed: []Change{{"login", []string{test.what}}}}) {
			t.Errorf("%q: %+v", test.new, c)
		}
	}
	c := Compare(before, parse(strings.Replace(example, "name: dns", "name: names", 1)))
	if !reflect.DeepEqual(c, Changes{Added: []string{"names"}, Removed: []string{"dns"}, Kept: []string{"login"}}) {
		t.Errorf("a name: %+v", c)
	}
}

func TestRead(t *testing.T) {
	directory := t.TempDir()
	path := filepath.Join(directory, "leak.yml")
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err := Read(path); err != nil || len(f.Assessments) != 2 {
		t.Errorf("%+v, %v", f, err)
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("#\n", maxBytes/2+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("a large file: %v", err)
	}
	pipe, socket := filepath.Join(directory, "pipe"), filepath.Join(directory, "socket")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(socket, unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, socket, "/dev/null", directory} {
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// encode returns the text of a file.
func encode(f *File) string {
	if len(f.Assessments) == 0 {
		return "assessments: []\n"
	}
	text := "assessments:\n"
	for i := range f.Assessments {
		a := &f.Assessments[i]
		text += fmt.Sprintf("  - name: %q\n    protocol: %v\n    port: %d\n", a.Name, a.Protocol, a.Port)
		if a.Device != "" {
			text += fmt.Sprintf("    device: %q\n", a.Device)
		}
		text += fmt.Sprintf("    classes:\n      %v\n      %v\n", quoted(&a.Classes[0]), quoted(&a.Classes[1]))
		text += fmt.Sprintf("    order: %v\n    target: %v\n    alpha: %v\n", a.Order, a.Target, a.Alpha)
	}
	return text
}

// quoted returns a class with its name in quotes, since 1: is a number and true: is a boolean.
func quoted(c *Class) string {
	_, keys, _ := strings.Cut(c.String(), ":")
	return fmt.Sprintf("%q:%s", c.Name, keys)
}

// Any text gives a one-line error that names the file, or a configuration that can be used and that
// is the same when it is written and read again.
func FuzzParse(f *testing.F) {
	// Short texts, since minimizing an input takes the square of its length.
	for _, text := range []string{
		"assessments: [{name: a, device: b, protocol: tcp, port: 1, classes: {x: {dscp: 8, source_port: 1-2}, y: {source: 192.0.2.0/24, vlan: 7, dscp: 1}}}]",
		"assessments:\n- name: a\n  protocol: tcp\n  port: 1\n  classes:\n    x: {vlan: 8}\n    y: {vlan: 1}\n  order: blocks\n  target: 2us\n  alpha: 1e-6",
		"", "assessments: []", "assessments: &a [*a]", "a: &b {c: *b}\nassessments: *b", "assessments: [{name: a, <<: {port: 1}}]", "---\n---\n",
		"assessments: [{name: 0, protocol: udp, port: 1, target: 0, classes: {true: {vlan: 0}, ~: {vlan: 1}}}]",
		"assessments: [{name: 0, protocol: udp, port: 1, target: 0, classes: {'1': {source: '::/0'}, '2': {source: 0.0.0.0/0}}}]",
		"? [a]\n: b", "\xff\xfea\x00", "a: \x00", "assessments: [{device: \"%ff\", name: \"\\u202e\"}]", "*a", "a: b: c", "\t- a", "%YAML 9.9\n---\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse("leak.yml", text)
		if err != nil {
			message := err.Error()
			if !strings.HasPrefix(message, "leak.yml:") || message != printable.Line(message) || len(message) > 1000 {
				t.Errorf("%q is refused with %q", text, message)
			}
			return
		}
		if len(file.Assessments) > bpf.MaxAssessments {
			t.Errorf("%d assessments", len(file.Assessments))
		}
		for i := range file.Assessments {
			a := &file.Assessments[i]
			if err := a.Judged().Validate(); err != nil {
				t.Errorf("%q: %v", text, err)
			}
			if a.Port == 0 || checkName(a.Name) != nil || overlap(&a.Classes[0].Match, &a.Classes[1].Match) != "" {
				t.Errorf("%q gives %+v", text, a)
			}
		}
		again, err := Parse("leak.yml", []byte(encode(file)))
		if err != nil || !reflect.DeepEqual(again, file) || len(Compare(file, again).Kept) != len(file.Assessments) {
			t.Errorf("%q is %+v, written and read again %+v, %v", text, file, again, err)
		}
	})
}
