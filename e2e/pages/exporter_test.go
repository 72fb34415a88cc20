// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"golang.org/x/crypto/bcrypt"

	"github.com/xdp-audit/xdp_audit_exporter/internal/pages"
)

// The demo prints the address of the page first. The page shows hook, packets and a planted flag
// within five seconds, without being loaded again.
func TestDemo(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "the tests do not run as root")
	}
	b := newBrowser(t)
	demo := exec.Command(binary(t, "demo"), binary(t, "xdp_audit_exporter"))
	demo.Env = append(os.Environ(), "DEMO_LISTEN=127.0.0.1:0")
	demo.Stderr = os.Stderr
	out, err := demo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = demo.Process.Signal(syscall.SIGTERM)
		_ = demo.Wait()
	})
	lines := bufio.NewScanner(out)
	lines.Scan()
	address := regexp.MustCompile(`http://\S+/$`).FindString(lines.Text())
	if address == "" {
		t.Fatalf("the first line of the demo has no address of a page: %q", lines.Text())
	}
	go func() {
		for lines.Scan() {
		}
	}()
	b.show(1440, 900, "light")
	deadline := time.Now().Add(patience)
	for b.try(chromedp.Navigate(address)) != nil || !evaluate[bool](b, `!!document.querySelector("tr[data-device]")`) {
		if time.Now().After(deadline) {
			t.Fatal("the page of the demo does not open")
		}
	}
	b.run(chromedp.Evaluate(`window.isFirst = true`, nil))
	row := `document.querySelector("tr[data-device=` + device + `]")`
	field := func(name string) string { return row + `.querySelector("[data-field=` + name + `]").dataset.value > 0` }
	took := b.await(row+`.innerText.includes("up") && `+field("packets")+` && `+field("flags")+` && window.isFirst`, 5*time.Second)
	t.Logf("the page shows hook, packets and flags after %v", took.Round(10*time.Millisecond))

	// The events of planted packets follow on the page of the flags.
	b.run(chromedp.Navigate(strings.TrimSuffix(address, "/") + "/flags"))
	b.await(`[...document.querySelectorAll("tbody tr")].some(r => /late/.test(r.innerText) && /1\d(\.\d+)?\sms after the flow's last packet; .* earlier gaps averaged/.test(r.innerText))`, patience)
}

// At rest, the numbers of the page are those of the metrics.
func TestNumbersAreThoseOfTheMetrics(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	e := l.start("--audit.device=" + device).ready()
	l.send(1000)
	b := newBrowser(t)
	var metrics string
	deadline := time.Now().Add(patience)
	for {
		var err error
		if metrics, err = e.scrape(); err != nil {
			t.Fatal(err)
		}
		isRead := sum(t, metrics, "xdp_audit_events_total", device, "") == sum(t, metrics, "xdp_audit_event_fates_total", device, `fate="sent"`)
		if isRead && sum(t, metrics, "xdp_audit_packets_total", device, "") == 1000 || time.Now().After(deadline) {
			break
		}
	}
	expectAPI(t, e, metrics)
	b.run(chromedp.Navigate(e.url("/")))
	value := func(name string) uint64 {
		return evaluate[uint64](b, `+document.querySelector("tr[data-device=`+device+`] [data-field=`+name+`]").dataset.value`)
	}
	packets, flags := sum(t, metrics, "xdp_audit_packets_total", device, ""), sum(t, metrics, "xdp_audit_leak_flags_total", device, "")
	b.await(fmt.Sprintf(`document.querySelector("[data-field=packets]").dataset.value == %d`, packets), patience)
	if packets != 1000 || value("flags") != flags {
		t.Errorf("the page has %d packets and %d flags, the metrics %d and %d", value("packets"), value("flags"), packets, flags)
	}
	parts := func(section string) string {
		return `Object.fromEntries([...document.querySelectorAll("section[aria-labelledby=` + section + `] .parts tbody tr")].map(r => [r.cells[0].innerText.trim(), +r.cells[1].innerText.replace(/\D/g, "")]))`
	}
	expect := func(section, metric, label string, whole uint64) {
		t.Helper()
		var total uint64
		for name, n := range evaluate[map[string]uint64](b, parts(section)) {
			total += n
			if want := sum(t, metrics, metric, device, label+`="`+name+`"`); n != want {
				t.Errorf("%s %s: the page has %d, the metrics %d", section, name, n, want)
			}
		}
		if total != whole {
			t.Errorf("%s: the parts add up to %d, want %d", section, total, whole)
		}
	}
	expect("events", "xdp_audit_event_fates_total", "fate", flags)
	b.run(chromedp.Navigate(e.url("/device/" + device)))
	expect("outcomes", "xdp_audit_outcomes_total", "outcome", packets)
	if text := evaluate[string](b, `document.querySelector("section[aria-labelledby=protocols] table").innerText.replace(/\s+/g, " ")`); !regexp.MustCompile(`ipv4 udp 1.?000`).MatchString(text) {
		t.Errorf("the protocols are %q", text)
	}
	b.expectAccessible("device")
}

