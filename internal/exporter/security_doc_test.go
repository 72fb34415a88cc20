// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
)

// The limits in SECURITY.md are those of the code.
func TestLimitsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	document := strings.Join(strings.Fields(string(text)), " ")
	o, err := parseFlags(nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(nil, nil)
	const addedToHeaders = 4 << 10 // by net/http
	// net/http bounds a handshake by the least of the timeouts.
	handshake := min(server.ReadHeaderTimeout, server.ReadTimeout, server.WriteTimeout)
	for _, want := range []string{
		fmt.Sprintf("`--web.max-connections`): %d, and %d of one address", o.maxConnections, o.maxConnections/8),
		fmt.Sprintf("`--web.max-requests`): %d;", o.maxRequests),
		fmt.Sprintf("being sent: %d MiB, compressed", o.sending.maxBytes>>20),
		fmt.Sprintf("a TLS handshake; a header: %.0f s; %.0f s and %d KiB", handshake.Seconds(), server.ReadHeaderTimeout.Seconds(),
			(server.MaxHeaderBytes+addedToHeaders)>>10),
		fmt.Sprintf("a whole request; silence between two requests: %.0f s; %.0f min", server.ReadTimeout.Seconds(), server.IdleTimeout.Minutes()),
		fmt.Sprintf("sending an answer; each 16 KiB of it: %.0f min; %.0f s", o.sending.timeout.Minutes(), o.sending.stallTimeout.Seconds()),
	} {
		if !strings.Contains(document, want) {
			t.Errorf("SECURITY.md does not say %q", want)
		}
	}
	if server.WriteTimeout != o.sending.timeout {
		t.Errorf("the server cuts answers off after %v", server.WriteTimeout)
	}
}
