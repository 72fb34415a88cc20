// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/awake"
	"github.com/xdp-audit/xdp_audit_exporter/internal/document"
	"github.com/xdp-audit/xdp_audit_exporter/internal/testnumber"
)

const (
	// probeRate is the number of requests a second of the experiments.
	probeRate = 2000
	// enoughPairs is the number of pairs within which 20 µs have to be found in 19 of 20 runs, and
	// nonePairs that within which equal times have to be none.
	enoughPairs, nonePairs = 1500, 30_000
)

// experiment asks a server in a number of runs.
type experiment struct {
	server, url string
	port        int
	flags       []string
	planted     time.Duration
	pairs, runs int // pairs of a run, at most
	target      time.Duration
	results     []probeResult
}

// pythonApplication takes longer for /y, by nanoseconds, after a port and a duration as arguments.
// It is an asyncio application, as servers such as uvicorn run them: one process and one thread,
// which keeps connections open. The threads and the parser of http.server vary twice as much.
const pythonApplication = `
import asyncio, gc, sys, time

class Application(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.received = transport, b""
    def data_received(self, data):
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, self.received = self.received.split(b"\r\n\r\n", 1)
            path = head.split(b" ", 2)[1]
            headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            if path.startswith(b"/y"):
                end = time.perf_counter_ns() + int(sys.argv[2])
                while time.perf_counter_ns() < end:
                    pass
            length = str(len(headers[b"Host"])).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + headers[b"Host"])

async def main():
    server = await asyncio.get_running_loop().create_server(Application, "127.0.0.1", int(sys.argv[1]))
    gc.freeze()
    await server.serve_forever()

asyncio.run(main())
`

// nginxBeforePython has the address, the port of the application, and a directory.
const nginxBeforePython = `
daemon off;
master_process off;
user root;
pid %[3]s/nginx.pid;
error_log stderr crit;
events {}
http {
	access_log off;
	client_body_temp_path %[3]s/body;
	proxy_temp_path %[3]s/proxy;
	fastcgi_temp_path %[3]s/fastcgi;
	uwsgi_temp_path %[3]s/uwsgi;
	scgi_temp_path %[3]s/scgi;
	keepalive_requests 1000000;
	upstream application { server 127.0.0.1:%[2]d; keepalive 8; keepalive_requests 1000000; }
	server {
		listen %[1]s;
		location / { proxy_pass http://application; proxy_http_version 1.1; proxy_set_header Connection ""; }
	}
}
`

// startServers starts each server for a planted delay.
func (l *lab) startServers(planted time.Duration) []*experiment {
	l.t.Helper()
	return []*experiment{l.startNetHTTP(planted, false), l.startNetHTTP(planted, true), l.startNginx(planted)}
}

func (l *lab) startNetHTTP(planted time.Duration, isTLS bool) *experiment {
	l.t.Helper()
	listener := l.listenTCP(l.audited.IPv4.Addr())
	e := &experiment{server: "net/http", url: "http://" + listener.Addr().String(), port: portOf(l.t, listener), planted: planted}
	if isTLS {
		e.server, e.url, e.flags = "net/http with TLS", "https://"+listener.Addr().String(), []string{"--tls.insecure-skip-verify"}
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{*strangersCertificate(l.t)}})
	}
	l.serveHTTP(listener, planting(planted))
	return e
}

// startNginx starts nginx with a Python application.
func (l *lab) startNginx(planted time.Duration) *experiment {
	l.t.Helper()
	folder := l.t.TempDir()
	port := 8000 + int(planted/time.Microsecond)
	l.start(findTool(l.t, "python3"), []string{"-c", pythonApplication, fmt.Sprint(port), fmt.Sprint(planted.Nanoseconds())})
	config := filepath.Join(folder, "nginx.conf")
	address := netip.AddrPortFrom(l.audited.IPv4.Addr(), uint16(port))
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxBeforePython, address, port, folder), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.start(findTool(l.t, "nginx"), []string{"-p", folder, "-c", config})
	url := "http://" + address.String()
	l.poll(func() error {
		response, err := l.client().Get(url)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("nginx answers %s", response.Status)
		}
		return nil
	})
	return &experiment{server: "nginx with a Python application", url: url, port: port, planted: planted}
}

