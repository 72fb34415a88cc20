// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// restartsSeedVariable repeats the random restarts of a run that failed.
const restartsSeedVariable = "RESTARTS_SEED"

// counter is what the exporter must have counted for a name.
type counter struct {
	// counts are the values that it may have: the packets that were received while a hook counted
	// for the name, since each time at which the name may have got an index of its own.
	counts []uint64
	// mayStartOver says that a start did not want the name, so another may have its index now.
	mayStartOver bool
}

// auditedDevice is a network device, which keeps its hook under another name.
type auditedDevice struct {
	name string
	flow *flow
	mode uint32 // of the hook; 0 for none

	owner string // the name that the hook counts for
	// isUnclear says that the hook may count for the owner or for the name: a start has prepared it
	// for the name and was not completed. Nothing is sent then.
	isUnclear bool
}

// randomRestarts is a sequence of starts over the same pins.
type randomRestarts struct {
	*lab
	random   *rand.Rand
	devices  []*auditedDevice
	names    []string // that devices may have, one more than there are devices
	counters map[string]*counter
	pins     []string // flags
	layout   string   // flag of the pinned maps; empty before the first start that has pinned any
}

// start is one start of the exporter.
type start struct {
	flags    []string
	wanted   []string
	mode     uint32 // in which the wanted devices are attached
	layout   string // flag
	isQuiet  bool   // nothing is sent meanwhile
	isKilled bool   // at a random time
	isEnded  bool   // by SIGTERM at a random time
}

const (
	poolSize   = 2
	poolRounds = 30
)

