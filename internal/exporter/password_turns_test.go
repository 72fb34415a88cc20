// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Hosts take turns, whatever number of requests each of them has. Each step is a request of a
// host, in the order of arrival, or the end of a turn with "-", or "!" and a request that its
// client abandons.
func TestPasswordTurns(t *testing.T) {
	for _, test := range []struct {
		description string
		steps       string
		want        string // requests in the order of their turns
	}{
		{"one after the other", "a1 - a2 - b1 -", "a1 a2 b1"},
		{"one host in the order of arrival", "a1 a2 a3 - - -", "a1 a2 a3"},
		{"a host with one request does not wait for all of another", "a1 a2 a3 a4 b1 - - - - -", "a1 a2 b1 a3 a4"},
		{"three hosts", "a1 a2 a3 b1 b2 c1 - - - - - -", "a1 a2 b1 c1 a3 b2"},
		{"an abandoned request takes no turn", "a1 a2 b1 !a2 - - -", "a1 b1"},
		{"nor does one in the middle", "a1 a2 a3 a4 !a3 - - -", "a1 a2 a4"},
	} {
		t.Run(test.description, func(t *testing.T) {
			var turns passwordTurns
			begun, left := make(chan string), make(chan struct{})
			abandon := map[string]context.CancelFunc{}
			var got []string
			isTaken, waiting := false, 0
			for _, step := range strings.Fields(test.steps) {
				switch {
				case step == "-":
					turns.end()
					isTaken = waiting > 0
					if isTaken {
						got, waiting = append(got, <-begun), waiting-1
					}
				case step[0] == '!':
					abandon[step[1:]]()
					<-left
					waiting--
				default:
					ctx, cancel := context.WithCancel(t.Context())
					abandon[step] = cancel
					go func() {
						host := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, step[0]}), 32)
						if turns.begin(ctx, host) != nil {
							left <- struct{}{}
							return
						}
						begun <- step
					}()
					if !isTaken {
						got, isTaken = append(got, <-begun), true
						continue
					}
					waiting++
					for turns.waits() < waiting {
						time.Sleep(time.Millisecond)
					}
				}
			}
			if want := strings.Fields(test.want); !slices.Equal(got, want) || turns.isTaken || len(turns.waiting) > 0 {
				t.Errorf("the turns are %v, want %v; it is still a turn: %t; %d hosts wait", got, want, turns.isTaken, len(turns.waiting))
			}
		})
	}
}

// waits returns the number of requests that wait.
func (t *passwordTurns) waits() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, queue := range t.waiting {
		n += len(queue.requests)
	}
	return n
}

// A correct password does not wait for the wrong ones that another address has sent before.
func TestPasswordsAreComparedInTurn(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.DefaultCost)
	if err != nil {
		t.Fatal(err)
	}
	config := write(t, filepath.Join(t.TempDir(), "web.yml"), fmt.Sprintf("basic_auth_users:\n  user: %s\n", hash))
	e := start(t, "--web.config.file="+config)

	const wrong = 30
	var answered atomic.Int32
	conns := make([]net.Conn, wrong)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", e.address); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
	}
	for i, conn := range conns {
		request, err := http.NewRequest(http.MethodGet, "http://"+e.address+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.SetBasicAuth("user", fmt.Sprint(i))
		if err := request.Write(conn); err != nil {
			t.Fatal(err)
		}
		go func() {
			if response, err := http.ReadResponse(bufio.NewReader(conn), request); err == nil && response.StatusCode == http.StatusUnauthorized {
				response.Body.Close()
				answered.Add(1)
			}
		}()
	}
	for deadline := time.Now().Add(patience); answered.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no wrong password is answered")
		}
	}
	before := answered.Load()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
	request, err := http.NewRequest(http.MethodGet, "http://"+e.address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.SetBasicAuth("user", "right")
	begin := time.Now()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err = errors.Join(err, response.Body.Close()); err != nil || response.StatusCode != http.StatusOK || len(body) == 0 {
		t.Errorf("status %d, %d bytes: %v", response.StatusCode, len(body), err)
	}
	waited := answered.Load() - before
	t.Logf("%d of %d wrong passwords were answered before the correct one, in %v", waited, wrong-before, time.Since(begin))
	if waited > wrong/3 {
		t.Errorf("a correct password waited for %d wrong ones", waited)
	}
}
