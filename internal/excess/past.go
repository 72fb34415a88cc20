// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package excess

import (
	"errors"
	"fmt"
)

// Past is what a device has learnt of its flags, to be continued by a later process. It has no
// score. docs/baseline-file.md describes the fields.
type Past struct {
	Minutes    int      `json:"minutes"` // with scored packets
	Judged     float64  `json:"judged"`
	Flags      float64  `json:"flags"`
	Dispersion []Blocks `json:"dispersion"`
}

// Blocks are the sums of the complete blocks of one length.
type Blocks struct {
	Blocks       float64 `json:"blocks"`
	Squares      float64 `json:"squares"`
	Usual        float64 `json:"usual"`
	UsualSquares float64 `json:"usual_squares"`
}

// maxSum is far above every sum of a past, and its square is a number.
const maxSum = 1e60

// Past returns the past of the device.
func (d *Device) Past() Past {
	p := Past{Minutes: d.minutes, Judged: d.judged, Flags: d.flags, Dispersion: make([]Blocks, len(scales))}
	for i, s := range d.dispersion {
		p.Dispersion[i] = Blocks{s.blocks, s.squares, s.usual, s.usualSquares}
	}
	return p
}

// Continue returns a device with a past that [Past.Validate] accepts, and with the score 0.
func Continue(p Past) Device {
	d := Device{minutes: p.Minutes, judged: p.Judged, flags: p.Flags}
	for i, b := range p.Dispersion {
		d.dispersion[i] = dispersion{blocks: b.Blocks, squares: b.Squares, usual: b.Usual, usualSquares: b.UsualSquares}
	}
	return d
}

// Validate returns an error for a past that no device has.
func (p Past) Validate() error {
	if len(p.Dispersion) != len(scales) {
		return fmt.Errorf("its past has the dispersion of %d lengths, not %d", len(p.Dispersion), len(scales))
	}
	if p.Minutes < 0 || (p.Minutes > 0) != (p.Judged > 0) {
		return fmt.Errorf("its past has %v scored packets in %d minutes", p.Judged, p.Minutes)
	}
	if p.Flags < 0 || p.Flags > p.Judged {
		return fmt.Errorf("its past has %v flags of %v scored packets", p.Flags, p.Judged)
	}
	if p.Judged > maxSum {
		return fmt.Errorf("its past has %v scored packets", p.Judged)
	}
	for _, b := range p.Dispersion {
		for _, sum := range []float64{b.Blocks, b.Squares, b.Usual, b.UsualSquares} {
			if sum < 0 || sum > maxSum {
				return fmt.Errorf("its past has an impossible dispersion of %v", sum)
			}
		}
		if (b.Usual > 0) != (b.UsualSquares > 0) || b.Usual > 0 && b.Blocks == 0 {
			return errors.New("its past has a dispersion without blocks or usual flags")
		}
	}
	return nil
}
