// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/xdp-audit/xdp_audit_exporter/internal/pages"
)

// Each page fits into narrow and wide windows in both colour schemes, and axe-core finds nothing.
func TestPagesFitAndAreAccessible(t *testing.T) {
	s := newSite(t, func(o *pages.Options) { o.ShowFlows = true }, deviceNames(16)...)
	for _, paths := range [][]string{
		{"/", "/device/enp3s0f1np1", "/covert"},
		{"/flags", "/config"},
		{"/device/enp7s0f1np1", "/flags?device=enp3s0f1np1", "/leak"},
	} {
		t.Run(strings.Join(paths, " "), func(t *testing.T) {
			t.Parallel()
			b := newBrowser(t)
			for _, path := range paths {
				b.expectFits(s, path)
			}
		})
	}
}

// expectFits opens a page in each size and colour scheme.
func (b *browser) expectFits(s *site, path string) {
	b.t.Helper()
	for _, width := range []int64{375, 1440} {
		for _, scheme := range []string{"light", "dark"} {
			what := fmt.Sprintf("%s with %d pixels, %s", path, width, scheme)
			b.show(width, 900, scheme)
			b.run(chromedp.Navigate(s.url + path))
			if got := evaluate[int64](b, `document.documentElement.scrollWidth`); got > width {
				b.t.Errorf("%s: the page has %d pixels: %s", what, got, evaluate[string](b,
					`[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 100)).slice(0, 3).join("\n")`))
			}
			b.expectAccessible(what)
		}
	}
}

// The names of devices may have any characters. Nothing of them becomes HTML or a script.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	names := []string{
		"eth0", `"><svg`, "'onload='x", "<b>x&amp;", "{{.Name}}", "a%22%20b%ff", "</td>x", "javascript:x", "\u202eabc", "${x}", "a#b?c=d", "+", "a;b&c",
		strings.Repeat("<x>", 40), `"onfocus="alert(1)"autofocus="`, "<img/src/onerror=alert(1)>", "<script>alert(1)</script>",
	}
	s := newSite(t, nil, names...)
	b := newBrowser(t)
	b.show(1440, 900, "light")
	b.run(chromedp.Navigate(s.url + "/"))
	shown := evaluate[[]string](b, `[...document.querySelectorAll("tr[data-device]")].map(r => r.querySelector("th").textContent)`)
	if fmt.Sprint(shown) != fmt.Sprint(names) {
		t.Errorf("the devices are %q, want %q", shown, names)
	}
	if n := evaluate[int](b, `document.querySelectorAll("main script, main img, main b, main x, main [onload], main [onfocus], main iframe").length`); n != 0 {
		t.Errorf("%d elements come from names", n)
	}
	links := evaluate[[]string](b, `[...document.querySelectorAll("tr[data-device] th a")].map(a => a.href)`)
	for i, link := range links {
		if strings.Contains(names[i], "/") {
			continue // no device has a slash in its name
		}
		b.run(chromedp.Navigate(link))
		if got := evaluate[string](b, `document.querySelector("h1 .name") ? document.querySelector("h1 .name").textContent : "missing"`); got != names[i] {
			t.Errorf("the link %s shows %q, want %q", link, got, names[i])
		}
		if got := evaluate[string](b, `fetch("/api/v1/devices/" + encodeURIComponent(document.querySelector("h1 .name").textContent)).then(r => r.json()).then(d => d.device)`); got != names[i] {
			t.Errorf("the API has %q, want %q", got, names[i])
		}
		b.run(chromedp.Navigate(s.url + "/flags?device=" + url.QueryEscape(names[i])))
		if got := evaluate[string](b, `document.getElementById("device").value`); got != names[i] {
			t.Errorf("the filter is %q, want %q", got, names[i])
		}
	}
	for _, path := range []string{"/covert", "/config"} {
		b.run(chromedp.Navigate(s.url + path))
	}
}

