// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
)

// healthTimeout bounds a health check.
const healthTimeout = 5 * time.Second

// checkHealth returns nil if a healthy exporter answers on the first listen address.
func checkHealth(ctx context.Context, flags *web.FlagConfig) error {
	address := (*flags.WebListenAddresses)[0]
	if strings.HasPrefix(address, "vsock://") {
		return fmt.Errorf("--healthcheck: cannot check %s: use a --web.listen-address with a TCP port or a Unix socket", address)
	}
	network, target := "tcp", address
	if path, isUnix := strings.CutPrefix(address, unixPrefix); isUnix {
		network, target = "unix", path
	} else if err := checkAddress(address); err != nil {
		return flagError("web.listen-address", err)
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		// An address without a host, such as :9400, means this host.
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, target)
		},
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the request carries no secret
		DisableKeepAlives: true,
	}}
	scheme, other := "http", "https"
	if *flags.WebConfigFile != "" {
		scheme, other = other, scheme
	}
	err := requestHealth(ctx, client, scheme)
	// The file of the exporter may configure users alone, or may not be known to this process.
	var status statusError
	if errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &status) && status.code == http.StatusBadRequest {
		if requestHealth(ctx, client, other) == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("no healthy exporter on %s: %w", address, err)
	}
	return nil
}

// requestHealth returns nil if the exporter is healthy. A challenge for a password or a client
// certificate counts as healthy, because only a working exporter sends one.
func requestHealth(ctx context.Context, client *http.Client, scheme string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://localhost"+healthyPath, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		var alert *net.OpError
		if errors.As(err, &alert) && alert.Op == "remote error" { // TLS: no client certificate
			return nil
		}
		var wrapper *url.Error
		if errors.As(err, &wrapper) {
			return wrapper.Err
		}
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK, http.StatusUnauthorized, http.StatusTooManyRequests:
		return nil
	}
	return statusError{response.StatusCode, response.Status}
}

// statusError is the error of an answer with another status. A server with TLS answers a request
// without it with the status 400.
type statusError struct {
	code   int
	status string
}

// Error implements error.
func (e statusError) Error() string {
	return fmt.Sprintf("%s answers with status %s", healthyPath, e.status)
}
