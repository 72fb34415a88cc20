// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package answer

import (
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const patience = 20 * time.Second

func newOptions() Options {
	return Options{
		MaxBytes: 1 << 20, Timeout: patience, StallTimeout: patience,
		Key:  func(r *http.Request) string { return r.URL.Path },
		Host: func(r *http.Request) netip.Prefix { return host(r.Header.Get("Host-Number")) },
	}
}

// host returns the prefix of a number of one digit.
func host(number string) netip.Prefix {
	if number == "" {
		number = "0"
	}
	return netip.MustParsePrefix("192.0.2." + number + "/32")
}

func TestAnswersAreThoseOfTheHandler(t *testing.T) {
	long := strings.Repeat("a long answer of many lines\n", 10_000)
	var made int
	options := newOptions()
	options.Made = func(bytes int) { made = bytes }
	server := httptest.NewServer(New(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Test", "kept")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, long)
	}), options))
	defer server.Close()
	for _, test := range []struct {
		method, accept string
		isCompressed   bool
	}{
		{"GET", "identity", false},
		{"GET", "gzip", true},
		{"GET", "br, GZIP ; q=0.5", true},
		{"GET", "gzip;q=0", false},
		{"GET", "gzip;Q=0", false},
		{"GET", "gzip; Q=0.5", true},
		{"GET", "gzip;q=x", false},
		{"GET", "identity, deflate", false},
		{"HEAD", "identity", false},
	} {
		t.Run(test.method+test.accept, func(t *testing.T) {
			request, err := http.NewRequest(test.method, server.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Accept-Encoding", test.accept)
			response, err := http.DefaultTransport.RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			var body io.Reader = response.Body
			if test.isCompressed {
				if body, err = gzip.NewReader(body); err != nil {
					t.Fatal(err)
				}
			}
			text, err := io.ReadAll(body)
			want := long
			if test.method == "HEAD" {
				want = ""
			}
			if err != nil || string(text) != want || response.StatusCode != http.StatusTeapot || response.ContentLength <= 0 {
				t.Errorf("status %d, length %d, a body of %d bytes, error %v", response.StatusCode, response.ContentLength, len(text), err)
			}
			if h := response.Header; h.Get("X-Test") != "kept" || h.Get("Vary") != "Accept-Encoding" ||
				(h.Get("Content-Encoding") == "gzip") != test.isCompressed {
				t.Errorf("the header is %v", h)
			}
			if made != len(long) {
				t.Errorf("an answer of %d bytes, want %d", made, len(long))
			}
		})
	}
}

// All requests that wait for the same share one answer, which is begun after they arrived.
func TestWaitingRequestsShareAnAnswer(t *testing.T) {
	var made atomic.Int32
	begun, goOn := make(chan struct{}, 10), make(chan struct{})
	handler := New(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := made.Add(1)
		begun <- struct{}{}
		<-goOn
		fmt.Fprint(w, n)
	}), newOptions())
	var running sync.WaitGroup
	bodies := make(chan string, 10)
	get := func(path string) {
		running.Go(func() {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			bodies <- path + w.Body.String()
		})
	}
	get("/a")
	<-begun
	for range 4 {
		get("/a")
	}
	get("/b")
	handler.awaitWaiting(t, 5)
	close(goOn)
	running.Wait()
	close(bodies)
	got := map[string]int{}
	for body := range bodies {
		got[body]++
	}
	if got["/a1"] != 1 || got["/a2"]+got["/a3"] != 4 || got["/b2"]+got["/b3"] != 1 || made.Load() != 3 {
		t.Errorf("%d answers were made: %v", made.Load(), got)
	}
}

// awaitWaiting waits until n requests wait for their turn.
func (h *Handler) awaitWaiting(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		h.turns.mu.Lock()
		waiting := 0
		for _, queue := range h.turns.waiting {
			waiting += len(queue.requests)
		}
		h.turns.mu.Unlock()
		if waiting == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests wait, want %d", waiting, n)
		}
	}
}

// A host with many different requests delays another host by one answer.
func TestHostsTakeTurns(t *testing.T) {
	begun, goOn := make(chan string, 20), make(chan struct{})
	handler := New(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		begun <- r.URL.Path
		<-goOn
	}), newOptions())
	var running sync.WaitGroup
	get := func(number, path string) {
		running.Go(func() {
			request := httptest.NewRequest(http.MethodGet, path, nil)
			request.Header.Set("Host-Number", number)
			handler.ServeHTTP(httptest.NewRecorder(), request)
		})
	}
	get("1", "/attack")
	<-begun
	for i := range 8 {
		get("1", fmt.Sprint("/", i))
	}
	handler.awaitWaiting(t, 8)
	get("2", "/honest")
	handler.awaitWaiting(t, 9)
	close(goOn)
	running.Wait()
	close(begun)
	var order []string
	for path := range begun {
		order = append(order, path)
	}
	if len(order) != 9 || order[1] != "/honest" {
		t.Errorf("the order is %v, want /honest second", order)
	}
}

