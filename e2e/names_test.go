// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/vishvananda/netlink"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// strangeNames are names that the kernel gives to devices, each with its label and its value in
// a flag.
var strangeNames = []struct{ name, label, flag string }{
	{"ba\xffd0", "ba%ffd0", "ba%ffd0"},
	{`ba\xffd0`, `ba\xffd0`, `ba\xffd0`}, // the usual text of the first one
	{"e\x1b[31m", "e%1b[31m", "e%1b%5b31m"},
	{"\u202er\u009b", "%e2%80%aer%c2%9b", "%e2%80%aer%c2%9b"},
	{"a,b", "a,b", "a%2cb"},
	{"x[1]", "x[1]", "x%5b1%5D"},
	{`q"=$(id)`, `q"=$(id)`, `q"=$(id)`},
}

// expectPrintable expects a text that harms no terminal.
func expectPrintable(t *testing.T, what, text string) {
	t.Helper()
	isHarmful := func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }
	if !utf8.ValidString(text) || strings.ContainsFunc(text, isHarmful) {
		t.Errorf("%s is not printable: %q", what, text)
	}
}

// Devices with any names are audited under labels of their own, also over restarts with pins
// and with a saved baseline, and no output has their bytes.
func TestStrangeNames(t *testing.T) {
	l := newLab(t)
	promtool := findTool(t, "promtool")
	folder := l.mountBPF(0)
	dir := t.TempDir()
	trail, baseline := filepath.Join(dir, "trail"), filepath.Join(dir, "baseline", "file.json")
	if err := os.Mkdir(filepath.Dir(baseline), 0o700); err != nil {
		t.Fatal(err)
	}
	var flags []string
	var ends []netlab.End
	for i, d := range strangeNames {
		end, _ := l.connect(d.name, fmt.Sprint("peer", i), byte(i+1))
		ends = append(ends, end)
		flags = append(flags, d.flag)
	}
	sendToAll := func() {
		t.Helper()
		for _, end := range ends {
			l.send(l.newFlow(end.IPv4.Addr()), 100)
		}
	}
	environment := func(cmd *exec.Cmd) { cmd.Env = append(os.Environ(), "XDP_INTERFACE="+strings.Join(flags, ",")) }
	args := append(serving([]string{"--bpf.pin-path=" + folder, "--trail.file=" + trail}), flagMuch...)

	for round := range 3 {
		var e *exporter
		if round == 1 {
			byFlag := args
			for i := range flags { // in another order
				byFlag = append(byFlag, "--audit.device="+flags[len(flags)-1-i])
			}
			e = l.launch(binaries.exporter, byFlag)
		} else {
			e = l.launch(binaries.exporter, args, environment)
		}
		e.awaitReady("/-/ready")
		if round > 0 {
			e.expectLog(takenOver)
		}
		sendToAll()
		s := e.atRest()
		for _, d := range strangeNames {
			if err := hookIs(d.label, 1)(s); err != nil {
				t.Error(err)
			}
			if got, want := s.sum("packets_total", "device="+d.label), float64(100*(round+1)); got != want {
				t.Errorf("round %d: %v packets were counted on %s, want %v", round, got, d.label, want)
			}
			e.expectLog("hook attached on " + strings.Trim(strconv.Quote(d.label), `"`) + " with mode=drv")
		}
		page := e.get("/metrics", http.StatusOK)
		expectPrintable(t, "the answer", page)
		cmd := exec.Command(promtool, "check", "metrics")
		cmd.Stdin = strings.NewReader(page)
		if output, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool check metrics: %v:\n%s", err, output)
		}
		e.endWith(syscall.SIGTERM)
		expectPrintable(t, "the log", e.stderr.String())
	}
	text, err := os.ReadFile(trail)
	if err != nil {
		t.Fatal(err)
	}
	expectPrintable(t, "the trail", string(text))
	for _, want := range []string{`device=ba%ffd0 `, `device=ba\xffd0 `, `device=a,b `, `device="q\"=$(id)" `} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the trail has no %s", want)
		}
	}
	unpin := l.unpin(folder)
	for _, d := range strangeNames[:4] {
		unpin.expectLog("hook detached", "device="+d.label+"\n")
	}
	expectPrintable(t, "the log of --bpf.unpin", unpin.stderr.String())

	args = serving([]string{"--audit.baseline-file=" + baseline, "--audit.min-samples=2", "--audit.window=20", "--audit.calibrate=0"})
	for _, isFrozen := range []float64{0, 1} {
		e := l.launch(binaries.exporter, args, environment)
		e.awaitReady("/-/ready")
		sendToAll()
		s := e.atRest()
		for _, d := range strangeNames {
			if got := s.series("baseline_frozen", "device="+d.label); len(got) != 1 || got[0].GetGauge().GetValue() != isFrozen {
				t.Errorf("the baseline of %s is frozen: %v, want %v", d.label, got, isFrozen)
			}
		}
		e.expectStopped()
		expectPrintable(t, "the log", e.stderr.String())
		if e.logged("not in the saved baseline") > 0 {
			t.Errorf("a device is not in the saved baseline:\n%s", &e.stderr)
		}
	}
	if text, err = os.ReadFile(baseline); err != nil {
		t.Fatal(err)
	}
	expectPrintable(t, "the baseline file", strings.ReplaceAll(string(text), "\t", ""))
}

