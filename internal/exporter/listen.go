// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/mdlayher/vsock"
	"github.com/prometheus/exporter-toolkit/web"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

const (
	unixPrefix = "unix:"

	// socketMode lets the user and the group of the exporter connect.
	socketMode = 0o660

	// socketPatience bounds the wait for another process that starts on the same socket, and that
	// for an answer of the process that listens on it.
	socketPatience = 2 * time.Second
)

// listen opens the sockets of the listen addresses, or takes those that systemd passes.
func listen(flags *web.FlagConfig) (listeners []net.Listener, err error) {
	if *flags.WebSystemdSocket {
		listeners, err = activation.Listeners()
		listeners = slices.DeleteFunc(listeners, func(l net.Listener) bool { return l == nil })
		if err == nil && len(listeners) == 0 {
			err = errors.New("systemd passed no socket; start the exporter from a socket unit")
		}
		if err != nil {
			return nil, flagError("web.systemd-socket", err)
		}
		return listeners, nil
	}
	for _, address := range *flags.WebListenAddresses {
		listener, err := listenOn(address)
		if err != nil {
			closeAll(listeners)
			return nil, listenError(err)
		}
		listeners = append(listeners, listener)
	}
	return listeners, nil
}

// listenError returns an error of a listen address with the remedy.
func listenError(err error) error {
	for cause, remedy := range map[error]string{
		unix.EADDRINUSE:    "end the process that listens there, or choose another address",
		unix.EADDRNOTAVAIL: "choose an address of this host, or :9400 for all of them",
		unix.EACCES:        "choose a port above 1023 or a socket in a directory in which the exporter may write",
	} {
		if errors.Is(err, cause) {
			err = fmt.Errorf("%w: %s", err, remedy)
		}
	}
	return flagError("web.listen-address", err)
}

// checkListening returns the error with which listen would fail. It leaves no socket and creates
// no file.
func checkListening(flags *web.FlagConfig) error {
	if *flags.WebSystemdSocket {
		listeners, err := listen(flags)
		closeAll(listeners)
		return err
	}
	var listeners []net.Listener
	defer func() { closeAll(listeners) }()
	seen := map[string]bool{}
	for _, address := range *flags.WebListenAddresses {
		path, isUnix := strings.CutPrefix(address, unixPrefix)
		if isUnix {
			err := checkUnix(path)
			if err == nil && seen[path] {
				err = inUse(path)
			}
			if err != nil {
				return listenError(err)
			}
			seen[path] = true
			continue
		}
		listener, err := listenOn(address)
		if err != nil {
			return listenError(err)
		}
		listeners = append(listeners, listener)
	}
	return nil
}

func listenOn(address string) (net.Listener, error) {
	if path, isUnix := strings.CutPrefix(address, unixPrefix); isUnix {
		return listenUnix(path)
	}
	number, isVsock := strings.CutPrefix(address, "vsock://:")
	if !isVsock {
		if err := checkAddress(address); err != nil {
			return nil, err
		}
		return net.Listen(networkOf(address), address)
	}
	port, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%s has no port; use an address such as vsock://:9400", address)
	}
	return vsock.Listen(uint32(port), nil)
}

// checkAddress returns an error with the remedy unless a TCP address has a host, which may be
// empty, and a port.
func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port: use %s", address, correctAddress(address))
	}
	if isNumber(port) { // otherwise the port may be the name of a service
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return fmt.Errorf("%q: port %s is not between 0 and 65535", address, port)
		}
	}
	return nil
}

// correctAddress returns what an address that is not host:port was probably meant to be.
func correctAddress(address string) string {
	const port = "9400"
	if _, rest, isURL := strings.Cut(address, "://"); isURL {
		rest, _, _ = strings.Cut(rest, "/")
		if checkAddress(rest) == nil {
			return rest
		}
		address = rest
	}
	switch {
	case isNumber(address):
		return ":" + address
	case strings.HasPrefix(address, "/"):
		return unixPrefix + address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), port)
}

// isNumber reports whether a text consists of digits.
func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// networkOf returns the network of a TCP address. For an IPv4 address it is tcp4: with tcp the
// address 0.0.0.0 also stands for all IPv6 addresses.
func networkOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return "tcp" // net.Listen gives the reason
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().Is4() {
		return "tcp4"
	}
	return "tcp"
}

// closeAll closes listeners. A server may have closed them already, so errors mean nothing.
func closeAll(listeners []net.Listener) {
	for _, listener := range listeners {
		_ = listener.Close()
	}
}

