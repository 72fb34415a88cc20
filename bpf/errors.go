// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// requiredCapabilities are the capabilities needed to load and attach the program.
// CAP_SYS_ADMIN includes the first two.
var requiredCapabilities = []struct {
	bit  uint
	name string
}{{unix.CAP_BPF, "CAP_BPF"}, {unix.CAP_PERFMON, "CAP_PERFMON"}, {unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}}

const privilegeRemedy = "run as root, or grant CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"

// checkCapabilities returns an error that names the capabilities that this process lacks.
func checkCapabilities() error {
	if missing := missingCapabilities(effectiveCapabilities()); len(missing) > 0 {
		return fmt.Errorf("missing privilege: %s: %s", strings.Join(missing, ", "), privilegeRemedy)
	}
	return nil
}

// effectiveCapabilities returns the capabilities of this thread as bits, and all bits if they are
// not known: then the error of the refused system call has to do.
func effectiveCapabilities() uint64 {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var words [2]unix.CapUserData
	if unix.Capget(&header, &words[0]) != nil {
		return math.MaxUint64
	}
	return uint64(words[1].Effective)<<32 | uint64(words[0].Effective)
}

func missingCapabilities(effective uint64) []string {
	var missing []string
	for _, c := range requiredCapabilities {
		covered := effective&(1<<c.bit) != 0 || c.bit != unix.CAP_NET_ADMIN && effective&(1<<unix.CAP_SYS_ADMIN) != 0
		if !covered {
			missing = append(missing, c.name)
		}
	}
	return missing
}

// absentError is the error of a device that is not there. It is logged at that level while the
// device is waited for.
type absentError struct {
	error
	level slog.Level
}

// Unwrap implements errors.Unwrap.
func (e *absentError) Unwrap() error { return e.error }

// explainRefusal returns an error that says why a device refused a program, and the remedy. It does
// not ask the device again for a program that is nil.
func explainRefusal(d *device, p *loadedProgram, mode Mode, err error, pinPath string) error {
	if cause := causeOfFiles(err); cause != "" {
		return fmt.Errorf("attaching to device %s: %s: %w", d.name, cause, err)
	}
	if !netdev.Exists(d.ifindex) {
		return &absentError{fmt.Errorf("device %s vanished while it was being attached: use --audit.follow to attach it when it is back: %w",
			d.name, err), slog.LevelWarn}
	}
	driver := d.driver
	if driver == "" {
		driver = "unknown"
	}
	// Both errors have other causes, too: a program on an upper device, or a driver that is busy.
	isBusy := errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST)
	var holds uint32
	if isBusy {
		holds = netdev.ProgramID(d.ifindex)
	}
	isTaken := holds != 0
	words := wordsOf(err)
	if !isTaken && p != nil && mode != ModeHW {
		words = netdev.RefusalReason(p.FD(), d.ifindex, attachedModes[mode])
	}
	switch {
	case isTaken:
		return fmt.Errorf("%s: %w", findHolder(holds, d.ifindex, pinPath).explain(d.name), err)
	case mode == ModeHW:
		return fmt.Errorf("device %s (driver %s) cannot run XDP programs in hardware: use mode drv or skb: the kernel refused to load the program for it: %w",
			d.name, driver, rootCause(err))
	case mode == ModeDriver && words == noNative:
		return fmt.Errorf("device %s (driver %s) has no native XDP: use --audit.mode=skb: %w: %s", d.name, driver, rootCause(err), words)
	case errors.Is(err, unix.EEXIST):
		return &refusal{fmt.Errorf("%sattaching to device %s in mode %s: attach to it before its upper devices (bridge, bond, VLAN), or detach their programs: %w",
			leading(words), d.name, mode, rootCause(err)), true}
	case mode == ModeDriver && words != "":
		return &refusal{fmt.Errorf("%s: device %s (driver %s) refuses native XDP: remove this cause, or use --audit.mode=skb: %w",
			words, d.name, driver, rootCause(err)), namesCure(words)}
	case mode == ModeDriver && !isBusy:
		return fmt.Errorf("device %s (driver %s) refuses native XDP and does not say why: look for a message in dmesg, check its MTU and queues, or use --audit.mode=skb: %w",
			d.name, driver, rootCause(err))
	}
	return fmt.Errorf("%sattaching to device %s in mode %s: %w", leading(words), d.name, mode, err)
}

