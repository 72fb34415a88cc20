// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
	"github.com/xdp-audit/xdp_audit_exporter/internal/history"
)

const (
	devicesOfCosts = 16
	measuring      = 20 * time.Second
	viewers        = 50
)

// TestCosts measures what the pages cost with 16 devices. With COSTS_REPORT it writes the figures
// into a document.
func TestCosts(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	with, without := newLab(t), newLab(t)
	with.addDevices(devicesOfCosts)
	without.addDevices(devicesOfCosts)
	pages := with.start("--audit.device=aud*").ready()
	bare := without.start("--audit.device=aud*", "--web.disable-ui").ready()

	// A page that is not kept: the parameter is part of the key.
	const requests = 40
	before := pages.cpu()
	for i := range requests {
		pages.get(t, http.DefaultClient, fmt.Sprintf("/?page=%d", i))
	}
	page := (pages.cpu() - before) / requests

	// Both run at the same time, so that what else the machine does is the same for both.
	// One viewer of each page in turn, and a scrape of both, every two seconds.
	var memory [2][]float64
	paths := []string{"/", "/device/" + device, "/flags", "/config", "/api/v1/status"}
	for begin, i := time.Now(), 0; time.Since(begin) < measuring; i++ {
		for k, e := range []*exporter{pages, bare} {
			if _, err := e.scrape(); err != nil {
				t.Fatal(err)
			}
			memory[k] = append(memory[k], float64(e.resident()))
		}
		pages.get(t, http.DefaultClient, paths[i%len(paths)])
		pages.get(t, http.DefaultClient, "/")
		time.Sleep(500 * time.Millisecond)
	}
	more := (median(memory[0]) - median(memory[1])) / (1 << 20)

	quiet := pages.scrapeTimes(t)
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	for i := range viewers {
		client := clientFrom(fmt.Sprintf("127.0.0.%d", 2+i))
		watching.Go(func() {
			for ctx.Err() == nil {
				pages.get(t, client, "/")
				select {
				case <-ctx.Done():
				case <-time.After(2 * time.Second):
				}
			}
		})
	}
	busy := pages.scrapeTimes(t)
	cancel()
	watching.Wait()
	ratio := median(busy) / max(median(quiet), median(pages.scrapeTimes(t)))

	share := costOfReadings(t).Seconds() / history.Interval.Seconds()

	rows := []struct {
		name, limit, measured string
		isMet                 bool
	}{
		{"resident memory, with one viewer", "4 MiB", fmt.Sprintf("%.1f MiB", max(more, 0)), more <= 4},
		{"CPU without a viewer", "0.1 % of a core", fmt.Sprintf("%.3f %%", 100*share), share <= 1e-3},
		{"CPU of the page of the status", "20 ms", fmt.Sprintf("%.1f ms", page.Seconds()*1e3), page <= 20*time.Millisecond},
		{"scrape during 50 viewers, as a multiple of one without", "2", fmt.Sprintf("%.2f", ratio), ratio <= 2},
	}
	var table strings.Builder
	fmt.Fprintf(&table, "| cost | limit | measured |\n| --- | --- | --- |\n")
	for _, row := range rows {
		t.Logf("%s: %s, at most %s", row.name, row.measured, row.limit)
		if !row.isMet {
			t.Errorf("%s: %s, want at most %s", row.name, row.measured, row.limit)
		}
		fmt.Fprintf(&table, "| %s | %s | %s |\n", row.name, row.limit, row.measured)
	}
	if path := os.Getenv("COSTS_REPORT"); path != "" {
		if err := document.Update(path, "costs of pages", table.String()); err != nil {
			t.Fatal(err)
		}
	}
}

// costOfReadings returns the CPU time of a reading of the counters for the history, with the
// collection of its garbage.
func costOfReadings(t *testing.T) time.Duration {
	t.Helper()
	l := newLab(t)
	l.addDevices(devicesOfCosts)
	config := bpf.DefaultConfig()
	config.Globs = []string{"aud*"}
	var audit *bpf.Audit
	if err := l.audited.Namespace.Do(func() (err error) {
		audit, err = bpf.Open(config, slog.New(slog.DiscardHandler))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer audit.Close()
	past, now := history.New(), time.Now()
	const readings = 2000
	begin := processTime(t)
	for i := range readings {
		past.Add(now.Add(time.Duration(i)*history.Interval), audit.Counters())
	}
	if n := len(past.Names()); n != devicesOfCosts {
		t.Errorf("%d devices are read, want %d", n, devicesOfCosts)
	}
	return (processTime(t) - begin) / readings
}

// processTime returns the CPU time of this process.
func processTime(t *testing.T) time.Duration {
	t.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// median returns the median of values.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// scrapeTimes returns the times of scrapes in seconds.
func (e *exporter) scrapeTimes(t *testing.T) (times []float64) {
	t.Helper()
	for range 60 {
		begin := time.Now()
		if _, err := e.scrape(); err != nil {
			t.Fatal(err)
		}
		times = append(times, time.Since(begin).Seconds())
		time.Sleep(50 * time.Millisecond)
	}
	return times
}

// get reads a page.
func (e *exporter) get(t *testing.T, client *http.Client, path string) {
	t.Helper()
	response, err := client.Get(e.url(path))
	if err != nil {
		t.Error(err)
		return
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("%s: %s, %v", path, response.Status, err)
	}
}

// clientFrom returns a client with an address of its own.
func clientFrom(address string) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	return &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}, Timeout: patience}
}

// cpu returns the CPU time of the exporter.
func (e *exporter) cpu() (total time.Duration) {
	e.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", e.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		e.t.Fatalf("no tasks: %v", err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		if err != nil {
			e.t.Fatal(err)
		}
		total += time.Duration(ns)
	}
	return total
}

// resident returns the resident memory of the exporter in bytes.
func (e *exporter) resident() int {
	e.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.cmd.Process.Pid))
	if err != nil {
		e.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	kilobytes, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		e.t.Fatal(err)
	}
	return kilobytes << 10
}
