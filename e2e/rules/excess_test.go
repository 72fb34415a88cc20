// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/excess"
	"github.com/xdp-audit/xdp_audit_exporter/internal/testnumber"
	"github.com/xdp-audit/xdp_audit_exporter/internal/traffic"
)

const day = 1440 // minutes

// scoreSeries returns the scores of that many minutes, from the last of the quiet minutes on.
func scoreSeries(r *rand.Rand, device string, of traffic.Minutes, quiet, minutes int) ruleSeries {
	var d excess.Device
	var values []string
	for i := range quiet + minutes {
		d.AddMinute(of(r, i))
		if i >= quiet-1 {
			values = append(values, strconv.FormatFloat(d.Score(), 'g', 6, 64))
		}
	}
	return ruleSeries{`xdp_audit_flag_excess_score{job="xdp_audit",instance="a:9400",device="` + device + `"}`, strings.Join(values, " ")}
}

// changed returns the minutes of one kind, and from minute at on of another.
func changed(from traffic.Minutes, at int, to traffic.Minutes) traffic.Minutes {
	return func(r *rand.Rand, i int) (judged, flags uint64) {
		if i < at {
			return from(r, i)
		}
		return to(r, i)
	}
}

// testScores runs promtool over scores with the shipped alerts.
func testScores(t *testing.T, cases ...ruleCase) {
	t.Helper()
	alerts, err1 := filepath.Abs(alertingRules)
	text, err2 := json.Marshal(ruleTest{RuleFiles: []string{alerts}, EvaluationInterval: "1m", Tests: cases})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "test.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := promtool(t, "test", "rules", path); err != nil {
		t.Errorf("%v:\n%s", err, output)
	}
}

// The kinds of leaks that a fraction of flags over a quarter of an hour does not show. A leak adds
// to the usual flags.
func TestLeaksFire(t *testing.T) {
	const lead = 3 * day
	burst := traffic.Minutes(func(*rand.Rand, int) (judged, flags uint64) { return 60000, 50000 })
	c := ruleCase{Interval: "1m"}
	add := func(device string, from, to traffic.Minutes, alert string, quietUntil, firingAt int) {
		c.InputSeries = append(c.InputSeries, scoreSeries(traffic.Rand(1, device), device, changed(from, lead, to), lead, 300))
		labels := fmt.Sprintf(`{alertname=%q,alertstate="firing",severity="warning",job="xdp_audit",instance="a:9400",device=%q}`, alert, device)
		c.expectNone(quietUntil, fmt.Sprintf(`ALERTS{alertstate="firing",device=%q}`, device))
		c.expect(firingAt, "ALERTS"+labels, 1, 0)
	}
	usual := traffic.PoissonMinutes(60000, 7e-5)
	add("a burst of 50,000 flags within a minute", usual, changed(burst, lead+1, usual), "XDPAuditFlagBurst", 0, 4)
	c.expectNone(8, `ALERTS{alertstate="firing",device="a burst of 50,000 flags within a minute"}`)
	c.expectNone(60, `ALERTS{alertstate="firing",device="a burst of 50,000 flags within a minute"}`)
	add("1e-4 on 7e-5", usual, traffic.PoissonMinutes(60000, 1.7e-4), "XDPAuditFlagExcess", 0, 40)
	add("1e-4 on 7e-5, at 100 packets a second", traffic.PoissonMinutes(6000, 7e-5), traffic.PoissonMinutes(6000, 1.7e-4), "XDPAuditFlagExcess", 0, 180)
	add("1e-2 on 8e-3", traffic.PoissonMinutes(60000, 8e-3), traffic.PoissonMinutes(60000, 1.8e-2), "XDPAuditFlagExcess", 0, 22)
	add("5e-2 on 2.7e-2", traffic.PoissonMinutes(60000, 2.7e-2), traffic.PoissonMinutes(60000, 7.7e-2), "XDPAuditFlagExcess", 0, 22)
	testScores(t, c)
}

// In two days of each kind of quiet device, or in QUIET_DAYS, no alert fires. internal/excess tests
// the scores of months.
func TestQuietDaysDoNotFire(t *testing.T) {
	days := testnumber.Of(t, "QUIET_DAYS", 2)
	c := ruleCase{Interval: "1m"}
	for _, device := range traffic.QuietDevices() {
		c.InputSeries = append(c.InputSeries, scoreSeries(traffic.Rand(1, device.Name), device.Name, device.New(), 1, days*day-1))
	}
	c.expectNone(days*day, fmt.Sprintf(`count_over_time(ALERTS{alertname=~"XDPAuditFlag.+",alertstate="firing"}[%dd])`, days))
	testScores(t, c)
}
