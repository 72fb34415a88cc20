// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// insideVariable marks the process that runs the demo.
	insideVariable = "DEMO_INSIDE"

	// folder is where the process that runs the demo has its files. It exists on every Linux.
	folder = "/dev/shm"
)

// runInside runs this program again, in a mount namespace with a file system in memory of its own,
// and returns its exit code. The kernel removes both with the last process of the demo, however the
// demo ends.
func runInside() (code int, err error) {
	runtime.LockOSThread()                                // Pdeathsig is sent when this thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:gosec // this program
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// In a process group of its own it gets Ctrl-C from here alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("creating a mount namespace: %w", err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var failed *exec.ExitError
	if errors.As(err, &failed) && failed.Exited() {
		return failed.ExitCode(), nil // it has said why
	}
	return 0, err
}

// makePrivate gives the process the file system in memory.
func makePrivate() error {
	if err := unix.Mount("demo", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
		return fmt.Errorf("mounting a file system in memory on %s: %w", folder, err)
	}
	return nil
}
