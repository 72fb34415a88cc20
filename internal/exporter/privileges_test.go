// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

// Privileges are dropped after the port is open and the hook is attached, and before anything
// is served. The files of the flags stay accessible.
func TestPrivilegesAreDropped(t *testing.T) {
	folder := t.TempDir()
	trailFile := filepath.Join(folder, "trail")
	for _, test := range []struct {
		description string
		args        []string
		want        privilege.Needs
	}{
		{"no files", nil, privilege.Needs{}},
		{"a trail", []string{"--trail.file=" + trailFile}, privilege.Needs{Append: []string{trailFile}}},
		{"a trail on standard output", []string{"--trail.file=-"}, privilege.Needs{}},
		{"a Unix socket", []string{"--web.listen-address=unix:" + filepath.Join(folder, "web.sock")}, privilege.Needs{Remove: []string{folder}}},
		{"pins", []string{"--bpf.pin-path=/sys/fs/bpf/a"}, privilege.Needs{Manage: []string{"/sys/fs/bpf/a"}}},
	} {
		t.Run(test.description, func(t *testing.T) {
			var got *privilege.Needs
			fake, address := newFakeAudit(), freeAddress(t)
			isOpen := false
			open := func(context.Context, bpf.Config, *slog.Logger) (audit, error) {
				isOpen = true
				return fake, nil
			}
			drop := func(needs privilege.Needs, _ *slog.Logger) (privilege.Held, error) {
				got = &needs
				if !isOpen {
					t.Error("privileges are dropped before the hook is attached")
				}
				if conn, err := net.Dial("tcp", address); err != nil {
					t.Errorf("privileges are dropped before the port is open: %v", err)
				} else {
					conn.Close()
				}
				return privilege.Held{}, errors.New("far enough")
			}
			args := append([]string{"--audit.device=eth0", "--web.listen-address=" + address}, test.args...)
			err := run(context.Background(), args, io.Discard, io.Discard, open, drop)
			expectError(t, err, "far enough", "--privileges.keep")
			select {
			case <-fake.closed:
			default:
				t.Error("the hook is left attached")
			}
			if !fake.isAbandoned {
				t.Error("what is pinned is left to an exporter after this one")
			}
			if got == nil || !reflect.DeepEqual(*got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// freeAddress returns an address without a listener.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func TestPrivilegesAreKept(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var log bytes.Buffer
	open := func(context.Context, bpf.Config, *slog.Logger) (audit, error) { return newFakeAudit(), nil }
	drop := func(privilege.Needs, *slog.Logger) (privilege.Held, error) {
		t.Error("privileges are dropped")
		return privilege.Held{}, nil
	}
	args := []string{"--audit.device=eth0", "--web.listen-address=127.0.0.1:0", "--privileges.keep"}
	if err := run(ctx, args, io.Discard, &log, open, drop); err != nil {
		t.Fatal(err)
	}
	if want := `level=WARN`; !strings.Contains(log.String(), want) || !strings.Contains(log.String(), "Privileges are kept") {
		t.Errorf("no warning in the log: %s", &log)
	}
}

// A file that the exporter can only read with privileges is an error at the start.
func TestAnUnreadableWebConfig(t *testing.T) {
	folder := t.TempDir()
	config := write(t, filepath.Join(folder, "web.yml"), "basic_auth_users: {}\n")
	open := func(context.Context, bpf.Config, *slog.Logger) (audit, error) { return newFakeAudit(), nil }
	drop := func(privilege.Needs, *slog.Logger) (privilege.Held, error) {
		write(t, config, "gone: bad\n")
		return privilege.Held{}, nil
	}
	args := []string{"--audit.device=eth0", "--web.listen-address=127.0.0.1:0", "--web.config.file=" + config}
	err := run(context.Background(), args, io.Discard, io.Discard, open, drop)
	if err == nil || !strings.HasPrefix(err.Error(), "--web.config.file: "+config+" cannot be used without privileges: ") {
		t.Errorf("got %v", err)
	}
}

func TestWebFiles(t *testing.T) {
	folder := t.TempDir()
	for _, test := range []struct {
		description, config string
		want                []string
	}{
		{"users alone", "basic_auth_users: {}\n", nil},
		{"relative paths", "tls_server_config:\n  cert_file: a.crt\n  key_file: keys/a.key\n", []string{folder + "/a.crt", folder + "/keys/a.key"}},
		{
			"absolute paths and clients", "tls_server_config:\n  cert_file: /c/a.crt\n  key_file: /c/a.key\n  client_ca_file: /c/ca.crt\n",
			[]string{"/c/a.crt", "/c/a.key", "/c/ca.crt"},
		},
	} {
		t.Run(test.description, func(t *testing.T) {
			path := write(t, filepath.Join(folder, "web.yml"), test.config)
			if got, want := webFiles(path), append([]string{path}, test.want...); !reflect.DeepEqual(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	if got := webFiles(""); got != nil {
		t.Errorf("without a configuration there are %q", got)
	}
}
