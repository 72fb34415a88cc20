// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/collector"
)

// slowClient reads an answer when it is released, or until its deadline is over.
type slowClient struct {
	*httptest.ResponseRecorder
	deadlines chan time.Time
	release   chan struct{}
	isCut     chan struct{}
	cut       func() // closes isCut
}

func newSlowClient() *slowClient {
	isCut := make(chan struct{})
	return &slowClient{
		httptest.NewRecorder(), make(chan time.Time, 100), make(chan struct{}), isCut, sync.OnceFunc(func() { close(isCut) }),
	}
}

func (c *slowClient) SetWriteDeadline(deadline time.Time) error {
	c.deadlines <- deadline
	if !deadline.After(time.Now()) {
		c.cut()
	}
	return nil
}

func (c *slowClient) Write(p []byte) (int, error) {
	select {
	case <-c.release:
		return len(p), nil
	case <-c.isCut:
		return 0, http.ErrHandlerTimeout
	case <-time.After(patience):
		return 0, http.ErrHandlerTimeout
	}
}

// Each limit of sending answers has its effect on scrapes.
func TestSendingLimits(t *testing.T) {
	const most = 1 << 20
	for _, test := range []struct {
		name    string
		limits  sendingLimits
		isCut   bool          // by the next answer
		timeout time.Duration // of the first part of the answer
	}{
		{"bytes", sendingLimits{1, time.Hour, time.Hour}, true, time.Hour},
		{"timeout", sendingLimits{most, time.Minute, time.Hour}, false, time.Minute},
		{"stall timeout", sendingLimits{most, time.Hour, time.Minute}, false, time.Minute},
	} {
		for _, without := range []bool{false, true} {
			t.Run(test.name, func(t *testing.T) {
				set, err := collector.New(newFakeAudit(), collector.Options{Collectors: []string{"packets"}})
				if err != nil {
					t.Fatal(err)
				}
				o := &options{withoutExporterMetrics: without, sending: test.limits}
				handler, _ := newScrapeHandlers(set, nil, o, nil, slog.New(slog.DiscardHandler))
				get := func(c *slowClient) (ended chan struct{}) {
					ended = make(chan struct{})
					go func() {
						defer close(ended)
						handler.ServeHTTP(c, httptest.NewRequest(http.MethodGet, "/metrics", nil))
					}()
					return ended
				}
				first, second := newSlowClient(), newSlowClient()
				begin := time.Now()
				firstEnded := get(first)
				deadline := <-first.deadlines
				if took := time.Since(begin); deadline.Before(begin.Add(test.timeout)) || deadline.After(begin.Add(test.timeout+took)) {
					t.Errorf("the first part has %v, want %v", deadline.Sub(begin), test.timeout)
				}
				secondEnded := get(second)
				<-second.deadlines // the first answer has been cut off by now, if at all
				select {
				case <-first.isCut:
					if !test.isCut {
						t.Error("the first answer is cut off")
					}
				default:
					if test.isCut {
						t.Error("the first answer is not cut off")
					}
				}
				close(first.release)
				close(second.release)
				<-firstEnded
				<-secondEnded
			})
		}
	}
}

// The flags leave the limits at their defaults.
func TestSendingLimitsOfTheExporter(t *testing.T) {
	o, err := parseFlags([]string{"--audit.device=eth0"}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if want := (sendingLimits{16 << 20, time.Minute, 10 * time.Second}); o.sending != want {
		t.Errorf("the limits are %+v, want %+v", o.sending, want)
	}
}
