// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package probe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// mostAnswer is the number of bytes of an answer from which the probe gives up.
const mostAnswer = 1 << 26

var errLong = fmt.Errorf("the answer is longer than %d bytes", mostAnswer)

// readHTTP reads the whole answer to a request, so that the next request acknowledges it.
func readHTTP(r *bufio.Reader, request *http.Request) (status int, isLast bool, err error) {
	for {
		response, err := http.ReadResponse(r, request)
		if err != nil {
			return 0, true, err
		}
		n, err := io.Copy(io.Discard, io.LimitReader(response.Body, mostAnswer+1))
		_ = response.Body.Close()
		if err == nil && n > mostAnswer {
			err = errLong
		}
		// The answers before the last one, such as 103 Early Hints.
		if err == nil && response.StatusCode < http.StatusOK && response.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		return response.StatusCode, response.Close, err
	}
}

// readRaw reads until the text that ends an answer, or until the service is quiet. An answer that
// does not end within the timeout is an error.
func readRaw(c net.Conn, r *bufio.Reader, end []byte, quiet, timeout time.Duration) (isLast bool, err error) {
	var last []byte
	begin := time.Now()
	for n := 0; ; {
		if len(end) == 0 {
			if time.Since(begin) > timeout {
				return false, fmt.Errorf("the answer does not end within %v: %w", timeout, os.ErrDeadlineExceeded)
			}
			if err := c.SetReadDeadline(time.Now().Add(quiet)); err != nil {
				return false, err
			}
		}
		if _, err = r.Peek(1); err != nil {
			switch {
			case len(end) == 0 && errors.Is(err, os.ErrDeadlineExceeded):
				return false, nil
			case len(end) == 0 && errors.Is(err, io.EOF):
				return true, nil
			}
			return false, err
		}
		piece, err := r.Peek(r.Buffered())
		if err != nil {
			return false, err
		}
		if n += len(piece); n > mostAnswer {
			return false, errLong
		}
		if len(end) > 0 {
			last = append(last, piece...)
			last = last[max(0, len(last)-len(end)):]
		}
		if _, err := r.Discard(len(piece)); err != nil {
			return false, err
		}
		if len(end) > 0 && bytes.Equal(last, end) {
			return false, nil
		}
	}
}
