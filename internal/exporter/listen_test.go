// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// An IPv4 address, also the wildcard, means IPv4 only.
func TestNetworkOf(t *testing.T) {
	for address, want := range map[string]string{
		"0.0.0.0:9400": "tcp4", "127.0.0.1:9400": "tcp4", "[::ffff:0.0.0.0]:9400": "tcp4",
		"[::]:9400": "tcp", ":9400": "tcp", "[::1]:9400": "tcp", "localhost:9400": "tcp", "9400": "tcp",
	} {
		if got := networkOf(address); got != want {
			t.Errorf("%s is of %s, want %s", address, got, want)
		}
	}
	for address, want := range map[string]map[string]bool{
		"0.0.0.0:0": {"127.0.0.1": true, "::1": false},
		"[::]:0":    {"127.0.0.1": true, "::1": true},
	} {
		listener, err := listenOn(address)
		if err != nil {
			t.Fatal(err)
		}
		_, port, err := net.SplitHostPort(listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		for host, isOpen := range want {
			conn, err := net.Dial("tcp", net.JoinHostPort(host, port))
			if (err == nil) != isOpen {
				t.Errorf("%s: %s is open: %v, want %t", address, host, err, isOpen)
			}
			if err == nil {
				conn.Close()
			}
		}
		listener.Close()
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.sock")
	e := start(t, "--web.listen-address=unix:"+path)
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}
	response, err := client.Get("http://localhost/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || response.StatusCode != http.StatusOK || len(body) == 0 {
		t.Errorf("status %d, %d bytes: %v", response.StatusCode, len(body), err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs.ModeSocket|socketMode {
		t.Errorf("the mode is %v: %v", info.Mode(), err)
	}
	check := func() error {
		return run(context.Background(), []string{"--healthcheck", "--web.listen-address=unix:" + path}, io.Discard, io.Discard, mustNotOpen(t), dropNothing)
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	// A second exporter does not take the socket over.
	err = run(context.Background(), []string{"--audit.device=eth0", "--web.listen-address=unix:" + path}, io.Discard, io.Discard, mustNotOpen(t), dropNothing)
	expectError(t, err, "--web.listen-address", path, "already in use")
	if err := check(); err != nil {
		t.Errorf("after the second start: %v", err)
	}
	e.stop()
	if err := e.end(t); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket file is left: %v", err)
	}
	expectError(t, check(), path, "no such file")
}

func TestSocketFiles(t *testing.T) {
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: in("stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	write(t, in("file"), "precious")
	if err := os.Symlink(in("file"), in("link")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path string
		want string // part of the error; empty for none
	}{
		{in("new"), ""},
		{in("stale"), ""},
		{in("file"), "is not a socket"},
		{in("link"), "is not a socket"},
		{folder, "is not a socket"},
		{in("none/new"), "no such file"},
		{"relative", "no absolute path"},
		{"", "no absolute path"},
		{"@abstract", "no absolute path"},
	} {
		listener, err := listenOn(unixPrefix + test.path)
		if test.want != "" {
			expectError(t, err, test.want)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.path, err)
			continue
		}
		listener.Close()
		if _, err := os.Lstat(test.path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", test.path, err)
		}
		if err := listener.Close(); err != nil {
			t.Errorf("second close: %v", err)
		}
	}
	if content, err := os.ReadFile(in("file")); err != nil || string(content) != "precious" {
		t.Errorf("the file has %q: %v", content, err)
	}
}

// Another user who locks the directory delays the start, and does not prevent it. A socket in use
// stays in use.
func TestLockedDirectory(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "web.sock")
	directory, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer directory.Close()
	if err := syscall.Flock(int(directory.Fd()), syscall.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	first, err := listenOn(unixPrefix + path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if second, err := listenOn(unixPrefix + path); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v and the error %v", second, err)
	}
}

// A socket removes only its own file when it is closed.
func TestSocketOfAnotherProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "web.sock")
	first, err := listenOn(unixPrefix + path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := listenOn(unixPrefix + path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	first.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file of another socket was removed: %v", err)
	}
}

// The mode is never wider than at the end, and does not depend on the umask.
func TestSocketMode(t *testing.T) {
	for _, mask := range []int{0, 0o22, 0o77} {
		before := syscall.Umask(mask)
		listener, err := listenOn(unixPrefix + filepath.Join(t.TempDir(), "web.sock"))
		syscall.Umask(before)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(listener.Addr().String())
		if err != nil || info.Mode().Perm() != socketMode {
			t.Errorf("umask %o: mode %v, want %o: %v", mask, info.Mode(), socketMode, err)
		}
		listener.Close()
	}
}

// The exporter keeps the right to remove files in the directory of its socket.
func TestSocketInASharedDirectory(t *testing.T) {
	err := run(context.Background(), []string{"--audit.device=eth0", "--web.listen-address=unix:/tmp/web.sock"},
		io.Discard, io.Discard, mustNotOpen(t), dropNothing)
	expectError(t, err, "--web.listen-address", "/tmp is shared", "directory of its own")
}