// leading returns words as the beginning of an error.
func leading(words string) string {
	if words == "" {
		return ""
	}
	return words + ": "
}

// noNative is the kernel's answer for a driver that runs no programs.
const noNative = "Underlying driver does not support XDP in native mode"

// namesCure reports whether the words of a driver say what keeps it from running a program, so that
// it may be changed: offloads, an MTU, queues, or the program of a port. Words that say that a
// device, or the port of a bond, does not support XDP name nothing of the kind.
func namesCure(words string) bool {
	return words != "" && !strings.Contains(words, "does not support XDP")
}

// refusal is the error of a device that refused a program, and said why.
type refusal struct {
	error
	namesCure bool
}

// Unwrap returns the error.
func (r *refusal) Unwrap() error { return r.error }

// saidError is an error number with the words that explain it.
type saidError struct {
	unix.Errno
	words string
}

// Error implements error.
func (e *saidError) Error() string { return e.Errno.Error() + ": " + e.words }

// Unwrap returns the error number.
func (e *saidError) Unwrap() error { return e.Errno }

func wordsOf(err error) string {
	var said *saidError
	if errors.As(err, &said) {
		return said.words
	}
	return ""
}

// explainLoad returns an error that says why the kernel refused the program. Of the verifier's
// log it has the last line only.
func explainLoad(err error) error {
	if cause := causeOfFiles(err); cause != "" { // also after the verifier has accepted the program
		return fmt.Errorf("the kernel refused to load the program: %s: %w", cause, rootCause(err))
	}
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) {
		return fmt.Errorf("the kernel's verifier refused the program: %w", err)
	}
	if cause := causeOfBPF(err); cause != "" {
		return fmt.Errorf("the kernel refused to load the program: %s: %w", cause, withoutAdvice(err))
	}
	return fmt.Errorf("loading the program: %w", err)
}

// explainMap returns an error that says why the kernel refused a map, and the remedy.
func explainMap(name string, entries int, err error) error {
	if errors.Is(err, unix.ENOMEM) {
		remedy := "use fewer flows (--audit.flows)"
		if strings.HasPrefix(name, "exchange_") {
			remedy = "measure the response times of fewer connections (--leak.connections)"
		}
		if name == programMapAuditCounters {
			remedy = "audit fewer devices (--audit.max-devices)"
		}
		return fmt.Errorf("no memory for the map %s of %d entries: %s: %w", name, entries, remedy, err)
	}
	if cause := causeOfBPF(err); cause != "" {
		return fmt.Errorf("the kernel refused to create the map %s: %s: %w", name, cause, withoutAdvice(err))
	}
	return fmt.Errorf("creating the map %s: %w", name, err)
}

// explainRings returns an error that says why the kernel refused the rings of the events, and
// the remedy.
func explainRings(err error) error {
	if cause := causeOfRings(err); cause != "" {
		return fmt.Errorf("opening the rings of %s: %s: %w", programMapAuditEvents, cause, err)
	}
	return fmt.Errorf("opening the rings of %s: %w", programMapAuditEvents, err)
}

// joinInOneLine joins the errors of several devices by semicolons.
func joinInOneLine(errs []error) error {
	joined := errs[0]
	for _, err := range errs[1:] {
		joined = fmt.Errorf("%w; %w", joined, err)
	}
	return joined
}

// rootCause returns the error number that the kernel returned.
func rootCause(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
