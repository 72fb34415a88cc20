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
)

// restartsSeedVariable repeats the random restarts of a run that failed.
const restartsSeedVariable = "RESTARTS_SEED"

// auditedDevice is what a device must have counted.
type auditedDevice struct {
	flow *flow
	mode uint32 // of the hook; 0 for none

	// counts are the values that its counter may have: the packets that were received while a hook
	// was attached, since each time at which the device may have got an index of its own.
	counts []uint64
	// mayStartOver says that a start did not want the device, so another may have its index now.
	mayStartOver bool
}

// received adds packets that were received while a hook was attached.
func (d *auditedDevice) received(packets uint64) {
	for i := range d.counts {
		d.counts[i] += packets
	}
}

// randomRestarts is a sequence of starts over the same pins.
type randomRestarts struct {
	*lab
	random  *rand.Rand
	devices map[string]*auditedDevice
	names   []string
	pins    []string // flags
}

const (
	poolSize   = 2
	poolRounds = 30
)

// Packets received are packets counted, over starts with random flags, devices and orders that
// share a full pool of indices. A quarter of the starts is killed at a random time.
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
		lab: l, random: rand.New(rand.NewPCG(seed, seed)), devices: map[string]*auditedDevice{},
		pins: []string{"--bpf.pin-path=" + folder, fmt.Sprintf("--audit.max-devices=%d", poolSize)},
	}
	for i := byte(1); i <= 3; i++ {
		l.connect(fmt.Sprint("audited", i), fmt.Sprint("sender", i), i)
	}
	for address, p := range l.pairs {
		if address.Is4() {
			r.devices[p.audited.Device] = &auditedDevice{flow: l.newFlow(address), counts: []uint64{0}}
			r.names = append(r.names, p.audited.Device)
		}
	}
	slices.Sort(r.names)
	outcomes := map[string]int{}
	for round := range rounds {
		outcomes[r.round(round%4 == 3)]++
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
	}
	var attached []string
	for name, d := range r.devices {
		if d.mode != 0 {
			attached = append(attached, name)
		}
	}
	if len(attached) > 0 {
		e := l.startExporter(append(r.pins, "--audit.mode=auto", "--audit.device="+strings.Join(attached, ","))...)
		r.check(e, attached)
		e.endWith(syscall.SIGTERM)
	}
	t.Logf("starts: %v", outcomes)
	l.unpin(folder)
}