// The pages refresh themselves until they are paused, and show what vanishes and what fails.
func TestLiveUpdates(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil, "eth0", "eth1")
	b := newBrowser(t)
	b.show(1440, 900, "light")
	b.run(chromedp.Navigate(s.url + "/"))
	packets := `document.querySelector("tr[data-device=eth0] [data-field=packets]").dataset.value`
	before := evaluate[string](b, packets)
	b.run(chromedp.Evaluate(`window.isFirst = true; document.querySelector("tr[data-device=eth1] a").focus()`, nil))
	change := func(f func()) {
		s.audit.mu.Lock()
		defer s.audit.mu.Unlock()
		f()
	}
	change(func() { s.audit.packets += 1000 })
	b.await(packets+` !== "`+before+`"`, patience)
	if !evaluate[bool](b, `window.isFirst && document.activeElement.textContent === "eth1"`) {
		t.Error("an update loses the focus or loads the page again")
	}
	change(func() { s.audit.gone["eth1"], s.audit.ready = true, errNotReady })
	b.await(`document.querySelector("tr[data-device=eth1]").classList.contains("gone") && document.querySelector("tr[data-device=eth1]").innerText.includes("vanished")`, patience)
	b.await(`document.querySelector(".notice.bad").innerText.includes("<eth0> has vanished")`, patience)
	change(func() { s.audit.ready = nil })
	b.await(`!document.querySelector(".notice.bad")`, patience)

	// By keyboard: the button is reached with Tab, and pressed.
	b.run(chromedp.Evaluate(`document.activeElement.blur(); document.querySelector("header li:last-child a").focus()`, nil), chromedp.KeyEvent(kb.Tab))
	if got := evaluate[string](b, `document.activeElement.textContent`); got != "Pause" {
		t.Fatalf("Tab reaches %q, want Pause", got)
	}
	b.run(chromedp.KeyEvent(kb.Enter))
	b.await(`document.querySelector("[role=status]").textContent === "paused"`, patience)
	paused := evaluate[string](b, packets)
	requests := len(b.hosts)
	change(func() { s.audit.packets += 1000 })
	// The script would have asked for the page after two seconds.
	if got := evaluate[string](b, `new Promise(done => setTimeout(() => done(`+packets+`), 3500))`); got != paused || len(b.hosts) != requests {
		t.Errorf("while paused, packets change from %s to %s", paused, got)
	}
	b.run(chromedp.Reload())
	if got := evaluate[string](b, `document.querySelector("#live button").textContent`); got != "Resume" {
		t.Errorf("after a reload the button says %q, want Resume", got)
	}
	b.run(chromedp.KeyEvent(kb.Tab))
	if got := evaluate[string](b, `document.activeElement.textContent`); got != "Skip to the content" {
		t.Errorf("Tab first reaches %q", got)
	}
}

// A page that cannot be updated says so.
func TestFailedUpdatesAreShown(t *testing.T) {
	t.Parallel()
	var fails atomic.Int32
	s := newSite(t, nil, "eth0")
	s.answer(func(next http.Handler, w http.ResponseWriter, r *http.Request) {
		switch fails.Load() {
		case 1:
			http.Error(w, "busy", http.StatusServiceUnavailable)
		case 2:
			panic(http.ErrAbortHandler)
		default:
			next.ServeHTTP(w, r)
		}
	})
	b := newBrowser(t)
	b.isOpen = true // failed requests are logged
	b.run(chromedp.Navigate(s.url + "/"))
	status := `document.querySelector("[role=status]").textContent`
	for i, want := range []string{"live", "not updated: status 503", "not updated: no connection", "live"} {
		fails.Store(int32(i % 3))
		b.await(status+` === "`+want+`"`, patience)
	}
}

// What the page of a device says if the device has vanished: nothing that is not known.
func TestPageOfAVanishedDevice(t *testing.T) {
	s := newSite(t, nil, "eth0", "eth1")
	s.audit.gone["eth1"] = true
	var device struct {
		State              string
		Packets            uint64
		Outcomes           map[string]uint64
		Protocols, Buckets []any
		Cuts               any
	}
	if err := json.NewDecoder(get(t, s.url+"/api/v1/devices/eth1").Body).Decode(&device); err != nil {
		t.Fatal(err)
	}
	if device.State != "gone" || device.Packets == 0 || len(device.Outcomes) != 0 || len(device.Protocols) != 0 || device.Cuts != nil {
		t.Errorf("the API has %+v", device)
	}
	if text := read(t, s.url+"/device/eth1"); !strings.Contains(text, "not known of a device that has vanished") || strings.Contains(text, "Every packet has one outcome") {
		t.Errorf("the page is %s", text)
	}
}

// The cuts of flows are drawn and described. Without calibration there are none.
func TestCutsOfFlows(t *testing.T) {
	s := newSite(t, nil, "eth0")
	if text := read(t, s.url+"/device/eth0"); !strings.Contains(text, "Cuts of 2\u202f000 flows") || !strings.Contains(text, "the median late cut is <strong>6.8") {
		t.Errorf("the page is %s", text)
	}
	s.audit.cuts = 0
	if text := read(t, s.url+"/device/eth0"); !strings.Contains(text, "No flow in the flow table has been flagged.") {
		t.Errorf("without flows the page is %s", text)
	}
	s = newSite(t, func(o *pages.Options) { o.Audit.Calibrate = 0 }, "eth0")
	if text := read(t, s.url+"/device/eth0"); strings.Contains(text, "Cuts of") || !strings.Contains(text, "The calibration is off") {
		t.Errorf("without calibration the page is %s", text)
	}
}

