// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package privilege_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

// task is what a test does in a process of its own, because dropping privileges cannot be
// undone.
type task struct {
	Needs           privilege.Needs
	WithoutLandlock bool
	Attempts        []attempt // made after the drop
}

// attempt is one operation on a path.
type attempt struct {
	Do, Path string
}

// result is the outcome of a task.
type result struct {
	Held   privilege.Held
	Errors []string // of the attempts; "" for success
	Sets   []string // distinct capability lines in the status of all threads
	Log    string
}

const (
	taskVariable = "XDP_AUDIT_TEST_DROP"
	device       = "lo"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(taskVariable); text != "" {
		if err := perform(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// perform drops privileges, makes the attempts of a task and prints the result.
func perform(text string) error {
	var t task
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return err
	}
	namespace, err := netlab.NewNamespace()
	if err != nil {
		return err
	}
	if t.WithoutLandlock {
		if err := hideLandlock(); err != nil {
			return err
		}
	}
	// Threads that exist before the drop, in addition to the thread of the namespace.
	var started, ended sync.WaitGroup
	release := make(chan struct{})
	for range 4 {
		started.Add(1)
		ended.Go(func() {
			runtime.LockOSThread()
			started.Done()
			<-release
		})
	}
	started.Wait()
	var r result
	var log bytes.Buffer
	if r.Held, err = privilege.Drop(t.Needs, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		return err
	}
	if r.Sets, err = capabilitySets(); err != nil {
		return err
	}
	close(release)
	ended.Wait()
	for _, a := range t.Attempts {
		r.Errors = append(r.Errors, "")
		if err := a.make(namespace); err != nil {
			r.Errors[len(r.Errors)-1] = err.Error()
		}
	}
	r.Log = log.String()
	return json.NewEncoder(os.Stdout).Encode(r)
}

func (a attempt) make(namespace *netlab.Namespace) error {
	switch a.Do {
	case "attach":
		return namespace.Do(func() error {
			config := bpf.DefaultConfig()
			config.Devices, config.Mode = []string{a.Path}, bpf.ModeGeneric
			audit, err := bpf.Open(config, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			return audit.Close()
		})
	case "read":
		_, err := os.ReadFile(a.Path)
		return err
	case "append":
		file, err := os.OpenFile(a.Path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		_, err = file.WriteString("appended\n")
		return errors.Join(err, file.Close())
	case "truncate":
		return os.Truncate(a.Path, 0)
	case "remove":
		return os.Remove(a.Path)
	case "run":
		return exec.Command(a.Path).Run()
	}
	return fmt.Errorf("unknown attempt %q", a.Do)
}

// hideLandlock makes the kernel answer like a kernel without Landlock.
func hideLandlock() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_LANDLOCK_CREATE_RULESET},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("installing a filter of system calls: %w", errno)
	}
	return nil
}

func capabilitySets() (sets []string, err error) {
	statuses, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(statuses) < 6 {
		return nil, fmt.Errorf("%d threads: %w", len(statuses), err)
	}
	for _, path := range statuses {
		status, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "Cap") {
				sets = append(sets, strings.Join(strings.Fields(line), " "))
			}
		}
	}
	slices.Sort(sets)
	return slices.Compact(sets), nil
}

// run performs a task in a process of its own. setpriv(1) limits the bounding set of the
// process to bounding; an empty string keeps all capabilities.
func run(t *testing.T, task task, bounding string) result {
	t.Helper()
	text, err := json.Marshal(task)
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	command := exec.Command(os.Args[0])
	if bounding != "" {
		command = exec.Command("setpriv", "--bounding-set="+bounding, os.Args[0])
	}
	command.Env = append(os.Environ(), taskVariable+"="+string(text))
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	var r result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// needLandlock returns the version of Landlock. It skips the test without root or Landlock;
// REQUIRE_BPF=1 turns the skip into a failure.
func needLandlock(t *testing.T) (abi int) {
	t.Helper()
	reason := ""
	if os.Geteuid() != 0 {
		reason = "dropping privileges requires root"
	}
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		reason = fmt.Sprintf("the kernel has no Landlock: %v", err)
	}
	if reason != "" && os.Getenv("REQUIRE_BPF") == "1" {
		t.Fatalf("REQUIRE_BPF=1, but %s", reason)
	}
	if reason != "" {
		t.Skip(reason)
	}
	return abi
}

const (
	ok      = ""
	refused = "permission denied"
	unable  = "missing privilege: CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN: "
)