// When too many requests wait, the host with most of them loses one.
func TestLimitOfRequests(t *testing.T) {
	options := newOptions()
	options.MaxRequests = 4
	begun, goOn := make(chan struct{}, 20), make(chan struct{})
	handler := New(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-goOn
	}), options)
	var running sync.WaitGroup
	codes := make(chan string, 20)
	get := func(number, path string) {
		running.Go(func() {
			w := httptest.NewRecorder()
			request := httptest.NewRequest(http.MethodGet, path, nil)
			request.Header.Set("Host-Number", number)
			handler.ServeHTTP(w, request)
			codes <- fmt.Sprint(number, " ", w.Code)
		})
	}
	get("1", "/1")
	<-begun
	for i := range 3 {
		get("1", fmt.Sprint("/", 2+i))
	}
	handler.awaitWaiting(t, 3)
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-codes:
			if got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("no answer, want %s", want)
		}
	}
	get("1", "/5")
	expect("1 503")
	get("2", "/6")
	expect("1 503")
	get("2", "/7")
	expect("1 503")
	get("2", "/8")
	expect("2 503") // both have two
	close(goOn)
	for range 3 {
		<-codes
	}
	running.Wait()
	if t := handler.turns; t.total != 0 || len(t.served) != 0 || len(t.waiting) != 0 || t.isBusy {
		panic(fmt.Sprintf("not idle: %+v", t))
	}
}

// The requests in the answer that is being made count for their host: it has most requests, and
// no other host is refused.
func TestLimitOfRequestsThatAreServed(t *testing.T) {
	turns := newTurns(4)
	begun, goOn := make(chan struct{}, 20), make(chan struct{}, 20)
	results := make(chan error, 20)
	get := func(number string, total int) {
		t.Helper()
		go func() {
			_, err := turns.get(t.Context(), host(number), "/", func() *stored {
				begun <- struct{}{}
				<-goOn
				return &stored{}
			})
			results <- err
		}()
		turns.awaitTotal(t, total)
	}
	get("1", 1)
	<-begun
	for n := range 3 {
		get("1", 2+n)
	}
	goOn <- struct{}{}
	if err := <-results; err != nil {
		t.Error(err)
	}
	<-begun // three requests of host 1 share an answer
	get("3", 4)
	get("4", 5) // above the limit
	get("4", 6) // likewise, because host 1 has more
	get("5", 7)
	for range 4 {
		goOn <- struct{}{}
	}
	for range 7 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if turns.total != 0 || len(turns.served) != 0 || len(turns.waiting) != 0 {
		t.Errorf("not idle: %+v", turns)
	}
}

// Each host has a first request, however many hosts there are.
func TestFirstRequestOfAHostIsAdmitted(t *testing.T) {
	turns := newTurns(2)
	for n := range 5 {
		r := &request{host: host(fmt.Sprint(n)), result: make(chan result, 1)}
		if !turns.admit(r) {
			t.Errorf("the first request of host %d is refused", n)
		}
		if turns.admit(&request{host: r.host, result: make(chan result, 1)}) && n > 0 {
			t.Errorf("the second request of host %d is admitted", n)
		}
	}
	for _, queue := range turns.waiting {
		if len(queue.requests) != 1 {
			t.Errorf("%d requests of %v wait", len(queue.requests), queue.host)
		}
	}
}

// awaitTotal waits until there are n requests.
func (t *turns) awaitTotal(test *testing.T, n int) {
	test.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		t.mu.Lock()
		total := t.total
		t.mu.Unlock()
		if total == n {
			return
		}
		if time.Now().After(deadline) {
			test.Fatalf("there are %d requests, want %d", total, n)
		}
	}
}

