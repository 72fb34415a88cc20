// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// hostFindings returns the facts of the machine, in the order of the table.
func (c *checker) hostFindings() []Finding {
	refusal := checkBPF()
	findings := []Finding{
		kernelFinding(refusal != nil), btfFinding(), capabilitiesFinding(), namespaceFinding(), seccompFinding(), bpfFinding(refusal), c.ringsFinding(),
		lockdownFinding(), jitFinding(), clockFinding(), c.memoryFinding(), memlockFinding(), c.filesFinding(),
	}
	if c.config.PinPath != "" {
		findings = append(findings, c.pinsFinding())
	}
	return findings
}

// readWord returns the content of a file of the kernel, empty if it cannot be read.
func readWord(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// kernelFinding says whether the kernel is new enough, unless bpf(2) is refused for another reason.
func kernelFinding(isRefused bool) Finding {
	release := kernelRelease()
	f := Finding{Name: "kernel", State: FindingOK, Value: release + " " + runtime.GOARCH, Meaning: "it has the instructions that the program needs"}
	err := probeCompareAndSwap()
	switch {
	case err == nil:
	case isRefused || explainProbe(err, release) == nil:
		f.State, f.Meaning = FindingUnknown, "the program needs Linux 5.12 or later, on arm64 5.18 or later"
	default:
		f.State, f.Meaning = FindingFailure, explainProbe(err, release).Error()
	}
	return f
}

func btfFinding() Finding {
	f := Finding{Name: "btf", State: FindingOK, Value: "/sys/kernel/btf/vmlinux", Meaning: "the exporter does not need it"}
	if _, err := os.Stat(f.Value); err != nil {
		f.Value = "none"
	}
	return f
}

func capabilitiesFinding() Finding {
	f := Finding{Name: "capabilities", State: FindingOK, Value: "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN", Meaning: "the program can be loaded and attached"}
	if readWord("/proc/self/status") == "" {
		f.State, f.Value, f.Meaning = FindingUnknown, "not known", "the program needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
	} else if err := checkCapabilities(); err != nil {
		f.State, f.Value, f.Meaning = FindingFailure, fmt.Sprint("user ", os.Geteuid()), err.Error()
	}
	return f
}

// initialUserNamespace is its inode number, PROC_USER_INIT_INO of linux/proc_ns.h.
const initialUserNamespace = 0xEFFFFFFD

func namespaceFinding() Finding {
	f := Finding{Name: "user namespace", State: FindingOK, Value: "initial", Meaning: "capabilities have their full meaning"}
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		f.State, f.Value, f.Meaning = FindingUnknown, "not known", "bpf(2) needs capabilities of the initial one"
	} else if isInUserNamespace() {
		f.State, f.Value, f.Meaning = FindingFailure, "another", "bpf(2) needs capabilities of the initial user namespace"
		f.Remedy = "start the exporter outside of the user namespace"
	}
	return f
}

func seccompFinding() Finding {
	if hasSeccompFilter() {
		return Finding{Name: "seccomp", State: FindingOK, Value: "a filter is in force", Meaning: "it must allow bpf(2) and perf_event_open(2)"}
	}
	return Finding{Name: "seccomp", State: FindingOK, Value: "off", Meaning: "no filter of system calls is in the way"}
}

// bpfFinding is about the error of checkBPF.
func bpfFinding(err error) Finding {
	if err != nil {
		return Finding{Name: "bpf", State: FindingFailure, Value: rootCause(err).Error(), Meaning: err.Error()}
	}
	return Finding{Name: "bpf", State: FindingOK, Value: "allowed", Meaning: "the kernel creates maps for this process"}
}

// ringsFinding opens a perf event on each CPU, as the rings do.
func (c *checker) ringsFinding() Finding {
	f := Finding{Name: "perf rings", State: FindingOK, Meaning: "events of flagged packets can be read"}
	if paranoid := readWord("/proc/sys/kernel/perf_event_paranoid"); paranoid != "" {
		f.Value = "perf_event_paranoid=" + paranoid
	} else {
		f.Value = "perf_event_paranoid is not known"
	}
	if c.config.EventRate == 0 {
		f.Meaning = "no ring is needed, because --audit.event-rate is 0"
		return f
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		f.State, f.Meaning = FindingFailure, explainCPUs(err).Error()
		return f
	}
	online, err := onlineCPUs(cpus)
	if err != nil {
		f.State, f.Meaning = FindingFailure, err.Error()
		return f
	}
	f.Value += fmt.Sprintf(", %d of %d CPUs online", len(online), cpus)
	return f
}

func lockdownFinding() Finding {
	f := Finding{Name: "lockdown", State: FindingOK, Value: "none", Meaning: "the audit reads no memory of the kernel, so lockdown does not stop it"}
	text := readWord("/sys/kernel/security/lockdown")
	if _, rest, found := strings.Cut(text, "["); found {
		f.Value, _, _ = strings.Cut(rest, "]")
	}
	return f
}

func jitFinding() Finding {
	f := Finding{Name: "jit", State: FindingOK, Value: "on", Meaning: "programs run as machine code"}
	switch readWord("/proc/sys/net/core/bpf_jit_enable") {
	case "":
		f.State, f.Value, f.Meaning = FindingUnknown, "not known", "without it a packet takes several times as long"
	case "0":
		f.State, f.Value, f.Meaning = FindingWarning, "off", "programs are interpreted: a packet takes several times as long"
		f.Remedy = "sysctl net.core.bpf_jit_enable=1"
	}
	return f
}

// slowClocks are clock sources that take about a microsecond to read.
var slowClocks = map[string]bool{"hpet": true, "acpi_pm": true, "jiffies": true, "refined-jiffies": true, "xen": false}

