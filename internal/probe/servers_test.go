// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/internal/leak"
)

// oddService answers requests with bytes. The function gets the number of the request on its
// connection, from 1, and the number of all requests, and returns the answer and whether the
// service closes the connection after it.
func oddService(t *testing.T, answer func(n, all int, isY bool) (string, bool)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	var mu sync.Mutex
	all := 0
	go serve(listener, func(c net.Conn) {
		reader := bufio.NewReader(c)
		for n := 1; ; n++ {
			r, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			mu.Lock()
			all++
			text, isLast := answer(n, all, strings.HasPrefix(r.URL.Path, "/y"))
			mu.Unlock()
			if _, err := io.WriteString(c, text); err != nil || isLast {
				return
			}
		}
	})
	return "http://" + listener.Addr().String()
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"

// Servers may answer in every form of HTTP/1, and end connections as they like.
func TestOddServers(t *testing.T) {
	t.Parallel()
	lengths := rand.New(rand.NewPCG(1, 2))
	for _, test := range []struct {
		description string
		answer      func(n, all int, isY bool) (string, bool)
		flags       []string
		connections bool // the service ends some
	}{
		{"chunks and trailers", func(int, int, bool) (string, bool) {
			return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n1\r\nO\r\n1;x=y\r\nK\r\n0\r\nA: b\r\n\r\n", false
		}, nil, false},
		{"answers before the answer", func(int, int, bool) (string, bool) {
			return "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + ok, false
		}, []string{"--header=Expect: 100-continue", "--data=x"}, false},
		{"HTTP/1.0 with keep-alive", func(int, int, bool) (string, bool) {
			return "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nOK", false
		}, nil, false},
		{"large headers", func(int, int, bool) (string, bool) {
			return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: " + strings.Repeat("a", 1<<16) + "\r\n\r\n", false
		}, nil, false},
		{"no body", func(int, int, bool) (string, bool) { return "HTTP/1.1 204 No Content\r\n\r\n", false }, nil, false},
		{"answers to HEAD", func(int, int, bool) (string, bool) { return "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", false },
			[]string{"--method=HEAD"}, false},
		{"lengths at random", func(int, int, bool) (string, bool) {
			n := lengths.IntN(2000)
			return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", n, strings.Repeat(".", n)), false
		}, nil, false},
		{"a last answer that says so", func(n, _ int, _ bool) (string, bool) {
			if n == 50 {
				return strings.Replace(ok, "OK\r\n", "OK\r\nConnection: close\r\n", 1), true
			}
			return ok, false
		}, nil, true},
		{"a last answer that does not say so", func(n, _ int, _ bool) (string, bool) { return ok, n == 50 }, nil, true},
		{"answers that end with the connection", func(n, _ int, _ bool) (string, bool) {
			if n == 50 {
				return "HTTP/1.1 200 OK\r\n\r\nOK", true
			}
			return ok, false
		}, nil, true},
		{"another protocol at last", func(n, _ int, _ bool) (string, bool) {
			if n == 50 {
				return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n", false
			}
			return ok, false
		}, nil, true},
	} {
		t.Run(test.description, func(t *testing.T) {
			t.Parallel()
			url := oddService(t, test.answer)
			o := probe(t, append(test.flags, "--url="+url, "--x.path=/x", "--y.path=/y", "--requests=1000", "--no-stop", "--target=0s", "--alpha=1e-9")...)
			c := o.result.Requests
			if o.code != exitInconclusive || c.sent() != 1000 || c.Answered != c.Sent || c.Unasked != 0 {
				t.Errorf("exit code %d, %+v:\n%s%s", o.code, c, o.stdout, o.stderr)
			}
			if ended := c.Last[leak.X] + c.Last[leak.Y]; (ended > 0) != test.connections {
				t.Errorf("%d connections were ended", ended)
			}
		})
	}
}

// What a server does wrong is named in one line, without a verdict.
func TestWrongServers(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		description string
		answer      func(n, all int, isY bool) (string, bool)
		want        string
	}{
		{"HTTP/1.0", func(int, int, bool) (string, bool) { return "HTTP/1.0 200 OK\r\n\r\nOK", true }, "closes a connection after 1 requests"},
		{"no answer", func(int, int, bool) (string, bool) { return "", true }, "closes the connection before the end of its answer"},
		{"half an answer", func(int, int, bool) (string, bool) { return "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nOK", true },
			"closes the connection before the end of its answer"},
		{"another protocol", func(int, int, bool) (string, bool) { return "220 ready\r\n", false }, "malformed HTTP"},
		{"control characters", func(int, int, bool) (string, bool) { return "HTTP/1.1 200 OK\r\nA\x1b[2J\r\n\r\n", false }, "malformed MIME header"},
		{"a header without end", func(int, int, bool) (string, bool) {
			return "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", mostAnswer+1<<20), false
		}, "longer than"},
		{"answers without end", func(int, int, bool) (string, bool) {
			return strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", mostAnswer/25), false
		}, "longer than"},
		{"two answers", func(int, int, bool) (string, bool) { return ok + ok, false }, "more than one answer"},
		{"two answers to some", func(_, all int, _ bool) (string, bool) {
			if all%20 == 0 {
				return ok + ok, false
			}
			return ok, false
		}, "more than one answer"},
		{"each connection ends after two requests, without a word", func(n, _ int, _ bool) (string, bool) { return ok, n == 2 }, "closes a connection before the next request"},
		{"connections end after Y, without a word", func(n, _ int, isY bool) (string, bool) { return ok, n > 3 && isY }, "this tells the class"},
		{"connections end after X, with the same length", func(n, _ int, isY bool) (string, bool) {
			if n > 3 && !isY {
				return strings.Replace(ok, "OK\r\n", "OK\r\nConnection: close\r\n", 1), true
			}
			return strings.Replace(ok, "OK\r\n", "OK\r\nConnection: other\r\n", 1), false
		}, "ends the connection after requests of one class"},
	} {
		t.Run(test.description, func(t *testing.T) {
			t.Parallel()
			url := oddService(t, test.answer)
			// At this rate the end of a connection mostly arrives before the next request.
			o := probe(t, "--url="+url, "--x.path=/x", "--y.path=/y", "--rate=500", "--requests=1000", "--timeout=2s", "--target=0s")
			if o.code != exitError || !strings.Contains(o.stdout+o.stderr, test.want) || strings.Contains(o.stdout+o.stderr, "\x1b") {
				t.Errorf("exit code %d, want %d and %q:\n%s%s", o.code, exitError, test.want, o.stdout, o.stderr)
			}
		})
	}
}

