// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// progress is a line on a terminal that is written again and again.
type progress struct {
	w     io.Writer // nil without a terminal
	begin time.Time
	o     *options
}

func newProgress(w io.Writer, o *options) *progress {
	p := &progress{begin: time.Now(), o: o}
	if isTerminal(w) && o.showsProgress {
		p.w = w
	}
	return p
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

const clearLine = "\r\x1b[K"

// show writes the state of a run.
func (p *progress) show(c *counts, report *leak.Report) {
	if p.w != nil {
		fmt.Fprint(p.w, clearLine+p.line(c, report, time.Since(p.begin)))
	}
}

func (p *progress) clear() {
	if p.w != nil {
		fmt.Fprint(p.w, clearLine)
	}
}

// line returns the bar, the rate and the time that is left at most.
func (p *progress) line(c *counts, report *leak.Report, elapsed time.Duration) string {
	const width = 20
	done := float64(c.sent()) / float64(p.o.requests)
	left := time.Duration(float64(p.o.requests-min(c.sent(), p.o.requests)) / p.o.rate * float64(time.Second))
	if p.o.duration > 0 {
		done = max(done, elapsed.Seconds()/p.o.duration.Seconds())
		left = min(left, p.o.duration-min(elapsed, p.o.duration))
	}
	full := int(min(done, 1) * width)
	return fmt.Sprintf("[%s%s] %3.0f %%  %s requests, %.0f/s, at most %v left, %v, evidence 10^%.1f",
		strings.Repeat("=", full), strings.Repeat(" ", width-full), 100*min(done, 1), leak.FormatCount(c.sent()),
		float64(c.sent())/max(elapsed.Seconds(), 1e-3), left.Round(time.Second), report.Verdict, report.EvidenceLog10)
}