// An error prints no bytes of names, and lists devices as they can be given.
func TestErrorsListStrangeNames(t *testing.T) {
	l := newLab(t)
	var listed []string
	for i, d := range strangeNames {
		l.connect(d.name, fmt.Sprint("peer", i), byte(i+1))
		listed = append(listed, strings.ToLower(d.flag))
	}
	for _, given := range []string{"none\x1b2J", "none\x1b*"} {
		p := l.start(binaries.exporter, serving([]string{"--audit.device=" + given, "--no-audit.follow"}))
		p.expectRefusal("devices are ")
		expectPrintable(t, "the error", p.stderr.String())
		for _, name := range listed {
			if !strings.Contains(p.stderr.String(), ", "+name) {
				t.Errorf("the devices have no %s: %s", name, &p.stderr)
			}
		}
	}
	for _, format := range []string{"logfmt", "json"} {
		p := l.start(binaries.exporter, serving([]string{"--check", "--log.format=" + format}))
		p.wait() // no device is given: all are reported
		report := p.stdout.String() + p.stderr.String()
		expectPrintable(t, "the report of --check", report)
		for _, d := range strangeNames {
			if label := strings.Trim(strconv.Quote(d.label), `"`); !strings.Contains(report, d.label) && !strings.Contains(report, label) {
				t.Errorf("the report has no %s: %s", d.label, report)
			}
		}
	}
	p := l.start(binaries.exporter, serving([]string{"--audit.device=\x1b[2J", "--audit.colour=\x1b[31m\x9b"}))
	p.expectRefusal("colour")
	expectPrintable(t, "the error", p.stderr.String())
}

func alias(name string, change func(netlink.Link, string) error) func(netlink.Link) error {
	return func(link netlink.Link) error { return change(link, name) }
}

