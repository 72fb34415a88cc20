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
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"golang.org/x/crypto/bcrypt"
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
		if sum(t, metrics, "xdp_audit_packets_total", device, "") == 1000 || time.Now().After(deadline) {
			break
		}
	}
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

// A device that vanishes, and is followed, is shown as gone without reload.
func TestAVanishedDeviceIsShown(t *testing.T) {
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
