// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"bytes"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/xdp-audit/xdp_audit_exporter/internal/history"
)

// maxScreenshot is the maximum size of a screenshot in bytes.
const maxScreenshot = 200_000

// TestScreenshots writes the screenshots of the documents into the directory SCREENSHOTS. They show
// an exporter that has audited the traffic of a showcase for as long as a history is.
func TestScreenshots(t *testing.T) {
	folder := os.Getenv("SCREENSHOTS")
	if folder == "" {
		t.Skip("SCREENSHOTS names no directory: make screenshots does")
	}
	after := history.Points * history.Interval
	if text := os.Getenv("SCREENSHOTS_AFTER"); text != "" {
		var err error
		if after, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	e := newShowcase(t)
	time.Sleep(after)
	b := newBrowser(t)
	for _, shot := range []struct {
		name, path, end string // the picture ends after this element
		scheme          string
	}{
		{"pages", "/", "section[aria-labelledby=events]", "light"},
		{"pages-dark", "/", "section[aria-labelledby=events]", "dark"},
		{"pages-device", "/device/eth0", "section[aria-labelledby=calibration]", "light"},
		{"pages-flags", "/flags", "tbody tr:nth-child(12)", "light"},
		{"pages-leak", "/leak", ".pair", "light"},
	} {
		b.show(1440, 900, shot.scheme)
		b.run(chromedp.Navigate(e.url(shot.path)))
		height := evaluate[float64](b, `document.querySelector("`+shot.end+`").getBoundingClientRect().bottom + 16`)
		b.show(1440, int64(height), shot.scheme)
		var picture []byte
		b.run(chromedp.CaptureScreenshot(&picture))
		small := compress(t, picture)
		t.Logf("%s.png has %d bytes", shot.name, len(small))
		if len(small) > maxScreenshot {
			t.Errorf("%s.png has %d bytes, want at most %d", shot.name, len(small), maxScreenshot)
		}
		if err := os.WriteFile(filepath.Join(folder, shot.name+".png"), small, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// compress reduces a picture to its 256 most frequent colours. The others are those of edges of
// letters, and become the nearest of these.
func compress(t *testing.T, picture []byte) []byte {
	t.Helper()
	full, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	counts := map[color.RGBA]int{}
	bounds := full.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			if c, ok := color.RGBAModel.Convert(full.At(x, y)).(color.RGBA); ok {
				counts[c]++
			}
		}
	}
	var frequent []color.RGBA
	for c := range counts {
		frequent = append(frequent, c)
	}
	slices.SortFunc(frequent, func(a, b color.RGBA) int {
		if counts[a] != counts[b] {
			return counts[b] - counts[a]
		}
		return int(a.R) - int(b.R) + 256*(int(a.G)-int(b.G)) + 65536*(int(a.B)-int(b.B))
	})
	var palette color.Palette
	for _, c := range frequent[:min(256, len(frequent))] {
		palette = append(palette, c)
	}
	reduced := image.NewPaletted(bounds, palette)
	draw.Draw(reduced, bounds, full, bounds.Min, draw.Src)
	var small bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	if err := encoder.Encode(&small, reduced); err != nil {
		t.Fatal(err)
	}
	return small.Bytes()
}

// The committed screenshots are those that the documents show, and none is too large.
func TestScreenshotsAreCommitted(t *testing.T) {
	const images = "../../docs/images"
	for _, name := range []string{"pages", "pages-dark", "pages-device", "pages-flags", "pages-leak"} {
		info, err := os.Stat(filepath.Join(images, name+".png"))
		if err != nil {
			t.Error(err, ": run make screenshots")
			continue
		}
		if info.Size() > maxScreenshot {
			t.Errorf("%s has %d bytes, want at most %d", info.Name(), info.Size(), maxScreenshot)
		}
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if i := bytes.Index(readme, []byte("](docs/images/pages.png)")); i < 0 || i > 1000 {
		t.Error("the README does not open with a screenshot")
	}
}
