// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Command attackable is the exporter with an additional path that attempts attacks from inside
// its process.
package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/exporter"
)

func main() {
	os.Exit(exporter.Main(os.Args[1:], exporter.Process{Stdout: os.Stdout, Stderr: os.Stderr, Handlers: probes()}))
}

// probes returns a path that makes the attempt of the parameter "do" with the argument of the
// parameter "with", on several threads at once. The answer is ok, or the distinct errors, one
// in each line.
func probes() map[string]http.Handler {
	return map[string]http.Handler{"/-/probe": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		attempt, ok := attempts[r.FormValue("do")]
		if !ok {
			http.Error(w, "no such attempt", http.StatusBadRequest)
			return
		}
		for _, answer := range onThreads(func() error { return attempt(r.FormValue("with")) }) {
			fmt.Fprintln(w, answer)
		}
	})}
}

// onThreads calls f on several threads and returns the distinct answers. The threads end
// afterwards, because f may change their credentials.
func onThreads(f func() error) []string {
	const threads = 8
	answers := make([]string, threads)
	var together, ended sync.WaitGroup
	together.Add(threads)
	for i := range threads {
		ended.Go(func() {
			runtime.LockOSThread()
			together.Done()
			together.Wait()
			answers[i] = "ok"
			if err := f(); err != nil {
				answers[i] = err.Error()
			}
		})
	}
	ended.Wait()
	slices.Sort(answers)
	return slices.Compact(answers)
}

var attempts = map[string]func(with string) error{
	"read": func(path string) error {
		_, err := os.ReadFile(path)
		return err
	},
	"create": func(path string) error {
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		return file.Close()
	},
	"run": func(path string) error {
		process, err := os.StartProcess(path, []string{path}, &os.ProcAttr{})
		if err != nil {
			return err
		}
		_, err = process.Wait()
		return err
	},
	"signal": func(pid string) error {
		n, err := strconv.Atoi(pid)
		if err != nil {
			return err
		}
		return unix.Kill(n, 0)
	},
	"load a program": func(string) error {
		pass := [...]uint64{0x00000002_000000b7, 0x95} // r0 = XDP_PASS; exit
		license := [...]byte{'G', 'P', 'L', 0}
		attributes := struct {
			kind, instructions  uint32
			code, license       uint64
			logLevel, logLength uint32
			log                 uint64
			version, flags      uint32
		}{
			kind: unix.BPF_PROG_TYPE_XDP, instructions: uint32(len(pass)),
			code: uint64(uintptr(unsafe.Pointer(&pass))), license: uint64(uintptr(unsafe.Pointer(&license))),
		}
		err := callBPF(unix.BPF_PROG_LOAD, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
		runtime.KeepAlive(&pass)
		runtime.KeepAlive(&license)
		return err
	},
	"create a map": func(string) error {
		attributes := struct{ kind, key, value, entries, flags uint32 }{unix.BPF_MAP_TYPE_HASH, 4, 4, 1, 0}
		return callBPF(unix.BPF_MAP_CREATE, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
	},
	"open a program": func(id string) error { return openByID(unix.BPF_PROG_GET_FD_BY_ID, id) },
	"open a map":     func(id string) error { return openByID(unix.BPF_MAP_GET_FD_BY_ID, id) },
	"attach":         attach,
	"inject":         inject,
	"change a device": func(device string) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		request, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		request.SetUint32(1400)
		return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, request)
	},
	"change an address": func(device string) error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		request, err := unix.NewIfreq(device)
		if err != nil {
			return err
		}
		if err := request.SetInet4Addr([]byte{127, 0, 0, 1}); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.SIOCSIFADDR, request)
	},
	"change a mode": func(path string) error { return os.Chmod(path, 0o400) },
	"sniff": func(string) error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	},
	"become a user": func(uid string) error {
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return err
		}
		// A raw system call changes this thread only.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETUID, uintptr(n), 0, 0); errno != 0 {
			return errno
		}
		return nil
	},
	"connect":             func(address string) error { return onSocket(unix.SOCK_STREAM, 0, address, unix.Connect) },
	"bind":                func(address string) error { return onSocket(unix.SOCK_STREAM, 0, address, unix.Bind) },
	"connect with UDP":    func(address string) error { return onSocket(unix.SOCK_DGRAM, 0, address, unix.Connect) },
	"bind Multipath TCP":  func(address string) error { return onSocket(unix.SOCK_STREAM, unix.IPPROTO_MPTCP, address, unix.Bind) },
	"connect to a socket": connectUnix,
	"look up a device": func(name string) error {
		_, err := net.InterfaceByName(name)
		return err
	},
}

// openByID opens a program or a map of the host.
func openByID(command int, id string) error {
	n, err := strconv.ParseUint(id, 10, 32)
	if err != nil {
		return err
	}
	attributes := struct{ id, next, flags uint32 }{id: uint32(n)}
	return callBPF(command, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
}

// openProgram returns the descriptor of a program that the process has open.
func openProgram() (fd uint32, err error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	for _, entry := range entries {
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err != nil || target != "anon_inode:bpf-prog" {
			continue
		}
		n, err := strconv.ParseUint(entry.Name(), 10, 32)
		return uint32(n), err
	}
	return 0, errors.New("no program is open")
}

// attach attaches a program that the process has open to another device.
func attach(device string) error {
	program, err := openProgram()
	if err != nil {
		return err
	}
	link, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	attributes := struct{ program, device, kind, flags uint32 }{program, uint32(link.Index), unix.BPF_XDP, unix.XDP_FLAGS_SKB_MODE}
	attaching.Lock() // a device takes one program
	defer attaching.Unlock()
	return callBPF(unix.BPF_LINK_CREATE, unsafe.Pointer(&attributes), unsafe.Sizeof(attributes))
}

var attaching sync.Mutex

// inject lets a program that the process has open pass a frame on to the host, as if a device had
// received it.
func inject(string) error {
	const liveFrames = 2 // BPF_F_TEST_XDP_LIVE_FRAMES of linux/bpf.h
	program, err := openProgram()
	if err != nil {
		return err
	}
	var frame [64]byte
	attributes := struct {
		program, result, sizeIn, sizeOut uint32
		in, out                          uint64
		repeat, duration                 uint32
		contextIn, contextOut            uint32
		context, contextTo               uint64
		flags, cpu, batch, _             uint32
	}{program: program, sizeIn: uint32(len(frame)), in: uint64(uintptr(unsafe.Pointer(&frame))), repeat: 1, flags: liveFrames}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&attributes)), unsafe.Sizeof(attributes))
	runtime.KeepAlive(&frame)
	if errno != 0 {
		return errno
	}
	return nil
}

// connectUnix connects to a Unix socket, an abstract one if its name begins with @.
func connectUnix(name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: name})
}

// callBPF calls bpf(2) and closes the file descriptor that the call returns.
func callBPF(command int, attributes unsafe.Pointer, size uintptr) error {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(command), uintptr(attributes), size)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}

// onSocket calls f with a socket of IPv4 and an address.
func onSocket(kind, protocol int, address string, f func(int, unix.Sockaddr) error) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
}