// A service that refuses all requests has equal times, too: this is said.
func TestRefusalsAreNoted(t *testing.T) {
	t.Parallel()
	url := oddService(t, func(int, int, bool) (string, bool) {
		return "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", false
	})
	o := probe(t, "--url="+url, "--requests=100", "--target=1s")
	if want := "100 of 100 answers have the status 404"; !strings.Contains(o.stdout, want) {
		t.Errorf("it does not say %q:\n%s", want, o.stdout)
	}
	if got := o.result.Requests.Statuses[404]; got != [2]uint64{50, 50} {
		t.Errorf("answers of the classes: %v", got)
	}
}

// Files of the result are those of this run: a path that cannot be written is found before the
// first request, and a result of before does not stay.
func TestFilesOfTheResult(t *testing.T) {
	t.Parallel()
	s := newService(t, same).start()
	for _, flag := range []string{"--json=", "--junit="} {
		var stderr strings.Builder
		if code := Main(s.arguments(flag+t.TempDir()), io.Discard, &stderr); code != exitError || len(s.all) > 0 || !strings.Contains(stderr.String(), flag[:6]) {
			t.Errorf("exit code %d after %d requests: %s", code, len(s.all), &stderr)
		}
	}
	old := filepath.Join(t.TempDir(), "timing.xml")
	if err := os.WriteFile(old, []byte("<testsuites/>"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := probe(t, "--url=http://127.0.0.1:1", "--junit="+old)
	text, err := os.ReadFile(old)
	if err != nil || len(text) > 0 || o.code != exitError {
		t.Errorf("exit code %d: %v, an earlier result stays: %q", o.code, err, text)
	}
}

// Workers with random texts of their own do not disturb each other.
func TestRandomTextsOfWorkers(t *testing.T) {
	t.Parallel()
	text, err := newTemplated("x.path", "{{random 64}}")
	if err != nil {
		t.Fatal(err)
	}
	texts := func(seed uint64) (all []string) {
		r := generator(seed, 1)
		for range 2000 {
			one, err := text.text(r)
			if err != nil {
				t.Error(err)
			}
			all = append(all, one)
		}
		return all
	}
	const workers = 4
	var wants, gots [workers][]string
	var group sync.WaitGroup
	for i := range wants {
		wants[i] = texts(uint64(i))
	}
	for i := range gots {
		group.Go(func() { gots[i] = texts(uint64(i)) })
	}
	group.Wait()
	for i := range wants {
		if !slices.Equal(wants[i], gots[i]) {
			t.Errorf("worker %d has other texts than alone", i)
		}
	}
}