// A device is audited under the kernel's name if its alternative name is given, and once if
// both are.
func TestAlternativeNames(t *testing.T) {
	l := newLab(t)
	l.change(device, alias("uplink0", netlink.LinkAddAltName))
	l.change(device, alias("a-name-that-is-long", netlink.LinkAddAltName))
	for _, test := range []struct {
		devices string
		aliases int
	}{
		{device, 0},
		{"uplink0", 1},
		{"a-name-that-is-long", 1},
		{"uplink0," + device + ",a-name-that-is-long", 2},
		{device + ",uplink0,audited*", 1},
	} {
		e := l.startExporter("--audit.device="+test.devices, "--no-audit.follow")
		l.send(l.newFlow(l.audited.IPv4.Addr()), 100)
		s := e.atRest()
		if err := hookIs(device, 1)(s); err != nil {
			t.Errorf("%s: %v", test.devices, err)
		}
		if got := len(s.series("hook_up")); got != 1 || s.sum("packets_total") != 100 {
			t.Errorf("%s: %d devices with %v packets, want 1 with 100", test.devices, got, s.sum("packets_total"))
		}
		if got := e.logged("stands for a device", "device="+device); got != test.aliases {
			t.Errorf("%s: %d lines on alternative names, want %d", test.devices, got, test.aliases)
		}
		e.expectStopped()
	}
	// A glob matches the kernel's names only.
	l.start(binaries.exporter, serving([]string{"--audit.device=up*", "--no-audit.follow"})).expectRefusal("no device matches up*", device)
}

// An alternative name that is added, moved or removed while devices are followed.
func TestAnAlternativeNameIsFollowed(t *testing.T) {
	l := newLab(t)
	second, _ := l.connect("audited1", "sender1", 1)
	e := l.startExporter("--audit.device=uplink0", "--audit.follow")
	if err := hookIs("uplink0", 0)(e.scrape()); err != nil {
		t.Error(err)
	}
	is := func(device string) func(scrape) error {
		return func(s scrape) error {
			if got := len(s.series("hook_up")); got != 1 {
				return fmt.Errorf("%d devices, want %s alone", got, device)
			}
			return hookIs(device, 1)(s)
		}
	}
	l.change(device, alias("uplink0", netlink.LinkAddAltName))
	e.await(is(device))
	l.send(l.newFlow(l.audited.IPv4.Addr()), 100)
	e.expectPackets(device, 100)

	l.change(device, alias("uplink0", netlink.LinkDelAltName))
	l.change("audited1", alias("uplink0", netlink.LinkAddAltName))
	e.await(is("audited1"))
	l.awaitAttached("audited1")
	l.send(l.newFlow(second.IPv4.Addr()), 200)
	e.expectPackets("audited1", 200)

	l.change("audited1", alias("uplink0", netlink.LinkDelAltName))
	l.awaitAttached()
	e.await(hookIs("uplink0", 0))
	l.change(device, alias("uplink0", netlink.LinkAddAltName))
	e.await(is(device))
	e.expectPackets(device, 100) // its counters go on
	e.expectStopped()
}

// The hook of a renamed device that is given by an alternative name goes on.
func TestARenamedDeviceWithAnAlternativeName(t *testing.T) {
	l := newLab(t)
	l.change(device, alias("uplink0", netlink.LinkAddAltName))
	e := l.startExporter("--audit.device=uplink0", "--audit.follow")
	l.change(device, alias("audited9", netlink.LinkSetName))
	e.await(hookIs("audited9", 1))
	e.await(hasNoSeries(device))
	l.send(l.newFlow(l.audited.IPv4.Addr()), 300)
	e.expectPackets("audited9", 300)
	if e.logged("attached on audited9") != 1 || e.logged("hook detached") != 0 {
		t.Errorf("the hook did not go on:\n%s", &e.stderr)
	}
	e.expectStopped()
}

// Counters are those of the device, whichever of its names the exporter was given.
func TestPinsOfAnAlternativeName(t *testing.T) {
	l := newLab(t)
	folder := l.mountBPF(0)
	l.change(device, alias("uplink0", netlink.LinkAddAltName))
	for i, given := range []string{"uplink0", device, "uplink0," + device, "uplink0"} {
		e := l.startExporter("--audit.device="+given, "--bpf.pin-path="+folder, "--audit.max-devices=1")
		l.send(l.newFlow(l.audited.IPv4.Addr()), 100)
		e.expectPackets(device, float64(100*(i+1)))
		e.endWith(syscall.SIGTERM)
	}
	l.unpin(folder).expectLog("hook detached", "device="+device)
}
