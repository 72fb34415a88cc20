// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// assessments returns a configuration with an assessment of each port. The options of each, such as
// target: 1us, may be followed by others.
func assessments(options map[string]string, ports map[string]int) string {
	text := "assessments:\n"
	for name, port := range ports {
		text += fmt.Sprintf("  - {name: %s, protocol: tcp, port: %d, classes: {fixed: {dscp: 8}, random: {dscp: 16}}%s}\n", name, port, options[name])
	}
	return text
}

// writeConfig replaces a configuration at once, as an editor does.
func (l *lab) writeConfig(path, text string) {
	l.t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
		l.t.Fatal(err)
	}
}

// awaitResponses waits until an assessment has exactly as many responses as were asked for, and
// expects that no request of it is excluded.
func (e *exporter) awaitResponses(assessment string, want float64) (s scrape) {
	e.lab.t.Helper()
	s = e.await(func(s scrape) error {
		if got := s.sum("leak_responses_total", "assessment="+assessment); got != want {
			return fmt.Errorf("%v responses of %s, want %v: %v", got, assessment, want, s.series("leak_excluded_total"))
		}
		return nil
	})
	if got := s.sum("leak_excluded_total", "assessment="+assessment); got != 0 {
		e.lab.t.Errorf("%v requests of %s are excluded: %v", got, assessment, s.series("leak_excluded_total"))
	}
	return s
}

// checkEgress returns an error unless a device has one program of outgoing packets while an
// exporter runs, and none after its end. Before Linux 6.6 it is a filter, which an exporter without
// privileges leaves for the next.
func (l *lab) checkEgress(name string, runs bool) error {
	return l.audited.Namespace.Do(func() error {
		found, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		query, err := link.QueryPrograms(link.QueryOptions{Target: found.Attrs().Index, Attach: ebpf.AttachTCXEgress})
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
			filters, err := netlink.FilterList(found, netlink.HANDLE_MIN_EGRESS)
			if n := len(filters); err == nil && (n > 1 || runs && n != 1) {
				err = fmt.Errorf("%d filters see outgoing packets", n)
			}
			return err
		}
		if err == nil && (len(query.Programs) > 0) != runs || err == nil && len(query.Programs) > 1 {
			err = fmt.Errorf("%d programs see outgoing packets", len(query.Programs))
		}
		return err
	})
}

func (l *lab) expectEgress(name string, runs bool) {
	l.t.Helper()
	if err := l.checkEgress(name, runs); err != nil {
		l.t.Error(err)
	}
}

// An assessment sees every request of its service, whatever else the exporter does.
func TestLeakVariants(t *testing.T) {
	const n = 30
	for _, test := range []struct {
		description string
		args        []string
		isIPv6      bool
	}{
		{"a baseline of the device, of logarithms", []string{"--audit.baseline=device", "--audit.domain=log2"}, false},
		{"generic mode", []string{"--audit.mode=skb"}, false},
		{"IPv6", nil, true},
		{"every packet flagged, covert channels judged", append([]string{"--collector.covert"}, flagMuch...), false},
		{"few connections", []string{"--leak.connections=8"}, false},
		{"privileges kept", []string{"--privileges.keep"}, true},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			at := l.audited.IPv4.Addr()
			if test.isIPv6 {
				at = l.audited.IPv6.Addr()
			}
			service := l.newLeakyService(at)
			config := filepath.Join(t.TempDir(), "leak.yml")
			l.writeConfig(config, assessments(nil, map[string]int{"login": service.port}))
			e := l.startExporter(append([]string{"--audit.device=" + device, "--leak.config.file=" + config}, test.args...)...)
			service.ask(n)
			e.awaitResponses("login", n)
			l.expectEgress(device, true)
			e.endWith(syscall.SIGTERM)
			l.expectEgress(device, false)
		})
	}
}

