// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// testConn is a connection of somebody that can only be closed.
type testConn struct {
	net.Conn
	from     string
	isClosed bool
}

func (c *testConn) RemoteAddr() net.Addr {
	addr, err := net.ResolveTCPAddr("tcp", c.from)
	if err != nil {
		panic(err)
	}
	return addr
}

func (c *testConn) Close() error {
	c.isClosed = true
	return nil
}

// A script of connections: each line is who connects, or what becomes of the n-th connection. Of 32, a host may have 4.
func TestConnectionsMakeRoom(t *testing.T) {
	repeat := func(n int, step string) (steps []string) {
		for range n {
			steps = append(steps, step)
		}
		return steps
	}
	hosts := func(n, each int) (steps []string) {
		for i := range n {
			steps = append(steps, repeat(each, fmt.Sprintf("10.0.1.%d:1", i))...)
		}
		return steps
	}
	for _, test := range []struct {
		name  string
		steps []string
		open  []int // of the connections in their order; nil for all
		shut  []int
	}{
		{"as many of a host as there may be", repeat(4, "10.0.0.1:1"), []int{0, 1, 2, 3}, nil},
		{"one more takes the place of the oldest", repeat(5, "10.0.0.1:1"), []int{1, 2, 3, 4}, []int{0}},
		{"one at work keeps its place", slices.Concat([]string{"10.0.0.1:1", "busy 0"}, repeat(4, "10.0.0.1:1")), []int{0, 2, 3, 4}, []int{1}},
		{"if all are at work the new one is refused", slices.Concat(repeat(4, "10.0.0.1:1"),
			[]string{"busy 0", "busy 1", "busy 2", "busy 3", "10.0.0.1:1"}), []int{0, 1, 2, 3}, []int{4}},
		{"and has a place once one has ended", slices.Concat(repeat(4, "10.0.0.1:1"),
			[]string{"busy 0", "busy 1", "busy 2", "busy 3", "close 2", "10.0.0.1:1"}), []int{0, 1, 3, 4}, []int{2}},
		{"or waits for its next request", slices.Concat(repeat(4, "10.0.0.1:1"),
			[]string{"busy 0", "busy 1", "busy 2", "busy 3", "idle 1", "10.0.0.1:1"}), []int{0, 2, 3, 4}, []int{1}},
		{"addresses of an IPv6 network are one host", []string{"[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "[2001:db8::4]:1",
			"[2001:db8::5]:1", "[2001:db8:0:1::1]:1"}, []int{1, 2, 3, 4, 5}, []int{0}},
		{"an address of IPv4 in IPv6 is that of IPv4", slices.Concat(repeat(4, "10.0.0.1:1"), []string{"[::ffff:10.0.0.1]:1"}), []int{1, 2, 3, 4}, []int{0}},
		{"when all places are taken, the host that has most gives one", slices.Concat(hosts(9, 3), repeat(1, "10.0.3.1:1"), repeat(4, "10.0.2.1:1"),
			[]string{"10.0.0.9:1"}), []int{0, 1, 2, 27, 29, 30, 31, 32}, []int{28}},
		{"a second close gives nothing away", slices.Concat(repeat(4, "10.0.0.1:1"), []string{"close 0", "close 0", "10.0.0.1:1", "10.0.0.1:1"}),
			[]int{2, 3, 4, 5}, []int{0, 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			all := newConnections(32, slog.New(slog.DiscardHandler))
			var conns []*testConn
			var admitted []*limitedConn
			for _, step := range test.steps {
				var n int
				switch {
				case strings.HasPrefix(step, "busy"), strings.HasPrefix(step, "idle"), strings.HasPrefix(step, "close"):
					what, number, _ := strings.Cut(step, " ")
					if _, err := fmt.Sscan(number, &n); err != nil {
						t.Fatal(err)
					}
					switch what {
					case "busy":
						all.changed(admitted[n], http.StateActive)
					case "idle":
						all.changed(admitted[n], http.StateIdle)
					default:
						if err := admitted[n].Close(); err != nil {
							t.Fatal(err)
						}
					}
				default:
					conn := &testConn{from: step}
					limited, outs := all.admit(conn)
					for _, out := range outs {
						if err := out.Close(); err != nil {
							t.Fatal(err)
						}
					}
					conns, admitted = append(conns, conn), append(admitted, limited)
				}
			}
			open := 0
			for _, conn := range conns {
				if !conn.isClosed {
					open++
				}
			}
			if all.total != open || all.total > 32 {
				t.Errorf("%d connections are counted, and %d open", all.total, open)
			}
			for _, i := range test.open {
				if conns[i].isClosed {
					t.Errorf("connection %d of %s is closed", i, conns[i].from)
				}
			}
			for _, i := range test.shut {
				if !conns[i].isClosed {
					t.Errorf("connection %d of %s is open", i, conns[i].from)
				}
			}
		})
	}
}

// Clients that connect and say nothing do not keep others out; where there is no limit they are all let in.
func TestMaxConnections(t *testing.T) {
	for _, test := range []struct {
		limit string
		open  int
	}{{"80", 10}, {"0", 50}} {
		t.Run(test.limit, func(t *testing.T) {
			e := start(t, "--web.max-connections="+test.limit)
			var silent []net.Conn
			for range 50 {
				conn, err := net.Dial("tcp", e.address)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				silent = append(silent, conn)
			}
			if code, _ := e.get(t, "/metrics"); code != http.StatusOK {
				t.Errorf("status %d", code)
			}
			http.DefaultClient.CloseIdleConnections()
			open := 0
			for _, conn := range silent {
				// Those that are open answer.
				if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(conn, "GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
				if line, err := bufio.NewReader(conn).ReadString('\n'); err == nil && strings.Contains(line, "200") {
					open++
				}
			}
			if open < test.open-1 || open > test.open {
				t.Errorf("%d connections were left open, want %d, or one less for the scrape", open, test.open)
			}
		})
	}
}

// A client that asks and does not read gets its answer stored, and gives its place among the scrapes away.
func TestClientThatDoesNotRead(t *testing.T) {
	handler := limitRequests(1, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Test", "kept")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "answer")
	}))
	blocked := &blockedWriter{header: http.Header{}, isWriting: make(chan struct{}), goOn: make(chan struct{})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		handler.ServeHTTP(blocked, nil)
	}()
	<-blocked.isWriting
	second := &blockedWriter{header: http.Header{}, isWriting: make(chan struct{}, 1), goOn: make(chan struct{})}
	close(second.goOn)
	handler.ServeHTTP(second, nil)
	if second.status != http.StatusTeapot || second.body != "answer" || second.header.Get("X-Test") != "kept" {
		t.Errorf("the second got %+v", second)
	}
	close(blocked.goOn)
	<-ended
}

// blockedWriter does not take the answer until it may go on.
type blockedWriter struct {
	header          http.Header
	status          int
	body            string
	isWriting, goOn chan struct{}
}

func (b *blockedWriter) Header() http.Header { return b.header }

func (b *blockedWriter) WriteHeader(status int) { b.status = status }

func (b *blockedWriter) Write(p []byte) (int, error) {
	b.isWriting <- struct{}{}
	<-b.goOn
	b.body += string(p)
	return len(p), nil
}
