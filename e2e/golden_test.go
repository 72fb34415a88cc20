// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files in testdata from the exporter")

// expectGolden compares text with a golden file, line by line.
func expectGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := string(text)
	missing := slices.DeleteFunc(strings.Split(want, "\n"), func(line string) bool { return strings.Contains(got, line+"\n") })
	added := slices.DeleteFunc(strings.Split(got, "\n"), func(line string) bool { return strings.Contains(want, line+"\n") })
	if got != want {
		t.Errorf("%s differs; -update writes it.\nmissing:\n%s\nnew:\n%s", path, strings.Join(missing, "\n"), strings.Join(added, "\n"))
	}
}

// oneAssessment is a configuration of leak assessments.
const oneAssessment = "assessments: [{name: login, protocol: tcp, port: 443, classes: {fixed: {dscp: 8}, random: {dscp: 16}}}]"

// The names, types and labels of all metrics are those of testdata/metrics.golden. Users'
// dashboards and alerts depend on them. The golden file is the union of several exporters,
// because some series exclude each other.
func TestMetricsAreGolden(t *testing.T) {
	const packets = 100_000
	l := newLab(t)
	l.enableRunTime()
	baseline := filepath.Join(t.TempDir(), "folder", "baseline.json")
	if err := os.Mkdir(filepath.Dir(baseline), 0o700); err != nil {
		t.Fatal(err)
	}
	// Without requests the effect and its interval are absent.
	assessments := filepath.Join(t.TempDir(), "leak.yml")
	if err := os.WriteFile(assessments, []byte(oneAssessment), 0o600); err != nil {
		t.Fatal(err)
	}
	times := make([]uint64, packets)
	for i := range times {
		times[i] = 1e12 + uint64(i)*1e6 + uint64(i*i%1009)
	}
	lines := map[string]bool{}
	for _, args := range [][]string{
		// The first of these writes the file, the second reads it.
		{"--audit.clock=metadata", "--audit.calibrate=1e-3", "--audit.baseline-file=" + baseline, "--privileges.keep"},
		{"--audit.clock=metadata", "--audit.calibrate=1e-3", "--audit.baseline-file=" + baseline},
		{"--audit.clock=metadata", "--audit.baseline=device", "--audit.domain=log2"},
		{"--audit.calibrate=0", "--leak.config.file=" + assessments, "--leak.raw-file=" + filepath.Join(t.TempDir(), "raw.csv")},
	} {
		e := l.startExporter(append([]string{
			"--audit.device=" + device, "--collector.covert",
			"--trail.file=" + filepath.Join(t.TempDir(), "trail"),
		}, args...)...)
		if err := newGenerator(t, l.sender, generatorOptions{times: times}).send(generatedFrame(), packets); err != nil {
			t.Fatal(err)
		}
		e.atRest()
		for _, family := range e.scrapeProtobuf() {
			for _, line := range describe(family) {
				lines[line] = true
			}
		}
		e.endWith(syscall.SIGTERM)
	}
	expectGolden(t, "testdata/metrics.golden", strings.Join(slices.Sorted(maps.Keys(lines)), "\n")+"\n")
}

// enableRunTime makes processes in the audited namespace believe that kernel.bpf_stats_enabled
// is 1, so that the exporter has the metrics of run time. The setting of the host stays.
func (l *lab) enableRunTime() {
	l.t.Helper()
	path := filepath.Join(l.t.TempDir(), "enabled")
	if err := os.WriteFile(path, []byte("1\n"), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.mountBPF(0)
	err := l.audited.Namespace.Do(func() error {
		return unix.Mount(path, "/proc/sys/kernel/bpf_stats_enabled", "", unix.MS_BIND, "")
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// describe returns one line for the type of a family and one for each of its series, without
// values.
func describe(family *dto.MetricFamily) []string {
	// The values of these labels belong to the build, the kernel or the machine.
	masked := []string{
		"program_id", "program_tag", "capability", "branch", "goarch", "goos", "goversion", "revision", "tags", "version",
	}
	name := family.GetName()
	lines := []string{"# TYPE " + name + " " + strings.ToLower(family.GetType().String())}
	for _, m := range family.GetMetric() {
		var labels []string
		for _, pair := range m.GetLabel() {
			value := pair.GetValue()
			if slices.Contains(masked, pair.GetName()) {
				value = "*"
			}
			labels = append(labels, fmt.Sprintf("%s=%q", pair.GetName(), value))
		}
		line := fmt.Sprintf("%s{%s}", name, strings.Join(labels, ","))
		if h := m.GetHistogram(); h != nil {
			if h.Schema != nil {
				line += fmt.Sprintf(" schema=%d", h.GetSchema())
			}
			for _, bucket := range h.GetBucket() {
				line += fmt.Sprintf(" le=%v", bucket.GetUpperBound())
			}
			if n := len(h.GetBucket()); n > 0 && !math.IsInf(h.GetBucket()[n-1].GetUpperBound(), 1) {
				line += " le=+Inf" // a client adds it
			}
		}
		for _, quantile := range m.GetSummary().GetQuantile() {
			line += fmt.Sprintf(" quantile=%v", quantile.GetQuantile())
		}
		lines = append(lines, line)
	}
	return lines
}

// The names, defaults and environment variables of all flags are those of
// testdata/flags.golden. Users' scripts depend on them.
func TestFlagsAreGolden(t *testing.T) {
	if err := cannotRun(); err != nil {
		skip(t, err)
	}
	help, err := exec.Command(binaries.exporter, "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, listed, isThere := strings.Cut(string(help), "Audit:\n")
	if !isThere {
		t.Fatalf("no flags in %s", help)
	}
	title := regexp.MustCompile(`^ +(-\w, )?(--\S+(?: \.\.\.)?)(  |$)`)
	variable := regexp.MustCompile(`\(\$(\w+)\)`)
	var flags []string
	for line := range strings.SplitSeq(listed, "\n") {
		if match := title.FindStringSubmatch(line); match != nil {
			flags = append(flags, match[1]+match[2])
		}
		if match := variable.FindStringSubmatch(line); match != nil {
			flags[len(flags)-1] += " $" + match[1]
		}
	}
	if len(flags) < 40 {
		t.Fatalf("%d flags in %s", len(flags), help)
	}
	expectGolden(t, "testdata/flags.golden", strings.Join(flags, "\n")+"\n")
}