// A request whose client is gone leaves the queue.
func TestClientThatLeaves(t *testing.T) {
	begun, goOn := make(chan struct{}, 2), make(chan struct{})
	var made atomic.Int32
	server := httptest.NewServer(New(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		made.Add(1)
		begun <- struct{}{}
		<-goOn
	}), newOptions()))
	defer server.Close()
	handler, ok := server.Config.Handler.(*Handler)
	if !ok {
		t.Fatal("another handler")
	}
	var running sync.WaitGroup
	running.Go(func() {
		if response, err := http.Get(server.URL); err == nil {
			response.Body.Close()
		}
	})
	<-begun
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET /other HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	handler.awaitWaiting(t, 1)
	conn.Close()
	handler.awaitWaiting(t, 0)
	close(goOn)
	running.Wait()
	if made.Load() != 1 {
		t.Errorf("%d answers were made, want 1", made.Load())
	}
}

// A panic of the handler ends neither the turns nor the requests that share the answer.
func TestPanic(t *testing.T) {
	var made atomic.Int32
	begun, goOn := make(chan struct{}, 2), make(chan struct{})
	handler := New(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if made.Add(1) == 1 {
			begun <- struct{}{}
			<-goOn
		}
		if made.Load() < 3 {
			panic(http.ErrAbortHandler)
		}
	}), newOptions())
	codes := make(chan int, 3)
	get := func() {
		w := httptest.NewRecorder()
		defer func() {
			if recover() != nil {
				w.Code = 0
			}
			codes <- w.Code
		}()
		handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	}
	go get()
	<-begun
	go get()
	go get()
	handler.awaitWaiting(t, 2)
	close(goOn)
	got := map[int]int{}
	for range 3 {
		got[<-codes]++
	}
	if got[0] != 2 || got[http.StatusInternalServerError] != 1 {
		t.Errorf("got %v, want two panics and an error", got)
	}
	get()
	if code := <-codes; code != http.StatusOK {
		t.Errorf("status %d after a panic", code)
	}
}

// conn is the connection of a transfer.
type conn struct{ deadline time.Time }

func (c *conn) SetWriteDeadline(deadline time.Time) error {
	c.deadline = deadline
	return nil
}

// Above the limit of bytes the oldest answer of the host with most bytes is cut off.
func TestLimitOfBytes(t *testing.T) {
	all := newTransfers(100)
	begin := func(number string, bytes int) *transfer {
		return all.begin(host(number), bytes, &conn{}, time.Now().Add(patience))
	}
	small := begin("1", 10)
	first, second := begin("2", 40), begin("2", 40)
	third := begin("2", 20)
	honest := begin("3", 30)
	for name, test := range map[string]struct {
		transfer *transfer
		isCut    bool
	}{
		"small": {small, false}, "first": {first, true}, "second": {second, false}, "third": {third, false}, "honest": {honest, false},
	} {
		if err := test.transfer.extend(time.Second); (err != nil) != test.isCut {
			t.Errorf("%s: got %v, cut off: %t", name, err, test.isCut)
		}
	}
	if all.bytes != 100 {
		t.Errorf("%d bytes are being sent", all.bytes)
	}
	all.end(first)
	all.end(second)
	large := begin("4", 1000) // alone
	if err := large.extend(time.Second); err != nil || len(all.all) != 1 {
		t.Errorf("the only answer is cut off: %v", err)
	}
	if err := honest.extend(time.Second); err == nil {
		t.Error("answers above the limit go on")
	}
	all.end(large)
	if all.bytes != 0 || len(all.all) != 0 {
		t.Errorf("%d bytes of %d answers are being sent at the end", all.bytes, len(all.all))
	}
}

// A client that does not read is cut off after the stall timeout, and a slow one is not.
func TestProgress(t *testing.T) {
	options := newOptions()
	options.StallTimeout = 500 * time.Millisecond
	noise := make([]byte, 16<<20) // more than the kernel buffers
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	server := httptest.NewServer(New(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(noise) }), options))
	defer server.Close()
	// read waits before each part of the answer.
	read := func(parts int64, wait time.Duration) (n int64, err error) {
		response, err := http.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		for range parts {
			time.Sleep(wait)
			read, err := io.CopyN(io.Discard, response.Body, int64(len(noise))/parts)
			if n += read; err != nil {
				return n, err
			}
		}
		return n, nil
	}
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		t.Fatal("another transport")
	}
	transport.DisableCompression = true
	defer func() { transport.DisableCompression = false }()
	if n, err := read(8, options.StallTimeout/4); err != nil || n != int64(len(noise)) {
		t.Errorf("a slow client read %d of %d bytes: %v", n, len(noise), err)
	}
	if n, err := read(1, 4*options.StallTimeout); err == nil {
		t.Errorf("a client that did not read got %d of %d bytes", n, len(noise))
	}
}
