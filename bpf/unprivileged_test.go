// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// Only some kernels refuse rings to CAP_PERFMON, so that the refusal cannot be provoked
// everywhere. The test uses the text of its error.
func TestRefusedRingsNameTheRemedy(t *testing.T) {
	err := explainRings(errors.New("failed to create perf ring for CPU 0: can't create perf event: permission denied"))
	want := "opening the rings of audit_events: set kernel.perf_event_paranoid to 2 or less, or grant CAP_SYS_ADMIN, or use --audit.event-rate=0: " +
		"failed to create perf ring for CPU 0: can't create perf event: permission denied"
	if err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	err = explainRings(unix.ENOMEM)
	if want := "opening the rings of audit_events: cannot allocate memory"; err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// secretLink is a link as on a kernel before 5.19: without privilege, its information cannot be
// read.
type secretLink struct{ link.Link }

func (secretLink) Info() (*link.Info, error) { return nil, unix.EPERM }

// The state of the hook is then read from the device: up, down after detaching, and down while
// another program is attached.
func TestHookStateWithoutPrivilege(t *testing.T) {
	needBPF(t)
	namespace, err := netlab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer namespace.Close()
	err = namespace.Do(func() error {
		config := DefaultConfig()
		config.Devices, config.Mode = []string{"lo"}, ModeGeneric
		audit, err := Open(config, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer audit.Close()
		d := audit.devices.listed[0]
		attached, ok := d.link.(kernelLink)
		if !ok {
			return fmt.Errorf("the hook is a %T", d.link)
		}
		d.link = kernelLink{secretLink(attached)}
		if !audit.Hooks()[0].Up {
			t.Error("the hook is up, but reported as down")
		}
		d.id++
		if audit.Hooks()[0].Up {
			t.Error("another program is reported as the hook")
		}
		d.id--
		if err := attached.Close(); err != nil {
			return err
		}
		if audit.Hooks()[0].Up {
			t.Error("the hook is detached, but reported as up")
		}
		d.link = nil
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
