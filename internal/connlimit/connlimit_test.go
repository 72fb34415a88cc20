// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package connlimit

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// testConn is a connection that only has an address and a Close.
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

// Each step is the address of a new connection, or an event of the n-th connection. Of the 32
// connections in total, a host may have 4.
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
			all := New(32, slog.New(slog.DiscardHandler))
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
						all.setState(admitted[n], http.StateActive)
					case "idle":
						all.setState(admitted[n], http.StateIdle)
					default:
						if err := admitted[n].Close(); err != nil {
							t.Fatal(err)
						}
					}
				default:
					conn := &testConn{from: step}
					limited, excess := all.admit(conn)
					for _, conn := range excess {
						if err := conn.Close(); err != nil {
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

// A log that blocks delays no connection.
func TestLogThatBlocks(t *testing.T) {
	isLogging, goOn := make(chan struct{}), make(chan struct{})
	all := New(8, slog.New(slog.NewTextHandler(writerFunc(func(line []byte) (int, error) {
		close(isLogging)
		<-goOn
		return len(line), nil
	}), nil)))
	connections := make(chan net.Conn)
	listener := all.Listener(channelListener{connections: connections})
	accept := func() (done chan struct{}) {
		done = make(chan struct{})
		go func() {
			defer close(done)
			_, _ = listener.Accept()
		}()
		return done
	}
	first := accept()
	connections <- &testConn{from: "10.0.0.1:1"}
	<-first
	logging := accept()
	connections <- &testConn{from: "10.0.0.1:2"} // takes the place of the first
	<-isLogging
	second := accept()
	connections <- &testConn{from: "10.0.0.2:1"}
	select {
	case <-second:
	case <-time.After(20 * time.Second):
		t.Error("a connection waits for the log")
	}
	close(goOn)
	<-logging
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(line []byte) (int, error) { return f(line) }

// channelListener accepts the connections of a channel.
type channelListener struct {
	net.Listener
	connections chan net.Conn
}

func (l channelListener) Accept() (net.Conn, error) { return <-l.connections, nil }

// A connection that was replaced begins no request, even if the server had read the request
// before the connection was closed. Otherwise requests would run that no limit counts.
func TestReplacedConnectionBeginsNoRequest(t *testing.T) {
	all := New(8, slog.New(slog.DiscardHandler)) // one connection of each host
	// The first connection is replaced between its first and its second request, both of which the
	// server has read by then.
	var requests atomic.Int32
	ended := make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) })}
	all.Watch(server)
	watch := server.ConnState
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		watch(conn, state)
		if limited, ok := conn.(*limitedConn); ok && state == http.StateIdle {
			if _, excess := all.admit(&testConn{from: limited.RemoteAddr().String()}); len(excess) != 1 {
				t.Errorf("%d connections are replaced", len(excess))
			}
		}
		if state == http.StateClosed {
			close(ended)
		}
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(all.Listener(tcp)) }()
	defer server.Close()
	client, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := io.WriteString(client, strings.Repeat("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 2)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the connection is kept open")
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests were handled, want 1", n)
	}
}