// expectAPI compares the numbers of the API with the metrics.
func expectAPI(t *testing.T, e *exporter, metrics string) {
	t.Helper()
	var status pages.Status
	var d pages.DevicePage
	for path, v := range map[string]any{"status": &status, "devices/" + device: &d} {
		if err := json.NewDecoder(get(t, e.url("/api/v1/"+path)).Body).Decode(v); err != nil {
			t.Fatal(path, err)
		}
	}
	if len(status.Devices) != 1 || d.LastFlag == nil || d.Deltas.StddevSeconds == nil {
		t.Fatalf("the API has %d devices, %+v", len(status.Devices), d)
	}
	expect := func(what string, got float64, metric string, labels ...string) {
		t.Helper()
		if want := total(t, metrics, metric, labels...); math.Abs(got-want) > 1e-9*math.Abs(want) {
			t.Errorf("%s is %v, and %s%v is %v", what, got, metric, labels, want)
		}
	}
	for _, of := range []pages.Device{status.Devices[0], d.Device} {
		expect("packets", float64(of.Packets), "packets_total")
		expect("bytes", float64(of.Bytes), "bytes_total")
		expect("flagged_early", float64(of.FlaggedEarly), "leak_flags_total", `direction="early"`)
		expect("flagged_late", float64(of.FlaggedLate), "leak_flags_total", `direction="late"`)
		expect("unparsed", float64(of.Unparsed), "outcomes_total", `outcome="unparsed"`)
		scored := of.Scored - of.FlaggedEarly - of.FlaggedLate
		expect("scored and not flagged", float64(scored), "outcomes_total", `outcome="judged"`)
		expect("the score", math.Abs(of.LastFlag.TScore), "last_tscore")
		expect("the delta", of.LastFlag.DeltaSeconds, "last_delta_seconds")
		expect("the length", float64(of.LastFlag.LengthBytes), "last_packet_bytes")
		if at := total(t, metrics, "last_flag_timestamp_seconds"); math.Abs(float64(of.LastFlag.Time.UnixMicro())/1e6-at) > 2e-3 {
			t.Errorf("the time of the last flag is %v, and in the metrics %v", of.LastFlag.Time, at)
		}
	}
	expect("flags", float64(status.Events.Flags), "leak_flags_total")
	expect("received", float64(status.Events.Received), "events_total")
	expect("records_lost", float64(status.Events.Lost), "event_records_lost_total")
	expect("records_malformed", float64(status.Events.Malformed), "event_records_malformed_total")
	for fate, n := range status.Events.Fates {
		expect(fate, float64(n), "event_fates_total", `fate="`+fate+`"`)
	}
	expect("slots", float64(status.FlowTable.Slots), "flow_table_slots")
	expect("used", float64(status.FlowTable.Used), "flow_table_slots_used")
	expect("inserts", float64(status.FlowTable.Inserts), "flow_inserts_total")
	expect("evictions", float64(status.FlowTable.EvictionsExpired+status.FlowTable.EvictionsLive), "flow_evictions_total")
	expect("device slots", float64(status.DeviceSlots.Total), "device_slots")
	expect("used device slots", float64(status.DeviceSlots.Used), "device_slots_used")
	expect("refused devices", float64(status.DeviceSlots.Refused), "devices_refused")
	expect("capabilities", float64(len(status.Privileges.Capabilities)), "privileges_capabilities")
	expect("Landlock", float64(status.Privileges.LandlockABI), "privileges_landlock_abi")

	for decision, n := range d.Decisions {
		expect(decision, float64(n), "calibration_flags_total", `decision="`+decision+`"`)
	}
	for outcome, n := range d.Outcomes {
		expect(outcome, float64(n), "outcomes_total", `outcome="`+outcome+`"`)
	}
	for _, p := range d.Protocols {
		expect(p.Protocol, float64(p.Packets), "packets_total", `family="`+p.Family+`"`, `protocol="`+p.Protocol+`"`)
		expect(p.Protocol, float64(p.Bytes), "bytes_total", `family="`+p.Family+`"`, `protocol="`+p.Protocol+`"`)
	}
	expect("restarts", float64(d.Restarts), "baseline_restarts_total")
	n := total(t, metrics, "deltas_total")
	expect("deltas", float64(d.Deltas.Count), "deltas_total")
	in := d.Deltas.Zeros
	for _, b := range d.Deltas.Buckets {
		in += b.Count
	}
	expect("deltas in buckets", float64(in), "delta_seconds_count")
	expect("the sum of deltas", d.Deltas.MeanSeconds*n, "delta_time_seconds_total")
	offset := d.Deltas.MeanSeconds - total(t, metrics, "delta_reference_seconds")
	if variance := total(t, metrics, "delta_deviation_seconds_squared_total")/n - offset*offset; math.Abs(math.Sqrt(variance)/(*d.Deltas.StddevSeconds)-1) > 1e-6 {
		t.Errorf("the standard deviation is %v, and that of the metrics %v", *d.Deltas.StddevSeconds, math.Sqrt(variance))
	}
	if d.Cuts == nil || d.Cuts.Flows != 1 || d.Cuts.Late.Median < d.Threshold || d.Cuts.Early.Lowest < d.Threshold {
		t.Errorf("the cuts are %+v", d.Cuts)
	}
}