// socketDirectories returns the directories of the Unix sockets of the listen addresses.
func (o *options) socketDirectories() (directories []string) {
	if *o.web.WebSystemdSocket {
		return nil
	}
	for _, address := range *o.web.WebListenAddresses {
		if path, isUnix := strings.CutPrefix(address, unixPrefix); isUnix {
			directories = append(directories, filepath.Dir(path))
		}
	}
	return directories
}

// checkSockets returns an error if the exporter would keep the right to remove files of the whole
// system.
func (o *options) checkSockets() error {
	for _, directory := range o.socketDirectories() {
		if info, err := os.Stat(directory); err != nil || !info.IsDir() {
			return flagError("web.listen-address", fmt.Errorf("%s is not a directory; create it first", directory))
		}
		if privilege.IsShared(directory) && !o.keepPrivileges {
			return flagError("web.listen-address", fmt.Errorf(
				"%s is shared by the whole system, and the exporter would keep the right to remove its files; "+
					"choose a socket in a directory of its own", directory))
		}
	}
	return nil
}

// unixListener is a Unix socket that removes its file when it is closed.
type unixListener struct {
	net.Listener
	path  string
	file  os.FileInfo // the file of the socket
	close func() error
}

// listenUnix listens on the socket file at path. It replaces the file that an earlier process has
// left, but not a socket on which a process listens, and no other file.
func listenUnix(path string) (net.Listener, error) {
	if err := checkAbsolute(path); err != nil {
		return nil, err
	}
	unlock, err := lockDirectory(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(context.Background(), socketPatience)
	defer cancel()
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: restrictMode}
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	// Close removes the file, and only if it still is the one of this socket.
	if socket, ok := listener.(*net.UnixListener); ok {
		socket.SetUnlinkOnClose(false)
	}
	l := &unixListener{Listener: listener, path: path}
	l.close = sync.OnceValue(l.remove)
	if l.file, err = os.Lstat(path); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func checkAbsolute(path string) error {
	if filepath.IsAbs(path) {
		return nil
	}
	return fmt.Errorf("%s%s has no absolute path; use an address such as unix:/run/xdp_audit_exporter/web.sock", unixPrefix, path)
}

func inUse(path string) error { return fmt.Errorf("listen unix %s: %w", path, unix.EADDRINUSE) }

// checkUnix returns the error with which listenUnix would fail. It creates and removes no file.
func checkUnix(path string) error {
	if err := checkAbsolute(path); err != nil {
		return err
	}
	directory := filepath.Dir(path)
	if _, err := os.ReadDir(directory); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), socketPatience)
	defer cancel()
	if _, err := findStale(ctx, path); err != nil {
		return err
	}
	if len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		return fmt.Errorf("listen unix %s: bind: %w", path, unix.EINVAL)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, directory, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("listen unix %s: bind: %w", path, err)
	}
	return nil
}

// lockDirectory keeps two processes that start at once from removing the sockets of each other.
// Such a process has the lock for an instant. But every user who can read the directory can lock
// it, so after a while the start goes on without the lock.
func lockDirectory(path string) (unlock func(), err error) {
	directory, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	for begin := time.Now(); time.Since(begin) < socketPatience; time.Sleep(10 * time.Millisecond) {
		if unix.Flock(int(directory.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			break
		}
	}
	return func() { _ = directory.Close() }, nil
}

// removeStale removes a socket file on which no process listens.
func removeStale(ctx context.Context, path string) error {
	isStale, err := findStale(ctx, path)
	if err != nil || !isStale {
		return err
	}
	return os.Remove(path)
}

// findStale reports whether there is a socket file on which no process listens. Any other file is
// an error.
func findStale(ctx context.Context, path string) (isStale bool, err error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case info.Mode().Type() != fs.ModeSocket:
		return false, fmt.Errorf("%s exists and is not a socket; remove it, or choose another path", path)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return false, inUse(path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return false, fmt.Errorf("%s may be in use: %w", path, err)
	}
	return true, nil
}

// restrictMode gives the file of a socket its mode before the file exists, so that no other user
// can connect in between. The umask still applies.
func restrictMode(_, _ string, conn syscall.RawConn) error {
	var failure error
	err := conn.Control(func(fd uintptr) { failure = unix.Fchmod(int(fd), socketMode) })
	return errors.Join(err, failure)
}

// Close removes the file of the socket, and closes the socket.
func (l *unixListener) Close() error { return l.close() }

func (l *unixListener) remove() error {
	var errs []error
	if file, err := os.Lstat(l.path); err == nil && os.SameFile(file, l.file) {
		errs = append(errs, os.Remove(l.path))
	}
	return errors.Join(append(errs, l.Listener.Close())...)
}
