// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
)

// A CPU is taken away from the whole machine for a second, and given back, while packets arrive: none is lost or counted
// twice, and scrapes go on. Only with CPU_HOTPLUG=1, as it is felt by whatever else runs.
func TestACPUGoesAndComesBack(t *testing.T) {
	if os.Getenv("CPU_HOTPLUG") != "1" {
		t.Skip("CPU_HOTPLUG=1 takes a CPU away from the machine for a second")
	}
	cpu, err := lastCPU()
	if err != nil {
		t.Fatal(err)
	}
	switchFile := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/online", cpu)
	set := func(state string) error { return os.WriteFile(switchFile, []byte(state), 0) }
	l := newLab(t)
	e := l.startExporter(append([]string{"--audit.device=" + device}, flagMuch...)...)
	traffic := l.startStream(l.newFlow(l.audited.IPv4.Addr()))
	last, scrapes := 0.0, 0
	scrapeFor := func(during time.Duration) (err error) {
		for end := time.Now().Add(during); err == nil && time.Now().Before(end); scrapes++ {
			_, err = e.scrapeUnderLoad(&last)
		}
		return err
	}
	err = func() (err error) {
		if err := set("0"); err != nil {
			t.Skipf("the kernel takes no CPU away: %v", err)
		}
		defer func() { err = errors.Join(err, set("1")) }() // whatever happens
		return scrapeFor(time.Second)
	}()
	if err := errors.Join(err, scrapeFor(time.Second)); err != nil {
		t.Error(err)
	}
	sent, err := traffic.end()
	if err != nil {
		t.Error(err)
	}
	s := e.atRest()
	if got := s.sum("packets_total", "family=ipv4", "protocol=udp"); got != float64(sent) {
		t.Errorf("%v packets were counted, and %d sent", got, sent)
	}
	t.Logf("%d packets, %d scrapes; of %v flags %v were sent, %v found no reader and %v had another fate", sent, scrapes,
		s.sum("leak_flags_total"), s.sum("event_fates_total", "fate=sent"), s.sum("event_fates_total", "fate=no_reader"),
		s.sum("event_fates_total", "fate=other"))
	e.expectStopped()
}
