// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// Packets are sent steadily, and some of them late together with all that follow, so that a late
// packet does not make the next one early. A busy machine delays other packets as well, which
// are rightly flagged. So the test requires that planted packets are found, and that the records
// are correct.
func TestLatePacketsAreFlagged(t *testing.T) {
	const (
		packets  = 4000
		interval = time.Millisecond
		spread   = 50 * time.Microsecond
		lateness = 5 * time.Millisecond
	)
	isPlanted := func(i int) bool { return i >= 500 && i%100 == 0 }

	l := newLab(t)
	path := filepath.Join(t.TempDir(), "trail")
	e := l.startExporter("--audit.device="+device, "--audit.min-samples=100", "--audit.event-rate=100000", "--audit.calibrate=0",
		"--trail.file="+path)
	f := l.newFlow(l.audited.IPv4.Addr())

	random := rand.New(rand.NewPCG(1, 2))
	begins, ends := make([]time.Time, packets), make([]time.Time, packets)
	errEnough := errors.New("enough")
	ctx, cancel := context.WithTimeout(l.ctx, patience)
	defer cancel()
	err := netlab.Pace(ctx, func(i int) time.Duration {
		gap := interval + time.Duration(random.NormFloat64()*float64(spread))
		if isPlanted(i) {
			gap += lateness
		}
		return gap
	}, func(i int) error {
		if i == packets {
			return errEnough
		}
		begins[i] = time.Now()
		_, err := f.client.Write(make([]byte, payloadBytes))
		ends[i] = time.Now()
		return err
	})
	if !errors.Is(err, errEnough) {
		t.Fatalf("sending: %v", err)
	}

	s := e.atRest()
	records := readTrail(t, path)
	flags := s.sum("leak_flags_total")
	if flags == 0 || s.sum("events_total") != flags || float64(len(records)) != flags {
		t.Fatalf("%v packets flagged, %v events received, %d records; want the same number, and not 0",
			flags, s.sum("events_total"), len(records))
	}
	found, others := 0, 0
	for _, r := range records {
		r.check(t, f)
		i := r.packet(begins, ends)
		if i >= 0 && isPlanted(i) && r["direction"] == "late" && r.number(t, "delta_ns") >= float64(lateness) {
			found++
		} else {
			others++
		}
	}
	planted := 0
	for i := range packets {
		if isPlanted(i) {
			planted++
		}
	}
	t.Logf("of %d packets %d were planted %v late: %d of these were flagged, and %d others, which were late by themselves",
		packets, planted, lateness, found, others)
	if found == 0 {
		t.Error("no planted packet was flagged")
	}

	// Records are written in the order in which the rings of the CPUs are read, not by time.
	last := slices.MaxFunc(records, func(a, b record) int { return strings.Compare(a["time"], b["time"]) })
	for metric, want := range map[string]float64{
		"last_tscore":        math.Abs(last.number(t, "tscore")),
		"last_delta_seconds": last.number(t, "delta_ns") / 1e9,
		"last_packet_bytes":  last.number(t, "length"),
	} {
		if got := s.sum(metric, "device="+device); math.Abs(got-want) > 0.001 {
			t.Errorf("%s is %v, and the last record says %v", metric, got, want)
		}
	}
	if got := s.sum("last_tscore"); got < 4 {
		t.Errorf("last_tscore is %v, below the threshold", got)
	}
	at, err := time.Parse(time.RFC3339Nano, last["time"])
	if err != nil {
		t.Fatal(err)
	}
	if got := s.sum("last_flag_timestamp_seconds"); math.Abs(got-float64(at.UnixMicro())/1e6) > 0.01 {
		t.Errorf("last_flag_timestamp_seconds is %.3f, and the last record says %s", got, at)
	}
	e.expectStopped()
}

// record is a line of the trail, by key.
type record map[string]string

func readTrail(t *testing.T, path string) (records []record) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		r := record{}
		for field := range strings.FieldsSeq(line) {
			key, value, _ := strings.Cut(field, "=")
			r[key] = value
		}
		records = append(records, r)
	}
	return records
}

func (r record) number(t *testing.T, key string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(r[key], 64)
	if err != nil {
		t.Fatalf("%s of %v: %v", key, r, err)
	}
	return n
}

// check checks every field of a record of a flow.
func (r record) check(t *testing.T, f *flow) {
	t.Helper()
	source, sourcePort, _ := net.SplitHostPort(f.client.LocalAddr().String())
	destination, destinationPort, _ := net.SplitHostPort(f.server.LocalAddr().String())
	const decimal = `\d+\.\d{3}`
	patterns := map[string]string{
		"time":   `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z`,
		"device": device, "direction": "early|late", "tscore": "-?" + decimal,
		"delta_ns": `\d+`, "mean_ns": decimal, "stddev_ns": decimal, "n": `\d+`,
		"source": regexp.QuoteMeta(source), "source_port": sourcePort,
		"destination": regexp.QuoteMeta(destination), "destination_port": destinationPort,
		"protocol": "udp", "length": strconv.Itoa(ethernetBytes + ipv4Bytes + udpBytes + payloadBytes),
	}
	if len(r) != len(patterns) {
		t.Errorf("a record has the keys %v, want those of %v", r, patterns)
	}
	for key, pattern := range patterns {
		if !regexp.MustCompile("^(" + pattern + ")$").MatchString(r[key]) {
			t.Errorf("a record has %s=%s, want %s", key, r[key], pattern)
		}
	}
	// The t-score follows from the other fields.
	n, deviation := r.number(t, "n"), r.number(t, "delta_ns")-r.number(t, "mean_ns")
	want := deviation / (r.number(t, "stddev_ns") * math.Sqrt(1+1/n))
	got := r.number(t, "tscore")
	if math.Abs(got-want) > 0.001+1e-4*math.Abs(want) {
		t.Errorf("a record has the t-score %v, and its fields give %v: %v", got, want, r)
	}
	if math.Abs(got) < 4 || (got > 0) != (r["direction"] == "late") || n < 100 {
		t.Errorf("a record should not be there: %v", r)
	}
}

// packet returns the index of the packet that was sent at the time of the record, or −1 if the
// machine handled the packet only later.
func (r record) packet(begins, ends []time.Time) int {
	at, err := time.Parse(time.RFC3339Nano, r["time"])
	if err != nil {
		return -1
	}
	const slack = 200 * time.Microsecond // for adjustments of the clock
	for i := range begins {
		if !at.Before(begins[i].Add(-slack)) && !at.After(ends[i].Add(slack)) {
			return i
		}
	}
	return -1
}