// run asks the server again, in an assessment of its own.
func (e *experiment) run(p *probed, number int) {
	p.l.t.Helper()
	name := fmt.Sprintf("run%d", number)
	text := fmt.Sprintf("assessments: [{name: %s, protocol: tcp, port: %d, order: blocks, target: %v, %s}]", name, e.port, e.target, byDSCP)
	if err := os.WriteFile(filepath.Join(p.folder, "leak.yml"), []byte(text), 0o600); err != nil {
		p.l.t.Fatal(err)
	}
	p.e.signal(syscall.SIGHUP)
	p.l.poll(func() error {
		var page struct{ Assessments []struct{ Name string } }
		if err := json.Unmarshal([]byte(p.e.get("/leak.json", http.StatusOK)), &page); err != nil {
			return err
		}
		if len(page.Assessments) != 1 || page.Assessments[0].Name != name {
			return fmt.Errorf("the assessments are %v", page.Assessments)
		}
		return nil
	})
	p.url = e.url
	e.results = append(e.results, p.probe(append(slices.Clone(e.flags), fmt.Sprint("--rate=", probeRate), fmt.Sprint("--requests=", 2*e.pairs),
		fmt.Sprint("--seed=", number))...)) // chance has no part in the checks of the order
}

// count returns the number of runs with one of these verdicts, of the kernel and of the client.
func (e *experiment) count(verdicts ...string) (kernel, client int) {
	for _, r := range e.results {
		if slices.Contains(verdicts, r.Verdict) {
			kernel++
		}
		if slices.Contains(verdicts, r.Client.Verdict) {
			client++
		}
	}
	return kernel, client
}