func TestDrop(t *testing.T) {
	emptied := refused
	if needLandlock(t) < 3 {
		emptied = ok
	}
	attached := ok
	if paranoid, err := os.ReadFile("/proc/sys/kernel/perf_event_paranoid"); err == nil && strings.TrimSpace(string(paranoid)) > "2" {
		attached = "kernel.perf_event_paranoid" // perf rings of this kernel require CAP_SYS_ADMIN
	}
	folder := t.TempDir()
	for path, text := range map[string]string{
		"web/web.yml": "", "web/other": "", "store/v1/tls.crt": "", "store/v1/tls.key": "", "elsewhere/file": "",
		"log/trail": "old\n", "pins/old": "", "pins/old2": "", "run/socket": "",
	} {
		path = filepath.Join(folder, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../store/v1/tls.crt", filepath.Join(folder, "web/tls.crt")); err != nil {
		t.Fatal(err)
	}
	in := func(path string) string { return filepath.Join(folder, path) }
	shared, err := os.CreateTemp("/tmp", "xdp-audit-shared-")
	if err != nil {
		t.Fatal(err)
	}
	shared.Close()
	t.Cleanup(func() { _ = os.Remove(shared.Name()) })

	none := []string{
		"CapAmb: 0000000000000000", "CapBnd: 0000000000000000", "CapEff: 0000000000000000", "CapInh: 0000000000000000", "CapPrm: 0000000000000000",
	}
	for _, test := range []struct {
		description string
		task        task
		want        []string // parts of the errors
		held, sets  []string
		log         string // part of it
		bounding    string // before
	}{
		{
			"without needs, every attempt is refused",
			task{Attempts: []attempt{
				{"attach", device}, {"read", in("web/web.yml")}, {"read", "/etc/shadow"}, {"append", in("log/trail")},
				{"append", in("log/new")}, {"remove", in("log/trail")}, {"run", "/bin/true"}, {"read", "/proc/self/limits"}, {"read", "/proc/stat"},
			}},
			[]string{unable, refused, refused, refused, refused, refused, refused, ok, ok},
			nil, none, "", "",
		},
		{
			"files to read may be replaced, and so may the targets of links",
			task{privilege.Needs{Read: []string{in("web/web.yml"), in("web/tls.crt")}}, false, []attempt{
				{"read", in("web/web.yml")}, {"read", in("web/other")}, {"read", in("web/tls.crt")}, {"read", in("store/v1/tls.key")},
				{"read", in("elsewhere/file")}, {"append", in("web/web.yml")}, {"append", in("web/new")}, {"remove", in("web/other")},
			}},
			[]string{ok, ok, ok, ok, refused, refused, refused, refused},
			nil, none, "", "",
		},
		{
			"a file to append to can be created again, but not read, truncated or removed",
			task{privilege.Needs{Append: []string{in("log/trail")}}, false, []attempt{
				{"append", in("log/trail")}, {"append", in("log/new")}, {"read", in("log/trail")}, {"truncate", in("log/trail")},
				{"remove", in("log/trail")}, {"append", in("elsewhere/new")},
			}},
			[]string{ok, ok, refused, emptied, refused, refused},
			nil, none, "", "",
		},
		{
			"files are created in a directory, and appended to, but not read, truncated or removed",
			task{privilege.Needs{Create: []string{in("log")}}, false, []attempt{
				{"append", in("log/trail")}, {"append", in("log/another")}, {"read", in("log/trail")}, {"truncate", in("log/trail")},
				{"remove", in("log/trail")}, {"append", in("elsewhere/new")},
			}},
			[]string{ok, ok, refused, emptied, refused, refused},
			nil, none, "", "",
		},
		{
			"managed directories",
			task{privilege.Needs{Manage: []string{in("pins")}}, false, []attempt{
				{"append", in("pins/new")}, {"read", in("pins/new")}, {"remove", in("pins/old")}, {"truncate", in("pins/old2")},
				{"remove", in("elsewhere/file")}, {"attach", device},
			}},
			[]string{ok, ok, ok, ok, refused, unable},
			nil, none, "", "",
		},
		{
			"files of a directory are only removed",
			task{privilege.Needs{Remove: []string{in("run")}}, false, []attempt{
				{"read", in("run/socket")}, {"append", in("run/socket")}, {"append", in("run/new")}, {"truncate", in("run/socket")},
				{"remove", in("run/socket")}, {"remove", in("elsewhere/file")},
			}},
			[]string{refused, refused, refused, emptied, ok, refused},
			nil, none, "", "",
		},
		{
			"in a shared directory only the file is granted, with a warning",
			task{privilege.Needs{Read: []string{shared.Name()}}, false, []attempt{{"read", shared.Name()}, {"read", in("web/web.yml")}}},
			[]string{ok, refused},
			nil, none, `level=WARN msg="File cannot be opened again once it is moved or replaced: keep it in a directory of its own" path=` + shared.Name(), "",
		},
		{
			"a device file is granted without its directory and without a warning",
			task{privilege.Needs{Append: []string{"/dev/null"}}, false, []attempt{{"append", "/dev/null"}, {"read", "/dev/null"}, {"append", "/dev/zero"}}},
			[]string{ok, refused, refused},
			nil, none, "", "",
		},
		{
			"attaching keeps three capabilities and confines files",
			task{privilege.Needs{Attach: true}, false, []attempt{{"attach", device}, {"read", "/etc/shadow"}, {"run", "/bin/true"}}},
			[]string{attached, refused, refused},
			[]string{"CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"},
			[]string{
				"CapAmb: 0000000000000000", "CapBnd: 000000c000001000", "CapEff: 000000c000001000", "CapInh: 0000000000000000", "CapPrm: 000000c000001000",
			},
			"capabilities_kept=CAP_NET_ADMIN,CAP_PERFMON,CAP_BPF", "",
		},
		{
			"CAP_SYS_ADMIN is kept in place of two missing capabilities, and the bounding set stays without CAP_SETPCAP",
			task{privilege.Needs{Attach: true}, false, []attempt{{"attach", device}, {"read", "/etc/shadow"}}},
			[]string{ok, refused},
			[]string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN"},
			[]string{
				"CapAmb: 0000000000000000", "CapBnd: 0000000000201000", "CapEff: 0000000000201000", "CapInh: 0000000000000000", "CapPrm: 0000000000201000",
			},
			"capabilities_kept=CAP_NET_ADMIN,CAP_SYS_ADMIN", "-all,+net_admin,+sys_admin",
		},
		{
			"a kernel without Landlock causes one log line",
			task{privilege.Needs{Read: []string{in("web/web.yml")}}, true, []attempt{{"read", in("elsewhere/file")}, {"attach", device}}},
			[]string{ok, unable},
			nil, none, `level=WARN msg="Files and network are not confined: the kernel has no Landlock, or it is disabled" err="function not implemented"`, "",
		},
	} {
		t.Run(test.description, func(t *testing.T) {
			got := run(t, test.task, test.bounding)
			for i, a := range test.task.Attempts {
				if isOK := got.Errors[i] == ok; isOK != (test.want[i] == ok) || !strings.Contains(got.Errors[i], test.want[i]) {
					t.Errorf("to %s %s: got %q, want %q", a.Do, a.Path, got.Errors[i], test.want[i])
				}
			}
			if !slices.Equal(got.Held.Capabilities, test.held) || !got.Held.NoNewPrivileges || (got.Held.LandlockABI == 0) != test.task.WithoutLandlock {
				t.Errorf("held are %+v, want %q", got.Held, test.held)
			}
			if !slices.Equal(got.Sets, test.sets) {
				t.Errorf("the threads have %q, want %q", got.Sets, test.sets)
			}
			if !strings.Contains(got.Log, test.log) {
				t.Errorf("the log does not contain %s: %s", test.log, got.Log)
			}
			if warns, want := strings.Count(got.Log, "level=WARN"), strings.Count(test.log, "level=WARN"); warns != want {
				t.Errorf("%d warnings in the log, want %d: %s", warns, want, got.Log)
			}
		})
	}
}

func TestIsShared(t *testing.T) {
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	for name, mode := range map[string]fs.FileMode{"own": 0o755, "open": fs.ModeSticky | 0o777, "sticky": fs.ModeSticky | 0o755} {
		if err := os.Mkdir(in(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(in(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"run": "/run", "home": "/home", "log": "/var/log", "to-own": in("own"), "to-link": in("run")} {
		if err := os.Symlink(target, in(name)); err != nil {
			t.Fatal(err)
		}
	}
	for directory, want := range map[string]bool{
		"/": true, "/etc": true, "/tmp": true, "/run": true, "/home/user": true, "/root": true,
		"/var/log": true, "/var/lib": true, "/var/tmp": true, "/var/run": true, "/dev/shm": true, "/usr/lib": true, "/usr/local/etc": true,
		"/etc/xdp_audit": false, "/run/xdp_audit": false, "/var/log/xdp_audit": false, "/home/user/xdp_audit": false,
		"/usr/local/etc/xdp_audit": false, "/absent/directory": false,
		in("own"): false, in("to-own"): false, in("sticky"): false,
		in("open"): true, in("run"): true, in("to-link"): true, in("log"): true, in("home"): true,
	} {
		if got := privilege.IsShared(directory); got != want {
			t.Errorf("%s is shared: %t, want %t", directory, got, want)
		}
	}
}
