// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package answer

import (
	"net/http"
	"sync"
	"time"
)

// kept keeps answers for later requests.
type kept struct {
	maxAge   time.Duration
	maxBytes int

	mu      sync.Mutex
	answers map[string]keptAnswer
	bytes   int
}

// keptAnswer is an answer with the time at which it was made.
type keptAnswer struct {
	*stored
	made time.Time
}

func newKept(maxAge time.Duration, maxBytes int) *kept {
	return &kept{maxAge: maxAge, maxBytes: maxBytes, answers: map[string]keptAnswer{}}
}

// get returns the answer to requests with a key, or nil.
func (k *kept) get(key string) *stored {
	if k.maxAge == 0 {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if a, ok := k.answers[key]; ok && time.Since(a.made) < k.maxAge {
		return a.stored
	}
	return nil
}

// add keeps an answer, unless those that are not too old leave no room for it.
func (k *kept) add(key string, a *stored) {
	if k.maxAge == 0 || a.status != http.StatusOK {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for old, answer := range k.answers {
		if old == key || time.Since(answer.made) >= k.maxAge {
			k.bytes -= size(old, answer.stored)
			delete(k.answers, old)
		}
	}
	if n := size(key, a); k.bytes+n <= k.maxBytes {
		k.answers[key] = keptAnswer{a, time.Now()}
		k.bytes += n
	}
}

// size returns about the bytes of memory of an answer.
func size(key string, a *stored) int { return len(key) + cap(a.body) + 1024 }