// Reloads without privileges add, change and remove assessments while requests pass. One that stays
// loses none of them, and has them once.
func TestLeakReloadsUnderTraffic(t *testing.T) {
	const connections, each, reloads = 4, 60, 40
	l := newLab(t)
	stays, changes := l.newLeakyService(l.audited.IPv4.Addr()), l.newLeakyService(l.audited.IPv6.Addr())
	folder := t.TempDir()
	config := filepath.Join(folder, "leak.yml")
	alone := map[string]int{"login": stays.port}
	both := map[string]int{"login": stays.port, "search": changes.port}
	l.writeConfig(config, assessments(nil, alone))
	e := l.startExporter("--audit.device="+device, "--leak.config.file="+config, "--leak.raw-file="+filepath.Join(folder, "raw-{assessment}.csv"), "--web.enable-lifecycle")
	e.expectThreads(nothing())

	var group sync.WaitGroup
	for range connections {
		for _, service := range []*leakyService{stays, changes} {
			group.Go(func() {
				if _, err := service.tryAsk(each); err != nil {
					t.Error(err)
				}
			})
		}
	}
	for i := range reloads {
		switch i % 5 {
		case 0:
			l.writeConfig(config, assessments(nil, both))
		case 1:
			l.writeConfig(config, assessments(map[string]string{"search": ", target: 2us"}, both))
		case 2:
			l.writeConfig(config, assessments(map[string]string{"search": ", device: " + device}, both))
		case 3:
			l.writeConfig(config, "assessments: [")
		case 4:
			l.writeConfig(config, assessments(nil, alone))
		}
		e.signal(syscall.SIGHUP)
		successful := 1.0
		if i%5 == 3 {
			successful = 0
		}
		e.await(func(s scrape) error {
			if got := s.sum("config_last_reload_successful"); got != successful {
				return fmt.Errorf("reload %d: successful is %v", i, got)
			}
			return nil
		})
	}
	group.Wait()
	e.awaitResponses("login", connections*each)
	// One that is added again sees the requests from then on.
	l.writeConfig(config, assessments(nil, both))
	e.signal(syscall.SIGHUP)
	e.await(func(s scrape) error {
		if got := len(s.series("leak_target_seconds")); got != 2 {
			return fmt.Errorf("%d assessments", got)
		}
		return nil
	})
	changes.ask(each)
	e.awaitResponses("search", each)
	e.expectThreads(nothing())
	if failed := e.logged("Cannot reload"); failed != reloads/5 {
		t.Errorf("%d failed reloads are logged, want %d", failed, reloads/5)
	}
	e.endWith(syscall.SIGTERM)
	raw, err := os.ReadFile(filepath.Join(folder, "raw-login.csv"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(raw), "\n") - 1; lines != connections*each {
		t.Errorf("the raw file has %d responses, want %d", lines, connections*each)
	}
}

// With pins, counters and hooks continue, and an assessment begins again. Its requests are measured
// from the start of the exporter on, whichever exporter was there before.
func TestLeakRestarts(t *testing.T) {
	const n = 20
	l := newLab(t)
	folder := l.mountBPF(0)
	service := l.newLeakyService(l.audited.IPv4.Addr())
	config := filepath.Join(t.TempDir(), "leak.yml")
	l.writeConfig(config, assessments(nil, map[string]int{"login": service.port}))
	plain := []string{"--audit.device=" + device, "--bpf.pin-path=" + folder}
	leak := append([]string{"--leak.config.file=" + config}, plain...)

	var last scrape
	for i, step := range []struct {
		args []string
		end  syscall.Signal
	}{{plain, syscall.SIGTERM}, {leak, syscall.SIGTERM}, {leak, syscall.SIGKILL}, {leak, syscall.SIGKILL}, {plain, syscall.SIGKILL}, {leak, syscall.SIGTERM}} {
		e := l.startExporter(step.args...)
		if i > 0 {
			e.expectLog(takenOver)
		}
		service.ask(n)
		var s scrape
		if len(step.args) == len(leak) {
			s = e.awaitResponses("login", n)
			l.expectEgress(device, true)
		} else if s = e.scrape(); len(s.series("leak_responses_total")) > 0 {
			t.Errorf("step %d: an exporter without assessments has responses", i)
		}
		if err := s.checkIdentities(); err != nil {
			t.Error(err)
		}
		if before, now := last.sum("packets_total"), s.sum("packets_total"); now < before+n {
			t.Errorf("step %d: %v packets after %v", i, now, before)
		}
		last = s
		e.endWith(step.end)
		if modes := l.attached(); modes[device] == 0 {
			t.Errorf("step %d: the hook is detached", i)
		}
		l.expectEgress(device, false)
		service.ask(n) // in between
	}
	l.unpin(folder)
}

// Requests that are outstanding while an exporter replaces another are of neither. The next ones of
// the same connections count.
func TestLeakRestartsUnderTraffic(t *testing.T) {
	const connections, each, restarts = 4, 100, 6
	l := newLab(t)
	folder := l.mountBPF(0)
	service := l.newLeakyService(l.audited.IPv4.Addr())
	config := filepath.Join(t.TempDir(), "leak.yml")
	l.writeConfig(config, assessments(nil, map[string]int{"login": service.port}))
	args := []string{"--audit.device=" + device, "--bpf.pin-path=" + folder, "--leak.config.file=" + config}
	e := l.startExporter(args...)
	var group sync.WaitGroup
	var isOver atomic.Bool
	defer group.Wait()
	defer isOver.Store(true)
	for range connections {
		group.Go(func() {
			for !isOver.Load() {
				if _, err := service.tryAsk(each); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range restarts {
		e.await(func(s scrape) error {
			if s.sum("leak_responses_total") < 10 {
				return fmt.Errorf("restart %d: %v responses", i, s.sum("leak_responses_total"))
			}
			return nil
		})
		if s := e.scrape(); s.sum("leak_excluded_total") > connections {
			t.Errorf("restart %d: excluded are %v", i, s.series("leak_excluded_total"))
		}
		e.endWith([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[i%2])
		e = l.startExporter(args...)
	}
	isOver.Store(true)
	group.Wait()
	e.endWith(syscall.SIGTERM)
	l.unpin(folder)
}

// Devices come and go while an assessment of all of them, and one of a device that is not there
// yet, are in use.
func TestLeakFollowsDevices(t *testing.T) {
	const n = 15
	l := newLab(t)
	config := filepath.Join(t.TempDir(), "leak.yml")
	first := l.newLeakyService(l.audited.IPv4.Addr())
	// The second device has its own addresses, on which a service can listen once it is there.
	second := netip.MustParseAddr("192.0.2.17")
	var later *leakyService
	l.writeConfig(config, assessments(nil, map[string]int{"login": first.port}))
	e := l.startExporter("--audit.device=audited*", "--audit.follow", "--leak.config.file="+config)
	first.ask(n)
	e.awaitResponses("login", n)
	for i := range 3 {
		l.connect("audited1", "sender1", 1)
		l.awaitAttached(device, "audited1")
		if later == nil {
			later = l.newLeakyService(second)
			options := map[string]string{"search": ", device: audited1"}
			l.writeConfig(config, assessments(options, map[string]int{"login": first.port, "search": later.port}))
			e.signal(syscall.SIGHUP)
			e.await(func(s scrape) error {
				if len(s.series("leak_target_seconds")) != 2 {
					return errors.New("search is not there")
				}
				return nil
			})
		}
		l.poll(func() error { return l.checkEgress("audited1", true) })
		later.ask(n)
		first.ask(n)
		e.awaitResponses("search", float64((i+1)*n))
		e.awaitResponses("login", float64((i+2)*n))
		l.delete("audited1")
		l.awaitAttached(device)
	}
	e.endWith(syscall.SIGTERM)
}

// On a full disk an assessment gets every response, each lost line is counted, and no line is torn.
// When there is space again, the raw file continues.
func TestAFullDiskUnderARawFile(t *testing.T) {
	const page, n = 4096, 60
	l := newLab(t)
	folder := l.mountTmpfs(16 * page)
	ballast, raw := filepath.Join(folder, "ballast"), filepath.Join(folder, "raw.csv")
	inNamespace := func(f func() error) {
		t.Helper()
		if err := l.audited.Namespace.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	service := l.newLeakyService(l.audited.IPv4.Addr())
	config := filepath.Join(t.TempDir(), "leak.yml")
	l.writeConfig(config, assessments(nil, map[string]int{"login": service.port}))
	// The file has one page of space, of which all but a few lines are used.
	const head, space = "V1,V2\n", 100
	inNamespace(func() error {
		old := head + strings.Repeat("X,1\n", (page-len(head)-space)/4)
		err := os.WriteFile(raw, []byte(old+strings.Repeat("\n", page-space-len(old))), 0o600)
		fill := make([]byte, 64*page)
		_ = os.WriteFile(ballast, fill, 0o600) // until there is no space
		return err
	})
	e := l.startExporter("--audit.device="+device, "--leak.config.file="+config, "--leak.raw-file="+raw)
	service.ask(n)
	s := e.awaitResponses("login", n)
	lost := s.sum("leak_raw_write_errors_total")
	if written := s.sum("leak_raw_lines_total"); lost == 0 || written == 0 || written+lost < n-1 {
		t.Errorf("%v lines are written and %v lost", written, lost)
	}
	e.expectLog("level=ERROR", "Raw response times are lost", "no space left")
	inNamespace(func() error { return os.Truncate(ballast, 0) })
	service.ask(n)
	s = e.awaitResponses("login", 2*n)
	e.expectLog("Raw response times are written again")
	if got := s.sum("leak_raw_lines_total") + s.sum("leak_raw_write_errors_total"); got != 2*n || s.sum("leak_raw_write_errors_total") != lost {
		t.Errorf("%v lines are counted, want %d, and %v lost after %v", got, 2*n, s.sum("leak_raw_write_errors_total"), lost)
	}
	e.endWith(syscall.SIGTERM)
	var text []byte
	inNamespace(func() (err error) {
		text, err = os.ReadFile(raw)
		return err
	})
	line := regexp.MustCompile(`^[XY],[0-9]+$`)
	for i, got := range strings.Split(strings.TrimSuffix(string(text[page-space:]), "\n"), "\n") {
		if !line.MatchString(got) {
			t.Errorf("line %d of the new ones is %q", i, got)
		}
	}
	if got, want := strings.Count(string(text[page-space:]), "\n"), int(s.sum("leak_raw_lines_total")); got != want {
		t.Errorf("the file has %d new lines, want %d", got, want)
	}
}