// median returns the median of a number of each run.
func (e *experiment) median(of func(*probeResult) float64) float64 {
	var all []float64
	for i := range e.results {
		all = append(all, of(&e.results[i]))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// limited returns the experiment with at most that many pairs in a run, in that many runs.
func (e *experiment) limited(pairs, runs int, target time.Duration) *experiment {
	limited := *e
	limited.pairs, limited.runs, limited.target = pairs, runs, target
	return &limited
}

// The probe finds a planted delay by the times of the kernel, and none where there is none. With
// PROBE_REPORT it writes the figures into that document, of PROBE_RUNS runs, and of PROBE_LONG_RUNS
// runs of many pairs. PROBE_ONLY chooses experiments. Without PROBE_RUNS a delay may need many
// pairs, as on a busy machine.
func TestProbeExperiments(t *testing.T) {
	const planted, target = 20 * time.Microsecond, 5 * time.Microsecond
	runs, longRuns := testnumber.Of(t, "PROBE_RUNS", 1), testnumber.Of(t, "PROBE_LONG_RUNS", 20)
	isWhole := os.Getenv("PROBE_RUNS") != ""
	if isWhole {
		awake.Keep(t)
	}
	l := newLab(t)
	leaking, equal := l.startServers(planted), l.startServers(0)
	var found, even []*experiment
	for i := range leaking {
		pairs := map[bool]int{true: enoughPairs, false: nonePairs}[isWhole]
		found = append(found, leaking[i].limited(pairs, runs, target))
		even = append(even, equal[i].limited(enoughPairs, runs, target))
		if isWhole {
			even = append(even, equal[i].limited(nonePairs, longRuns, target))
		}
	}
	var sizes []*experiment
	if isWhole {
		for _, size := range []time.Duration{100 * time.Microsecond, 10 * time.Microsecond, time.Microsecond} {
			sizes = append(sizes, l.startNetHTTP(size, false).limited(20*nonePairs, longRuns, size/4))
		}
	}
	chosen, err := regexp.Compile(os.Getenv("PROBE_ONLY"))
	if err != nil {
		t.Fatal(err)
	}
	isLeft := func(e *experiment) bool {
		return !chosen.MatchString(fmt.Sprintf("%s, %v, %d pairs", e.server, e.planted, e.pairs))
	}
	found, even, sizes = slices.DeleteFunc(found, isLeft), slices.DeleteFunc(even, isLeft), slices.DeleteFunc(sizes, isLeft)
	p := l.measure("", leaking[0].port, "order: blocks, "+byDSCP)
	number := 0
	for _, e := range slices.Concat(found, even, sizes) {
		for range e.runs {
			number++
			e.run(p, number)
			r := &e.results[len(e.results)-1]
			if e.planted == 0 && r.ExitCode != 0 && r.ExitCode != 3 {
				t.Errorf("%s without a delay: exit code %d: %s", e.server, r.ExitCode, r.Sentence)
			}
		}
		if kernel, _ := e.count("leak"); e.planted > 0 && kernel*20 < 19*e.runs {
			t.Errorf("%s: %d of %d runs found %v within %d pairs", e.server, kernel, e.runs, e.planted, e.pairs)
		}
		if kernel, _ := e.count("none"); e.pairs == nonePairs && e.planted == 0 && kernel < e.runs {
			t.Errorf("%s: %d of %d runs are none within %d pairs", e.server, kernel, e.runs, e.pairs)
		}
	}
	text := verdictTable(append(found, even...))
	t.Logf("\n%s\n\n%s", text, sizeTable(sizes))
	if path := os.Getenv("PROBE_REPORT"); path != "" && isWhole {
		machine, err := document.ThisMachine()
		if err != nil {
			t.Fatal(err)
		}
		text = fmt.Sprintf("%v, %s, %d requests a second.\n\n%s", machine, time.Now().UTC().Format("2006-01-02"), probeRate, text)
		if err := errors.Join(document.Update(path, "verdicts", text), document.Update(path, "sizes", sizeTable(sizes))); err != nil {
			t.Error(err)
		}
	}
	p.e.expectStopped()
}

func (e *experiment) medianPairs() float64 {
	return e.median(func(r *probeResult) float64 { return float64(r.Kernel.Report.Pairs) })
}

// verdictTable returns what was found within the pairs.
func verdictTable(experiments []*experiment) string {
	var b strings.Builder
	b.WriteString("| server | planted | runs | pairs, at most | pairs, median | `leak` | `none` | half of the interval, median | client: `leak` | `none` | half of the interval, median |\n")
	b.WriteString("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n")
	for _, e := range experiments {
		leaks, leaksOfClient := e.count("leak")
		none, noneOfClient := e.count("none")
		us := func(of func(*probeResult) float64) string { return fmt.Sprintf("%.2f µs", e.median(of)/1000) }
		fmt.Fprintf(&b, "| %s | %v | %d | %d | %.0f | %d | %d | %s | %d | %d | %s |\n", e.server, e.planted, e.runs, e.pairs, e.medianPairs(),
			leaks, none, us(func(r *probeResult) float64 { return r.Kernel.Report.Floor }),
			leaksOfClient, noneOfClient, us(func(r *probeResult) float64 { return r.Client.Floor }))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// sizeTable returns how long a leak of each size takes.
func sizeTable(experiments []*experiment) string {
	var b strings.Builder
	b.WriteString("| effect | target | runs | found | pairs, median | with 200 requests a second | with 2000 |\n")
	b.WriteString("| --: | --: | --: | --: | --: | --: | --: |\n")
	for _, e := range experiments {
		leaks, _ := e.count("leak")
		after := func(rate float64) time.Duration {
			return time.Duration(2 * e.medianPairs() / rate * float64(time.Second)).Round(time.Second)
		}
		fmt.Fprintf(&b, "| %v | %v | %d | %d | %.0f | %v | %v |\n", e.planted, e.target, e.runs, leaks, e.medianPairs(), after(200), after(2000))
	}
	return strings.TrimSuffix(b.String(), "\n")
}
