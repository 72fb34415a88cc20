// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package privilege gives up what a process no longer needs once it is set up: capabilities, the gain of new ones, and by
// Landlock the access to files, to TCP and to other processes.
//
// It acts on the process as a whole, for good, and on all threads.
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

// Needs is what a process still has to do after [Drop]. The zero value needs no file and no capability.
type Needs struct {
	// Attach says that programs will be loaded and attached: it keeps CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or
	// CAP_SYS_ADMIN where that stands for the first two, and lets /sys be read.
	Attach bool

	// Read are files that are read again, and Append are files that are appended to after they were moved away. Either
	// may be replaced, so that what is granted is the directory, unless that is shared by a whole system.
	Read, Append []string

	// Manage are directories in which files are made, read, written and removed.
	Manage []string
}

// Held is what a process can still do.
type Held struct {
	Capabilities    []string // permitted in any thread, such as CAP_BPF, in the order of their numbers
	NoNewPrivileges bool     // in every thread
	LandlockABI     int      // version of Landlock that confines the process; 0 if none does
}

// Drop gives up everything that is not in needs. The bounding set is emptied as well where that is allowed, which takes
// CAP_SETPCAP. A kernel without Landlock costs a line in the log; whatever else fails is an error, after which the process
// may hold less than before.
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
		return Held{}, fmt.Errorf("dropping capabilities: a thread holds %v, want %v, and new ones can be gained: %t",
			held.Capabilities, names(kept), !held.NoNewPrivileges)
	}
	if held.LandlockABI, err = confine(needs, logger); err != nil {
		return Held{}, fmt.Errorf("confining file access: %w", err)
	}
	logger.Info("Privileges dropped", "capabilities_kept", strings.Join(held.Capabilities, ","), "landlock_abi", held.LandlockABI)
	return held, nil
}

// names returns the names of capabilities as the kernel's documentation has them.
func names(values []cap.Value) []string {
	var names []string
	for _, v := range values {
		names = append(names, strings.ToUpper(v.String()))
	}
	return names
}

// dropCapabilities leaves in all threads those capabilities that needs ask for, and returns them in the order of their
// numbers. Nothing that is executed can gain others.
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

// Current returns what the process holds by the kernel's word, read from every thread. It cannot tell whether Landlock
// confines it.
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
			continue // it has ended
		}
		if err != nil {
			return Held{}, fmt.Errorf("reading what a thread holds: %w", err)
		}
		mask, noNew, err := parseStatus(string(status))
		if err != nil {
			return Held{}, fmt.Errorf("reading what a thread holds: %w", err)
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

// parseStatus reads the permitted capabilities and whether no new ones can be gained from the status of a thread, see
// proc_pid_status(5).
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