// round starts the exporter once and returns what became of it.
func (r *randomRestarts) round(isKilled bool) (outcome string) {
	r.t.Helper()
	flags, wanted, mode := r.flags()
	r.t.Logf("killed: %t, wanted: %v, flags: %v", isKilled, wanted, flags)
	var stop atomic.Bool
	streams := make(chan map[string]uint64)
	go func() { streams <- r.stream(wanted, mode, &stop) }()

	isLate := r.random.IntN(6) == 0
	if isLate {
		flags = append(flags, lastRefusals[0].args(r.t)...)
	}
	e := r.launch(binaries.exporter, serving(append(flags, r.pins...)))
	outcome = "succeeded"
	switch {
	case isKilled:
		e.killAfter(r.random, 400*time.Millisecond)
		if outcome = "killed"; e.cmd.ProcessState.ExitCode() > 0 {
			outcome = "failed"
		}
	case !r.awaitStart(e):
		outcome = "failed"
	}
	stop.Store(true)
	sent := <-streams
	r.settle(outcome, wanted, mode, sent)
	if outcome == "succeeded" {
		r.check(e, wanted)
		r.send()
		r.check(e, wanted)
		e.endWith([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[r.random.IntN(2)])
		r.settle("ended", r.names, mode, nil)
	}
	r.send()
	return outcome
}

// flags returns random flags, the devices that they want and the mode in which these are attached.
func (r *randomRestarts) flags() (flags, wanted []string, mode uint32) {
	names := slices.Clone(r.names)
	r.random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	wanted = names[:1+r.random.IntN(poolSize)]
	mode = attachedDriver
	modes := []string{"drv", "drv", "auto", "skb"}
	flag := modes[r.random.IntN(len(modes))]
	if flag == "skb" {
		mode = attachedGeneric
	}
	devices := slices.Clone(wanted)
	// Naming more devices than the maximum would raise the maximum, and so change the layout.
	named := r.random.IntN(5)
	if named == 1 || named == 2 {
		wanted = wanted[:1]
		devices = slices.Clone(wanted)
	}
	switch named {
	case 0: // as a glob, in the order of their indices, and more of them than there are indices
		digits := ""
		wanted = names[:poolSize+1]
		for _, name := range wanted {
			digits += name[len(name)-1:]
		}
		devices = []string{"audited[" + digits + "]"}
	case 1: // a device that refuses, first
		if flag == "drv" {
			devices = append([]string{"lo"}, devices...)
		}
	case 2: // one that does not exist, first
		devices = append([]string{"absent0"}, devices...)
	case 3: // no device that accepts
		if flag == "drv" {
			devices, wanted = []string{"lo"}, nil
		}
	}
	flags = []string{
		"--audit.device=" + strings.Join(devices, ","), "--audit.mode=" + flag,
		fmt.Sprintf("--audit.threshold=%d", 2+r.random.IntN(5)), fmt.Sprintf("--audit.event-rate=%d", r.random.IntN(1000)),
	}
	if r.random.IntN(2) == 0 {
		flags = append(flags, "--audit.follow")
	}
	return flags, wanted, mode
}

// awaitStart reports whether the exporter serves. It is not ready if no device is audited.
func (r *randomRestarts) awaitStart(e *exporter) (isReady bool) {
	r.t.Helper()
	r.poll(func() error {
		if e.hasEnded() {
			return nil
		}
		status, _, err := e.ask("/-/healthy")
		if isReady = err == nil && status == 200; isReady {
			return nil
		}
		return fmt.Errorf("does not serve: %d, %w", status, err)
	})
	return isReady
}

// stream sends on the devices that are audited before and after a start, and returns how many
// packets each received.
func (r *randomRestarts) stream(wanted []string, mode uint32, stop *atomic.Bool) map[string]uint64 {
	sent := map[string]uint64{}
	for !stop.Load() {
		for _, name := range wanted {
			d := r.devices[name]
			if d.mode != mode {
				continue
			}
			before, err1 := d.flow.pair.tryFrames()
			err2 := d.flow.send(4)
			after, err3 := d.flow.pair.tryFrames()
			if err1 != nil || err2 != nil || err3 != nil {
				r.t.Errorf("sending to %s: %v, %v, %v", name, err1, err2, err3)
				return sent
			}
			sent[name] += 4 - after.minus(before).dropped
		}
		time.Sleep(time.Millisecond)
	}
	return sent
}

// settle compares the hooks after a step with those before, and adds the packets sent meanwhile.
func (r *randomRestarts) settle(outcome string, wanted []string, mode uint32, sent map[string]uint64) {
	r.t.Helper()
	modes := r.attached()
	for name, d := range r.devices {
		isWanted, was := slices.Contains(wanted, name), d.mode
		d.received(sent[name])
		d.mode = modes[name]
		switch {
		case was != 0 && d.mode == 0 && (outcome == "failed" || outcome == "ended" || isWanted && was == mode):
			r.t.Errorf("the start %s, and the hook of %s is gone", outcome, name)
		case was == 0 && d.mode != 0 && outcome == "failed":
			r.t.Errorf("the start failed, and %s has a hook", name)
		case was == 0 && d.mode != 0 && d.mayStartOver:
			d.counts = append(d.counts, 0)
		}
		if !isWanted && (outcome == "succeeded" || outcome == "killed") {
			d.mayStartOver = true
		}
		if outcome == "succeeded" && !isWanted && d.mode != 0 {
			r.t.Errorf("%s has a hook and is not wanted", name)
		}
	}
}

// send sends to every device, whether it has a hook or not.
func (r *randomRestarts) send() {
	r.t.Helper()
	for _, name := range r.names {
		d := r.devices[name]
		n := r.random.IntN(50)
		r.lab.send(d.flow, n)
		if d.mode != 0 {
			d.received(uint64(n))
		}
	}
}

// check expects that each device with a hook has counted what it received.
func (r *randomRestarts) check(e *exporter, wanted []string) {
	r.t.Helper()
	s := e.atRest()
	for _, name := range wanted {
		d := r.devices[name]
		if d.mode == 0 {
			continue
		}
		got := uint64(s.sum("packets_total", "device="+name, "protocol=udp"))
		if !slices.Contains(d.counts, got) {
			r.t.Errorf("%s: %d packets were counted, want one of %v", name, got, d.counts)
		}
		d.counts, d.mayStartOver = []uint64{got}, false
	}
}