// The time of a flag has a date, since the last flags may be those of days. The drawing has flags
// of the last ten minutes also if the clock has been set meanwhile.
func TestTimesOfFlags(t *testing.T) {
	s := newSite(t, nil, "eth0")
	events, _ := s.flags.Last()
	if text, want := read(t, s.url+"/flags"), events[0].Time.UTC().Format("<time>2006-01-02 15:04:05.000</time>"); !strings.Contains(text, want) {
		t.Errorf("the page lacks %s: %s", want, text)
	}
	for _, event := range events {
		event.Time = event.Time.Add(time.Hour)
		s.flags.Add(&event)
	}
	if text := read(t, s.url+"/device/eth0"); strings.Contains(text, "There was no event in the last 10 minutes") {
		t.Error("after the clock was set back, the page has no flags")
	}
}

// Without devices the page says what the exporter waits for.
func TestNoDevice(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	b := newBrowser(t)
	for _, path := range []string{"/", "/flags", "/covert"} {
		b.show(375, 900, "light")
		b.run(chromedp.Navigate(s.url + path))
		b.expectAccessible(path + " without devices")
	}
	if text := read(t, s.url+"/"); !strings.Contains(text, "as soon as it appears") || strings.Contains(text, "<thead role") {
		t.Errorf("the page is %s", text)
	}
}

// Large counts, as those of years, do not leave their section.
func TestLargeCountsFit(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil, "eth0", strings.Repeat("W", 15))
	s.audit.packets = 1 << 60
	b := newBrowser(t)
	for _, path := range []string{"/", "/device/eth0"} {
		b.expectFits(s, path)
	}
}

// Without scripts, a page has the same content.
func TestPagesNeedNoScript(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil, "eth0")
	b := newBrowser(t)
	b.withoutScript()
	for _, test := range []struct{ path, want string }{
		{"/", "audited."}, {"/device/eth0", "Inter-arrival times"}, {"/flags", "11.1"}, {"/covert", "autocorrelation"}, {"/leak", "login"}, {"/config", "--audit.device"},
	} {
		var text string
		b.run(chromedp.Navigate(s.url+test.path), chromedp.Text("main", &text))
		if !strings.Contains(text, test.want) {
			t.Errorf("%s lacks %q: %s", test.path, test.want, text)
		}
	}
}

// A page of 16 devices has at most 100 KB. More devices have pages of their own.
func TestSizes(t *testing.T) {
	s := newSite(t, nil, deviceNames(16)...)
	for _, path := range []string{"/", "/device/enp3s0f1np1", "/flags", "/covert", "/leak", "/config", "/api/v1/status", "/assets/style.css", "/assets/live.js"} {
		response := get(t, s.url+path)
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s has %d bytes", path, len(text))
		if len(text) > 100_000 || response.StatusCode != http.StatusOK {
			t.Errorf("%s has %d bytes and status %d, want at most 100000", path, len(text), response.StatusCode)
		}
	}
	many := newSite(t, nil, deviceNames(200)...)
	text, err := io.ReadAll(get(t, many.url+"/?page=2").Body)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "data-device="); n != 64 || !strings.Contains(string(text), "?page=3") {
		t.Errorf("page 2 has %d devices", n)
	}
}

// docs/api.md names every field of the API.
func TestAPIIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, func(o *pages.Options) { o.ShowFlows = true }, "eth0", "eth1")
	for _, path := range []string{"status", "devices/eth0", "flags", "covert", "leak", "config"} {
		response := get(t, s.url+"/api/v1/"+path)
		var content any
		if err := json.NewDecoder(response.Body).Decode(&content); err != nil || response.Header.Get("Content-Type") != "application/json; charset=utf-8" {
			t.Fatalf("%s: %v, %s", path, err, response.Header.Get("Content-Type"))
		}
		for name := range fields(content, map[string]bool{}) {
			if !strings.Contains(string(text), "`"+name+"`") {
				t.Errorf("docs/api.md lacks `%s` of %s", name, path)
			}
		}
		if !strings.Contains(string(text), "`/api/v1/"+strings.Replace(path, "eth0", "NAME", 1)+"`") {
			t.Errorf("docs/api.md lacks the path of %s", path)
		}
	}
	if response := get(t, s.url+"/api/v1/devices/eth9"); response.StatusCode != http.StatusNotFound || response.Header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Errorf("a device that is not known: %s %s", response.Status, response.Header.Get("Content-Type"))
	}
}

// fields adds the names of all fields. Keys of counts by name are not fields, and the report of a
// leak assessment is that of another document.
func fields(content any, names map[string]bool) map[string]bool {
	switch content := content.(type) {
	case map[string]any:
		for name, value := range content {
			names[name] = true
			switch name {
			case "fates", "outcomes", "decisions", "alarms", "scores", "excluded", "report":
			default:
				fields(value, names)
			}
		}
	case []any:
		for _, value := range content {
			fields(value, names)
		}
	}
	return names
}