// total returns the sum of the series of a metric that have all of the labels.
func total(t *testing.T, metrics, name string, labels ...string) (total float64) {
	t.Helper()
	isFound := false
	for line := range strings.Lines(metrics) {
		rest, isOf := strings.CutPrefix(line, "xdp_audit_"+name)
		if !isOf || rest[0] != '{' && rest[0] != ' ' || slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64)
		if err != nil {
			t.Fatal(err)
		}
		total, isFound = total+v, true
	}
	if !isFound {
		t.Errorf("there is no metric %s%v", name, labels)
	}
	return total
}

// A device that vanishes, and is followed, is shown as gone without reload.
func TestAVanishedDeviceIsShown(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	e := l.start("--audit.device=aud*").ready()
	b := newBrowser(t)
	b.run(chromedp.Navigate(e.url("/")))
	b.await(`document.querySelector("tr[data-device=`+device+`]").classList.contains("up")`, patience)
	l.removeDevice()
	took := b.await(`document.querySelector("tr[data-device=`+device+`]").classList.contains("gone") && /vanished/.test(document.querySelector("tr[data-device=`+device+`]").innerText)`, patience)
	t.Logf("shown after %v", took.Round(10*time.Millisecond))
}

// The pages ask for the users of the web configuration, and are served with its TLS.
func TestUsersAndTLS(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte("correct horse"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	writeCertificate(t, folder)
	config := filepath.Join(folder, "web.yml")
	text := fmt.Sprintf("tls_server_config: {cert_file: %[1]s/tls.crt, key_file: %[1]s/tls.key}\nbasic_auth_users: {anna: %[2]q}\n", folder, hash)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	e := l.start("--audit.device="+device, "--web.config.file="+config)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	deadline := time.Now().Add(patience)
	for _, path := range []string{"/", "/flags", "/config", "/device/" + device, "/assets/style.css", "/api/v1/status"} {
		var response *http.Response
		for {
			if response, err = client.Get("https://" + e.address + path); err == nil || time.Now().After(deadline) {
				break
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without a password has the status %s", path, response.Status)
		}
	}
	b := newBrowser(t, chromedp.IgnoreCertErrors)
	b.isOpen = true // the challenge is logged
	b.answerChallenges("anna", "correct horse")
	b.run(chromedp.Navigate("https://" + e.address + "/"))
	b.await(`!!document.querySelector("tr[data-device=`+device+`]") && document.querySelector("[role=status]").textContent === "live"`, patience)
}

// writeCertificate writes tls.crt and tls.key.
func writeCertificate(t *testing.T, folder string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: certificate}, "tls.key": {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(filepath.Join(folder, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
