// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"fmt"
	"math"
	"strings"
)

// Cuts describes the cuts of the calibration: the |t| from which on a flag is rare for its flow.
// The flows are those in the flow table that have been flagged.
type Cuts struct {
	Flows uint64   `json:"flows"`
	Early CutRange `json:"early"`
	Late  CutRange `json:"late"`
}

// CutRange describes the cuts of one side. It is zero without flows.
type CutRange struct {
	Lowest  float64 `json:"lowest"`
	Median  float64 `json:"median"` // to within half a percent
	Highest float64 `json:"highest"`

	bins [cutBins]uint32
}

const (
	// A bin of cuts is a 64th of an octave wide, and the first one begins at the threshold. No cut
	// is more than 33 octaves above the threshold.
	binsPerOctave = 64
	cutBins       = 34 * binsPerOctave
	binsPerStep   = 8 // of the drawing
)

func (r *CutRange) add(cut, threshold float64) {
	cut = finite(cut)
	if r.Lowest == 0 || cut < r.Lowest {
		r.Lowest = cut
	}
	r.Highest = max(r.Highest, cut)
	bin := math.Log2(cut/threshold)*binsPerOctave + 1e-6
	r.bins[int(min(max(bin, 0), cutBins-1))]++
}

// finish computes the median.
func (r *CutRange) finish(flows uint64, threshold float64) {
	below := uint64(0)
	for bin, n := range r.bins {
		if below += uint64(n); n > 0 && 2*below >= flows {
			middle := threshold * exp2((float64(bin)+0.5)/binsPerOctave)
			r.Median = min(max(middle, r.Lowest), r.Highest)
			return
		}
	}
}

// cuts returns the cuts of a device, nil without calibration.
func (s *Site) cuts(device string) *Cuts {
	threshold := s.Audit.Threshold
	if s.Audit.Calibrate == 0 || threshold <= 0 {
		return nil
	}
	c := new(Cuts)
	err := s.Source.VisitCuts(device, func(early, late float64) {
		c.Flows++
		c.Early.add(early, threshold)
		c.Late.add(late, threshold)
	})
	if err != nil {
		return nil
	}
	c.Early.finish(c.Flows, threshold)
	c.Late.finish(c.Flows, threshold)
	return c
}

// drawCuts draws the distribution of the cuts of both sides over the flows.
func drawCuts(cuts *Cuts, threshold float64) *chart {
	c := newChart("Cuts of the flows", 240)
	c.XName, c.YName = "|t| from which on a flag is rare for its flow", "flows"
	if cuts.Flows == 0 {
		c.Empty = "No flow in the flow table has been flagged."
		return c
	}
	var late, early [cutBins / binsPerStep]uint32
	most := uint32(1)
	for bin := range cutBins {
		late[bin/binsPerStep] += cuts.Late.bins[bin]
		early[bin/binsPerStep] += cuts.Early.bins[bin]
	}
	for i := range late {
		most = max(most, late[i], early[i])
	}
	c.x = axis{least: threshold / 1.2, most: max(threshold*8, cuts.Late.Highest*1.3, cuts.Early.Highest*1.3), from: c.Left, to: c.Right, isLog: true}
	c.y = axis{least: 0, most: float64(most) * 1.05, from: c.Bottom, to: c.Top}
	c.XTicks = c.x.decades(digits)
	if len(c.XTicks) < 3 {
		c.XTicks = c.x.halves(digits)
	}
	for _, t := range c.y.linear(4, digits) {
		if !strings.Contains(t.Text, ".") { // flows are whole
			c.YTicks = append(c.YTicks, t)
		}
	}
	c.Areas = []curve{{Path: c.cutSteps(late[:], threshold, true), Color: colors[1].name, Fill: colors[1].fill}}
	c.Lines = []curve{{Path: c.cutSteps(early[:], threshold, false), Color: colors[0].name, Fill: colors[0].fill}}
	c.legend(1, "late")
	c.legend(0, "early")
	c.mark(c.x.at(threshold), "threshold", false)
	c.Label = fmt.Sprintf("Cuts of %s flows with a logarithmic axis: late from %s to %s, median %s; early from %s to %s, median %s", grouped(cuts.Flows),
		score(cuts.Late.Lowest), score(cuts.Late.Highest), score(cuts.Late.Median), score(cuts.Early.Lowest), score(cuts.Early.Highest), score(cuts.Early.Median))
	return c
}

// cutSteps returns the path of the histogram of cuts.
func (c *chart) cutSteps(flows []uint32, threshold float64, isClosed bool) string {
	edge := func(i int) string { return coordinate(c.x.at(threshold * exp2(float64(i*binsPerStep)/binsPerOctave))) }
	var path strings.Builder
	fmt.Fprintf(&path, "M%s %s", edge(0), coordinate(c.Bottom))
	last, height := 0, uint32(0)
	for i, n := range flows {
		if n != height {
			fmt.Fprintf(&path, "H%sV%s", edge(i), coordinate(c.y.at(float64(n))))
			last, height = i, n
		}
	}
	if height > 0 {
		fmt.Fprintf(&path, "H%sV%s", edge(last+1), coordinate(c.Bottom))
	}
	if isClosed {
		path.WriteByte('Z')
	}
	return path.String()
}
