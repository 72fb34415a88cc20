// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// One CPU of the machine goes offline for a second while packets arrive. No packet is lost or
// counted twice, and scrapes continue. If the exporter may open rings, it opens a new one for
// that CPU; otherwise the log says that its events are lost. The test affects the whole machine,
// so it needs CPU_HOTPLUG=1.
func TestACPUGoesAndComesBack(t *testing.T) {
	if os.Getenv("CPU_HOTPLUG") != "1" {
		t.Skip("CPU_HOTPLUG=1 takes a CPU away from the machine for a second, again and again")
	}
	cpu, err := lastCPU()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		description string
		isLate      bool // the CPU is offline when the exporter starts
		isMended    bool
		args        []string
	}{
		{"events are lost without privileges", false, false, nil},
		{"events find a new ring with privileges", false, true, []string{"--privileges.keep"}},
		{"events find a new ring while devices are followed", false, true, []string{"--audit.follow"}},
		{"a CPU that was offline at the start gets a ring", true, true, []string{"--privileges.keep"}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			f := l.newFlow(l.audited.IPv4.Addr())
			args := append(append([]string{"--audit.device=" + device}, flagMuch...), test.args...)
			var e *exporter
			if test.isLate {
				l.withoutCPU(cpu, func() { e = l.startExporter(args...) })
			} else {
				e = l.startExporter(args...)
				traffic := l.startStream(f)
				last, scrapes := 0.0, 0
				l.withoutCPU(cpu, func() {
					for end := time.Now().Add(time.Second); time.Now().Before(end); scrapes++ {
						if _, err := e.scrapeUnderLoad(&last); err != nil {
							t.Fatal(err)
						}
					}
				})
				sent, err := traffic.end()
				if err != nil {
					t.Error(err)
				}
				t.Logf("%d packets and %d scrapes without CPU %d", sent.received, scrapes, cpu)
			}

			ringless := func(s scrape) float64 {
				return s.sum("event_fates_total", "fate=no_reader") + s.sum("event_fates_total", "fate=other")
			}
			sendThere := func() {
				if err := f.sendOn(cpu, 500); err != nil {
					t.Fatal(err)
				}
			}
			message := []string{"level=INFO", "offline"}
			if !test.isMended {
				message[0] = "level=ERROR"
			}
			l.poll(func() error {
				sendThere()
				if e.logged(message...) == 0 {
					return fmt.Errorf("the log has no line with %q; %v events found no ring", message, ringless(e.scrape()))
				}
				return nil
			})
			before := e.atRest()
			if ringless(before) == 0 {
				t.Error("every event found a ring")
			}
			var after scrape
			l.poll(func() error {
				sendThere()
				after = e.atRest()
				if flags := after.sum("leak_flags_total") - before.sum("leak_flags_total"); flags < 100 {
					return fmt.Errorf("%v packets were flagged", flags)
				}
				return nil
			})
			if lost := ringless(after) - ringless(before); lost > 0 == test.isMended {
				t.Errorf("%v more events found no ring", lost)
			}
			l.pair().expectCounted(after, f.written.Load())
			if err := f.checkArrival(); err != nil {
				t.Error(err)
			}
			t.Logf("of %v flags %v were sent, %v found no reader and %v had another fate", after.sum("leak_flags_total"),
				after.sum("event_fates_total", "fate=sent"), after.sum("event_fates_total", "fate=no_reader"),
				after.sum("event_fates_total", "fate=other"))
			e.expectLog(message...)
			e.expectStopped()
		})
	}
}

// withoutCPU calls during while a CPU is offline. It skips the test if the kernel cannot take
// the CPU offline.
func (l *lab) withoutCPU(cpu int, during func()) {
	l.t.Helper()
	file := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/online", cpu)
	if err := os.WriteFile(file, []byte("0"), 0); err != nil {
		skip(l.t, fmt.Errorf("the kernel takes no CPU away: %w", err))
	}
	defer func() { // also when the test fails
		if err := os.WriteFile(file, []byte("1"), 0); err != nil {
			l.t.Error(err)
		}
	}()
	during()
}

// sendOn is send on a CPU: a veth pair receives on the CPU that sends.
func (f *flow) sendOn(cpu, packets int) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
		var set unix.CPUSet
		set.Set(cpu)
		err := unix.SchedSetaffinity(0, &set)
		failed <- errors.Join(err, f.send(packets))
	}()
	return <-failed
}
