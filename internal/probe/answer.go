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

// mostAnswer is the number of bytes of an answer, with its headers, from which the probe gives up.
const mostAnswer = 1 << 24

var (
	errLong = fmt.Errorf("the answer is longer than %d bytes", mostAnswer)
	// errClosed is the error of a connection that the service has closed before a request.
	errClosed = errors.New("the service closes a connection before the next request")
	// errUnasked is the error of a connection with bytes that no request has asked for.
	errUnasked = errors.New("the service sends more than one answer to a request")
)

// readHTTP reads the whole answer to a request, so that the next request acknowledges it.
func readHTTP(r *bufio.Reader, request *http.Request) (status int, isLast bool, err error) {
	for {
		response, err := http.ReadResponse(r, request)
		if err != nil {
			return 0, true, err
		}
		_, err = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		// What follows a switch is not HTTP.
		isSwitch := response.StatusCode == http.StatusSwitchingProtocols
		// The answers before the last one, such as 103 Early Hints.
		if err == nil && response.StatusCode < http.StatusOK && !isSwitch {
			continue
		}
		return response.StatusCode, response.Close || isSwitch, err
	}
}

// readRaw reads until the text that ends an answer, or until the service is quiet. An answer that
// does not end within the timeout is an error.
func readRaw(c net.Conn, r *bufio.Reader, end []byte, quiet, timeout time.Duration) (isLast bool, err error) {
	var last []byte
	begin := time.Now()
	for {
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