// Packets received are packets counted, over starts with random flags, devices, orders, names and
// layouts that share a full pool of indices. At a random time, a quarter of the starts is killed,
// and another is ended by SIGTERM.
func TestRandomRestartsOverAFullPool(t *testing.T) {
	seed, rounds := uint64(time.Now().UnixNano()), poolRounds
	if text := os.Getenv(restartsSeedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if testing.Short() {
		rounds = 8
	}
	t.Logf("%s=%d repeats these starts", restartsSeedVariable, seed)
	l := newLab(t)
	folder := l.mountBPF(0)
	r := &randomRestarts{
		lab: l, random: rand.New(rand.NewPCG(seed, seed)), counters: map[string]*counter{},
		pins: []string{"--bpf.pin-path=" + folder, fmt.Sprintf("--audit.max-devices=%d", poolSize)},
	}
	for i := byte(1); i <= 3; i++ {
		l.connect(fmt.Sprint("audited", i), fmt.Sprint("sender", i), i)
	}
	for address, p := range l.pairs {
		if address.Is4() {
			r.devices = append(r.devices, &auditedDevice{name: p.audited.Device, flow: l.newFlow(address)})
		}
	}
	slices.SortFunc(r.devices, func(a, b *auditedDevice) int { return strings.Compare(a.name, b.name) })
	for i := range len(r.devices) + 1 {
		name := fmt.Sprint("audited", i)
		r.names = append(r.names, name)
		r.counters[name] = &counter{counts: []uint64{0}}
	}
	outcomes := map[string]int{}
	for round := range rounds {
		if r.random.IntN(3) == 0 {
			r.rename()
		}
		outcomes[r.round(round)]++
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	digits := ""
	for _, d := range r.devices {
		if d.mode != 0 {
			digits += d.name[len(d.name)-1:]
		}
	}
	if digits != "" {
		s := start{mode: attachedDriver, layout: r.layout}
		for _, d := range r.devices {
			if d.mode != 0 {
				s.wanted = append(s.wanted, d.name)
			}
		}
		e := l.startExporter(append(r.pins, "--audit.mode=auto", "--audit.device=audited["+digits+"]", s.layout)...)
		r.settle("succeeded", s, nil)
		r.check(e, s.wanted)
		e.endWith(syscall.SIGTERM)
	}
	t.Logf("starts: %v", outcomes)
	l.unpin(folder)
}

// rename gives two devices each the name of the other, or one a name that no device has.
func (r *randomRestarts) rename() {
	r.t.Helper()
	set := func(d *auditedDevice, name string) {
		r.t.Helper()
		r.t.Logf("%s becomes %s", d.name, name)
		r.change(d.name, func(link netlink.Link) error { return netlink.LinkSetName(link, name) })
		d.name = name
	}
	devices := slices.Clone(r.devices)
	r.random.Shuffle(len(devices), func(i, j int) { devices[i], devices[j] = devices[j], devices[i] })
	a, b := devices[0], devices[1]
	first, second := a.name, b.name
	free := r.names[slices.IndexFunc(r.names, func(name string) bool { return r.device(name) == nil })]
	set(a, free)
	if r.random.IntN(2) == 0 {
		set(b, first)
		set(a, second)
	}
}

// device returns the device of a name, nil if there is none.
func (r *randomRestarts) device(name string) *auditedDevice {
	if i := slices.IndexFunc(r.devices, func(d *auditedDevice) bool { return d.name == name }); i >= 0 {
		return r.devices[i]
	}
	return nil
}

// received adds packets that a device has received while it had a hook.
func (r *randomRestarts) received(d *auditedDevice, packets uint64) {
	counts := r.counters[d.owner].counts
	for i := range counts {
		counts[i] += packets
	}
}

// round starts the exporter once and returns what became of it.
func (r *randomRestarts) round(n int) (outcome string) {
	r.t.Helper()
	s := r.plan()
	switch n % 4 {
	case 1:
		s.isEnded = true
	case 3: // between the maps and the hooks of a commit, a kill leaves hooks that count nowhere
		s.isKilled, s.isEnded = !s.isQuiet, s.isQuiet
	}
	r.t.Logf("%+v", s)
	var stop atomic.Bool
	streams := make(chan map[*auditedDevice]uint64)
	go func() { streams <- r.stream(s, &stop) }()

	if r.random.IntN(6) == 0 {
		s.flags = append(s.flags, lastRefusals[0].args(r.t)...)
	}
	e := r.launch(binaries.exporter, serving(slices.Concat(s.flags, r.pins, []string{s.layout})))
	outcome = "succeeded"
	switch {
	case s.isKilled:
		e.killAfter(r.random, 400*time.Millisecond)
		if outcome = "killed"; e.cmd.ProcessState.ExitCode() > 0 {
			outcome = "failed"
		}
	case s.isEnded:
		if outcome = r.endDuringStart(e); outcome == "ended" {
			// The start was completed, and the exporter has ended in order.
			defer func() { outcome = "completed" }()
			outcome = "succeeded"
		}
	case !r.awaitStart(e):
		outcome = "failed"
	}
	stop.Store(true)
	sent := <-streams
	if s.isQuiet && e.logged("Pinned maps do not fit") > 0 {
		for _, c := range r.counters {
			*c = counter{counts: []uint64{0}}
		}
		r.layout = s.layout
	}
	if outcome == "succeeded" || outcome == "killed" && r.layout == "" {
		r.layout = s.layout
	}
	r.settle(outcome, s, sent)
	if outcome == "succeeded" && !e.hasEnded() {
		r.check(e, s.wanted)
		r.send()
		r.check(e, s.wanted)
		e.endWith([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[r.random.IntN(2)])
		r.settle("ended", start{}, nil)
	}
	r.send()
	return outcome
}

// endDuringStart sends SIGTERM at a random time and returns what became of the start: failed,
// interrupted, or ended after it was completed.
func (r *randomRestarts) endDuringStart(e *exporter) string {
	r.t.Helper()
	select {
	case <-e.ended:
	case <-time.After(time.Duration(r.random.Int64N(int64(400 * time.Millisecond)))):
		_ = e.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	}
	switch code := e.wait(); {
	case code > 0:
		return "failed"
	case code == 0 && e.logged("Starting xdp_audit_exporter") == 1:
		return "ended"
	}
	return "interrupted" // before or after the signal is caught
}

// plan returns a start with random flags.
func (r *randomRestarts) plan() (s start) {
	var names []string
	for _, d := range r.devices {
		names = append(names, d.name)
	}
	r.random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	s.wanted = names[:1+r.random.IntN(poolSize)]
	s.mode = attachedDriver
	modes := []string{"drv", "drv", "auto", "skb"}
	mode := modes[r.random.IntN(len(modes))]
	if mode == "skb" {
		s.mode = attachedGeneric
	}
	devices := slices.Clone(s.wanted)
	// Naming more devices than the maximum would raise the maximum, and so change the layout.
	named := r.random.IntN(5)
	if named == 1 || named == 2 {
		s.wanted = s.wanted[:1]
		devices = slices.Clone(s.wanted)
	}
	switch named {
	case 0: // as a glob, in the order of their indices, and more of them than there are indices
		digits := ""
		s.wanted = names[:poolSize+1]
		for _, name := range s.wanted {
			digits += name[len(name)-1:]
		}
		devices = []string{"audited[" + digits + "]"}
	case 1: // a device that refuses, first
		if mode == "drv" {
			devices = append([]string{"lo"}, devices...)
		}
	case 2: // one that does not exist, first
		devices = append([]string{"absent0"}, devices...)
	case 3: // no device that accepts
		if mode == "drv" {
			devices, s.wanted = []string{"lo"}, nil
		}
	}
	s.flags = []string{
		"--audit.device=" + strings.Join(devices, ","), "--audit.mode=" + mode,
		fmt.Sprintf("--audit.threshold=%d", 2+r.random.IntN(5)), fmt.Sprintf("--audit.event-rate=%d", r.random.IntN(1000)),
	}
	if r.random.IntN(2) == 0 {
		s.flags = append(s.flags, "--audit.follow")
	}
	s.layout = r.layout
	if other := fmt.Sprint("--audit.flows=", 1024<<r.random.IntN(2)); r.layout == "" || r.random.IntN(4) == 0 {
		s.layout = other
	}
	s.isQuiet = r.layout != "" && s.layout != r.layout
	return s
}

// awaitStart reports whether the start succeeds. Without a device the exporter is not ready.
func (r *randomRestarts) awaitStart(e *exporter) (isServing bool) {
	r.t.Helper()
	r.poll(func() error {
		if e.hasEnded() {
			return nil
		}
		_, _, err := e.ask("/-/healthy")
		isServing = err == nil
		return err
	})
	return isServing
}

// stream sends on the devices that are audited before and after a start under the same name, and
// returns how many packets each received.
func (r *randomRestarts) stream(s start, stop *atomic.Bool) map[*auditedDevice]uint64 {
	sent := map[*auditedDevice]uint64{}
	for !stop.Load() {
		for _, name := range s.wanted {
			d := r.device(name)
			if s.isQuiet || d.mode != s.mode || d.owner != name || d.isUnclear {
				continue
			}
			before, err1 := d.flow.pair.tryFrames()
			err2 := d.flow.send(4)
			after, err3 := d.flow.pair.tryFrames()
			if err1 != nil || err2 != nil || err3 != nil {
				r.t.Errorf("sending to %s: %v, %v, %v", name, err1, err2, err3)
				return sent
			}
			sent[d] += 4 - after.minus(before).dropped
		}
		time.Sleep(time.Millisecond)
	}
	return sent
}

// settle compares the hooks after a step with those before, and adds the packets sent meanwhile.
func (r *randomRestarts) settle(outcome string, s start, sent map[*auditedDevice]uint64) {
	r.t.Helper()
	modes := r.attached()
	isKept := outcome == "failed" || outcome == "interrupted" || outcome == "ended"
	for _, d := range r.devices {
		isWanted, was := slices.Contains(s.wanted, d.name), d.mode
		hasIndex := d.owner == d.name && !d.isUnclear && (!s.isQuiet || len(s.wanted) <= poolSize)
		if was != 0 {
			r.received(d, sent[d])
		}
		d.mode = modes[d.name]
		own := r.counters[d.name]
		switch {
		case was != 0 && d.mode == 0 && (isKept || isWanted && hasIndex && was == s.mode):
			r.t.Errorf("the start %s, and the hook of %s is gone", outcome, d.name)
		case was == 0 && d.mode != 0 && isKept:
			r.t.Errorf("the start %s, and %s has a hook", outcome, d.name)
		case d.mode == 0:
			d.owner, d.isUnclear = "", false
		case outcome == "succeeded" || was == 0:
			if (was == 0 || !hasIndex) && own.mayStartOver {
				own.counts = append(own.counts, 0)
			}
			d.owner, d.isUnclear = d.name, false
		case isWanted && d.owner != d.name:
			d.isUnclear = true
		}
		if outcome == "succeeded" && !isWanted && d.mode != 0 {
			r.t.Errorf("%s has a hook and is not wanted", d.name)
		}
	}
	if outcome == "succeeded" || outcome == "killed" {
		for name, c := range r.counters {
			c.mayStartOver = c.mayStartOver || !slices.Contains(s.wanted, name)
		}
	}
}

// send sends to every device, whether it has a hook or not.
func (r *randomRestarts) send() {
	r.t.Helper()
	for _, d := range r.devices {
		n := r.random.IntN(50)
		if d.isUnclear {
			continue
		}
		r.lab.send(d.flow, n)
		if d.mode != 0 {
			r.received(d, uint64(n))
		}
	}
}

// check expects that each device with a hook has counted what it received.
func (r *randomRestarts) check(e *exporter, wanted []string) {
	r.t.Helper()
	s := e.atRest()
	for _, name := range wanted {
		if r.device(name).mode == 0 {
			continue
		}
		c := r.counters[name]
		got := uint64(s.sum("packets_total", "device="+name, "protocol=udp"))
		if !slices.Contains(c.counts, got) {
			r.t.Errorf("%s: %d packets were counted, want one of %v", name, got, c.counts)
		}
		c.counts, c.mayStartOver = []uint64{got}, false
	}
}
