// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package privilege drops what a process no longer needs once it is set up: capabilities, the
// possibility to gain new ones, with Landlock the access to files, TCP and other processes, and
// with seccomp the use of open BPF programs.
//
// The changes apply to all threads of the process and cannot be undone.
package privilege

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Needs describes what a process still does after [Drop]. The zero value needs no file and no
// capability.
type Needs struct {
	// Attach keeps the capabilities to load and attach BPF programs: CAP_BPF, CAP_PERFMON and
	// CAP_NET_ADMIN, or CAP_SYS_ADMIN if the process lacks one of the first two. It also keeps
	// read access to /sys.
	Attach bool

	// Read lists files that are read again. Append lists files that are opened again for appending
	// after they were moved away. Either may be replaced: Drop therefore grants their directory,
	// unless the whole system shares it (see [IsShared]).
	Read, Append []string

	// Create lists directories in which files are created and opened for appending.
	Create []string

	// Manage lists directories in which files are created, read, written and removed.
	Manage []string

	// Remove lists directories of which files are removed.
	Remove []string
}

// Held describes what a process can still do.
type Held struct {
	Capabilities    []string // permitted in any thread, such as CAP_BPF, in numeric order
	NoNewPrivileges bool     // in every thread
	LandlockABI     int      // version of Landlock that confines the process; 0 for none
}

// Drop gives up everything that needs does not list. It also empties the bounding set if the
// process has CAP_SETPCAP. A kernel without Landlock causes one log line. Every other failure
// is an error, after which the process may hold less than before. [RefusePrograms] gives up more.
func Drop(needs Needs, logger *slog.Logger) (Held, error) {
	kept, err := dropCapabilities(needs)
	if err != nil {
		return Held{}, fmt.Errorf("dropping capabilities: %w", err)
	}
	held, err := Current()
	if err != nil {
		return Held{}, err
	}
	if !slices.Equal(held.Capabilities, names(kept)) || !held.NoNewPrivileges {
		return Held{}, fmt.Errorf("dropping capabilities: a thread holds %v, want %v; new ones can be gained: %t",
			held.Capabilities, names(kept), !held.NoNewPrivileges)
	}
	if held.LandlockABI, err = confine(needs, logger); err != nil {
		return Held{}, fmt.Errorf("confining file access: %w", err)
	}
	logger.Info("Privileges dropped", "capabilities_kept", strings.Join(held.Capabilities, ","), "landlock_abi", held.LandlockABI)
	return held, nil
}

// names returns the names of capabilities as in capabilities(7).
func names(values []cap.Value) []string {
	var names []string
	for _, v := range values {
		names = append(names, strings.ToUpper(v.String()))
	}
	return names
}

// dropCapabilities keeps the capabilities that needs requires in all threads and returns them
// in numeric order. No program that the process executes can gain others.
func dropCapabilities(needs Needs) ([]cap.Value, error) {
	has := func(v cap.Value) bool {
		isPermitted, err := cap.GetProc().GetFlag(cap.Permitted, v)
		return err == nil && isPermitted
	}
	var kept []cap.Value
	if needs.Attach {
		toLoad := []cap.Value{cap.PERFMON, cap.BPF}
		if !has(cap.PERFMON) || !has(cap.BPF) {
			toLoad = []cap.Value{cap.SYS_ADMIN}
		}
		kept = slices.DeleteFunc(append([]cap.Value{cap.NET_ADMIN}, toLoad...), func(v cap.Value) bool { return !has(v) })
	}
	if has(cap.SETPCAP) {
		if err := dropBounding(kept); err != nil {
			return nil, err
		}
	}
	if err := cap.ResetAmbient(); err != nil {
		return nil, fmt.Errorf("ambient set: %w", err)
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("no new privileges: %w", err)
	}
	set := cap.NewSet()
	for _, flag := range []cap.Flag{cap.Permitted, cap.Effective} {
		if err := set.SetFlag(flag, true, kept...); err != nil {
			return nil, err
		}
	}
	return kept, set.SetProc()
}

// dropBounding drops all but the kept capabilities from the bounding set.
func dropBounding(kept []cap.Value) error {
	for v := range cap.MaxBits() {
		if isBound, err := cap.GetBound(v); err != nil || !isBound || slices.Contains(kept, v) {
			continue
		}
		if err := cap.DropBound(v); err != nil {
			return fmt.Errorf("bounding set, %s: %w", v, err)
		}
	}
	return nil
}

// Current returns what the process holds according to the kernel, read from every thread.
// LandlockABI is always 0, because the kernel does not report it.
func Current() (Held, error) {
	const tasks = "/proc/self/task"
	threads, err := os.ReadDir(tasks)
	if err != nil {
		return Held{}, fmt.Errorf("listing the threads: %w", err)
	}
	var permitted uint64
	held := Held{NoNewPrivileges: true}
	for _, thread := range threads {
		status, err := os.ReadFile(filepath.Join(tasks, thread.Name(), "status"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return Held{}, fmt.Errorf("reading the status of a thread: %w", err)
		}
		mask, noNew, err := parseStatus(string(status))
		if err != nil {
			return Held{}, fmt.Errorf("reading the status of a thread: %w", err)
		}
		permitted |= mask
		held.NoNewPrivileges = held.NoNewPrivileges && noNew
	}
	var values []cap.Value
	for bit := range cap.Value(64) {
		if permitted&(1<<bit) != 0 {
			values = append(values, bit)
		}
	}
	held.Capabilities = names(values)
	return held, nil
}

// parseStatus reads the permitted capabilities, and whether new ones are ruled out, from the
// status of a thread, see proc_pid_status(5).
func parseStatus(status string) (permitted uint64, noNew bool, err error) {
	fields := map[string]string{}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	if permitted, err = strconv.ParseUint(fields["CapPrm"], 16, 64); err != nil {
		return 0, false, fmt.Errorf("permitted capabilities %q: %w", fields["CapPrm"], err)
	}
	return permitted, fields["NoNewPrivs"] == "1", nil
}
