// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"
)

// TestHealthcheck asks exporters of all kinds.
func TestHealthcheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeCertificate(t, dir)
	const tlsConfig = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"
	configs := map[string]string{
		"tls":    tlsConfig,
		"client": tlsConfig + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: cert.pem\n",
		"tls1.2": tlsConfig + "  max_version: TLS12\n  client_auth_type: RequireAnyClientCert\n",
		"users":  "basic_auth_users:\n  alice: $2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi\n",
	}
	ask := func(args ...string) error {
		return run(context.Background(), append([]string{"--healthcheck"}, args...), io.Discard, io.Discard, mustNotOpen(t), dropNothing)
	}

	t.Run("plain", func(t *testing.T) {
		if err := ask("--web.listen-address=" + start(t).address); err != nil {
			t.Error(err)
		}
	})
	for name, content := range configs {
		t.Run(name, func(t *testing.T) {
			file := "--web.config.file=" + write(t, filepath.Join(dir, name+".yml"), content)
			address := "--web.listen-address=" + start(t, file).address
			if err := ask(address, file); err != nil {
				t.Error(err)
			}
			if err := ask(address); err != nil {
				t.Errorf("without the file of the exporter: %v", err)
			}
		})
	}
	t.Run("all addresses of the host", func(t *testing.T) {
		e := start(t, "--web.listen-address=:0")
		_, port, err := net.SplitHostPort(e.log.await(t, `msg="Listening on" address=(\S+)`))
		if err != nil {
			t.Fatal(err)
		}
		if err := ask("--web.listen-address=:" + port); err != nil {
			t.Error(err)
		}
	})
	t.Run("another server", func(t *testing.T) {
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		address := server.Listener.Addr().String()
		expectError(t, ask("--web.listen-address="+address), address, "404")
	})
	t.Run("no server", func(t *testing.T) {
		expectError(t, ask("--web.listen-address=127.0.0.1:1"), "127.0.0.1:1", "connection refused")
	})
	t.Run("an address that cannot be asked", func(t *testing.T) {
		expectError(t, ask("--web.listen-address=vsock://:9400"), "--healthcheck", "vsock://:9400", "TCP port")
	})
	t.Run("a server that does not answer", func(t *testing.T) {
		if testing.Short() {
			t.Skip("takes as long as an answer may")
		}
		t.Parallel()
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		address := silent.Addr().String()
		expectError(t, ask("--web.listen-address="+address), address, "deadline exceeded")
	})
}

// writeCertificate writes a self-signed cert.pem, and its key.pem.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"elsewhere"}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "cert.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})))
	write(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}