func clockFinding() Finding {
	const path = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
	f := Finding{Name: "clock source", State: FindingOK, Value: readWord(path), Meaning: "packet times are precise"}
	switch {
	case f.Value == "":
		f.State, f.Value, f.Meaning = FindingUnknown, "not known", "hpet and acpi_pm are slow and coarse"
	case slowClocks[f.Value]:
		f.State, f.Meaning = FindingWarning, "reading it takes about a microsecond of each packet, or it is coarse"
		f.Remedy = "boot with clocksource=tsc if the machine has a stable one"
	}
	return f
}

// memoryFinding compares what the audit needs with what is there.
func (c *checker) memoryFinding() Finding {
	f := Finding{Name: "memory", State: FindingOK, Meaning: "maps and rings fit"}
	needed := c.neededBytes()
	available, of := availableBytes()
	f.Value = fmt.Sprintf("%d MiB needed", needed>>20+1)
	switch {
	case needed == 0:
		f.State, f.Value, f.Meaning = FindingUnknown, "not known", "it depends on the number of CPUs"
		return f
	case available == 0:
		f.State, f.Meaning = FindingUnknown, "the available memory is not known"
		return f
	case needed > available:
		f.State, f.Meaning = FindingWarning, "the kernel may refuse maps or end the exporter"
		f.Remedy = "use fewer --audit.flows or --audit.max-devices, or raise the limit of memory"
	}
	f.Value += fmt.Sprintf(", %d MiB available%s", available>>20, of)
	return f
}

// slotBytes is the size of a slot in all maps of the flow table.
const slotBytes = unsafe.Sizeof(programFlowSet{})/flowWays + unsafe.Sizeof(programFlowKey{}) + unsafe.Sizeof(programSetRecords{})/flowWays

// neededBytes returns the memory of maps and rings.
func (c *checker) neededBytes() uint64 {
	cpus, err := ebpf.PossibleCPU()
	if err != nil || c.config.Flows > MaxFlows || c.config.MaxDevices > maxDevices {
		return 0
	}
	needed := uint64(c.config.Slots()) * uint64(slotBytes)
	needed += uint64(c.config.deviceCapacity()*cpus) * uint64(unsafe.Sizeof(programDeviceCounters{}))
	needed += uint64(c.config.Watches) * uint64(unsafe.Sizeof(programWatch{}))
	if c.config.EventRate > 0 {
		needed += uint64(cpus) * ringBytes
	}
	return needed
}

// availableBytes returns the memory that the process may still take, 0 if that is not known, and
// what limits it.
func availableBytes() (bytes uint64, of string) {
	for line := range strings.Lines(readWord("/proc/meminfo")) {
		if rest, found := strings.CutPrefix(line, "MemAvailable:"); found {
			kB, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			bytes = kB << 10
		}
	}
	for line := range strings.Lines(readWord("/proc/self/cgroup")) {
		path, isUnified := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !isUnified {
			continue
		}
		for ; ; path = filepath.Dir(path) {
			folder := filepath.Join("/sys/fs/cgroup", path)
			limit, err := strconv.ParseUint(readWord(filepath.Join(folder, "memory.max")), 10, 64)
			used, _ := strconv.ParseUint(readWord(filepath.Join(folder, "memory.current")), 10, 64)
			if err == nil && (bytes == 0 || limit-min(used, limit) < bytes) {
				bytes, of = limit-min(used, limit), " in the cgroup"
			}
			if path == "/" || path == "." {
				break
			}
		}
	}
	return bytes, of
}

// memlockFinding reports the limit of locked memory, which kernels before 5.11 apply to maps.
func memlockFinding() Finding {
	f := Finding{Name: "memlock", State: FindingOK, Value: "unlimited", Meaning: "kernels from Linux 5.11 on do not count maps as locked memory"}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		f.State, f.Value = FindingUnknown, "not known: "+err.Error()
		return f
	}
	if limit.Cur != unix.RLIM_INFINITY {
		f.Value = fmt.Sprintf("%d KiB", limit.Cur>>10)
	}
	return f
}

// filesFinding compares the limit of open files with what the audit opens.
func (c *checker) filesFinding() Finding {
	f := Finding{Name: "open files", State: FindingOK, Meaning: "enough for maps, rings, hooks and scrapes"}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		f.State, f.Value, f.Meaning = FindingUnknown, "not known: "+err.Error(), "the audit needs some hundred"
		return f
	}
	cpus, _ := ebpf.PossibleCPU()
	const others = 64 // maps, the listener and the runtime
	needed := uint64(others + cpus + 3*min(c.config.deviceCapacity(), maxDevices))
	f.Value = fmt.Sprint(limit.Cur)
	if limit.Cur < needed {
		f.State, f.Meaning = FindingWarning, fmt.Sprintf("maps, rings and hooks may need %d", needed)
		f.Remedy = "raise the limit with ulimit -n, or LimitNOFILE of the systemd unit"
	}
	return f
}

func (c *checker) pinsFinding() Finding {
	f := Finding{Name: "pins", State: FindingOK, Value: c.config.PinPath, Meaning: "hooks and maps outlive the exporter"}
	p, err := inspectPins(c.config.PinPath)
	if err != nil {
		f.State, f.Meaning = FindingFailure, err.Error()
		return f
	}
	if hooks, err := p.names(linkPinPrefix); err == nil && len(hooks) > 0 {
		f.Meaning = fmt.Sprintf("%d hooks are pinned; a start takes them over", len(hooks))
	}
	if err := p.close(); err != nil {
		f.State, f.Meaning = FindingWarning, err.Error()
	}
	return f
}
