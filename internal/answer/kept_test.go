// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package answer

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An answer is kept for later requests, but not for longer than it may be, and not above the bytes
// of all that are kept.
func TestAnswersAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made := map[string]int{}
		options := newOptions()
		options.MaxAge, options.MaxKept = time.Second, 4<<10
		h := New(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			made[r.URL.Path]++
			if r.URL.Path == "/missing" {
				w.WriteHeader(http.StatusNotFound)
			}
			fmt.Fprintf(w, "%s %d", r.URL.Path, made[r.URL.Path])
		}), options)
		expect := func(path, want string) {
			t.Helper()
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			if got := w.Body.String(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		expect("/a", "/a 1")
		expect("/b", "/b 1")
		time.Sleep(999 * time.Millisecond)
		expect("/a", "/a 1")
		time.Sleep(time.Millisecond)
		expect("/a", "/a 2")
		expect("/missing", "/missing 1")
		expect("/missing", "/missing 2")
		time.Sleep(time.Second)
		for i := range 100 {
			path := "/" + strings.Repeat("x", i)
			expect(path, path+" 1")
		}
		if h.kept.bytes > options.MaxKept || h.kept.bytes < 1<<10 || len(h.kept.answers) > 4 {
			t.Errorf("%d answers of %d bytes are kept, want at most %d", len(h.kept.answers), h.kept.bytes, options.MaxKept)
		}
		time.Sleep(time.Second)
		expect("/c", "/c 1")
		if len(h.kept.answers) != 1 {
			t.Errorf("%d answers are kept, want 1", len(h.kept.answers))
		}
	})
}

// Without an age, no answer is older than its request.
func TestAnswersAreNotKeptUnlessAsked(t *testing.T) {
	n := 0
	h := New(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n++
		fmt.Fprint(w, n)
	}), newOptions())
	for range 3 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	}
	if n != 3 {
		t.Errorf("3 requests make %d answers", n)
	}
}
