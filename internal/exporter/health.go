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

	"github.com/prometheus/exporter-toolkit/web"
)

// checkHealth returns nil if an exporter answers on the first listen address.
func checkHealth(ctx context.Context, flags *web.FlagConfig) error {
	address := (*flags.WebListenAddresses)[0]
	if strings.HasPrefix(address, "vsock://") {
		return fmt.Errorf("--healthcheck: cannot ask on %s: use an address with a TCP port", address)
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		// Without a host the address is this host's own, and needs no look-up of a name.
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it is this host, and nothing secret is sent
		DisableKeepAlives: true,
	}}
	scheme := "http"
	if *flags.WebConfigFile != "" {
		scheme = "https"
	}
	err := askHealth(ctx, client, scheme)
	if errors.Is(err, http.ErrSchemeMismatch) { // the file has users, but no TLS
		err = askHealth(ctx, client, "http")
	}
	if err != nil {
		return fmt.Errorf("no healthy exporter on %s: %w", address, err)
	}
	return nil
}

// askHealth returns nil if the exporter is healthy, or guards its health from strangers.
func askHealth(ctx context.Context, client *http.Client, scheme string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://localhost"+healthyPath, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		var alert *net.OpError
		if errors.As(err, &alert) && alert.Op == "remote error" { // of TLS: it wants a client's certificate
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
	return fmt.Errorf("it answered %s", response.Status)
}
