// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// Only some kernels refuse rings to CAP_PERFMON, so that the refusal itself cannot be had everywhere. This is its text.
func TestRefusedRingsNameTheRemedy(t *testing.T) {
	err := explainRings(errors.New("failed to create perf ring for CPU 0: can't create perf event: permission denied"))
	want := "opening the rings of audit_events: set kernel.perf_event_paranoid to 2 or less, or grant CAP_SYS_ADMIN: " +
		"failed to create perf ring for CPU 0: can't create perf event: permission denied"
	if err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	err = explainRings(unix.ENOMEM)
	if want := "opening the rings of audit_events: cannot allocate memory"; err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// secretLink is a link of a kernel before 5.19, which tells nothing of it without privilege.
type secretLink struct{ link.Link }

func (secretLink) Info() (*link.Info, error) { return nil, unix.EPERM }

// Whether the hook is up is then known from the device: yes, no longer, and no while another program is on it.
func TestHookIsKnownWithoutPrivilege(t *testing.T) {
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
		d := audit.devices[0]
		attached := d.link
		d.link = secretLink{attached}
		if !audit.Hooks()[0].Up {
			t.Error("the hook is said to be down")
		}
		d.id++
		if audit.Hooks()[0].Up {
			t.Error("the program of another is taken for the hook")
		}
		d.id--
		if err := attached.Close(); err != nil {
			return err
		}
		if audit.Hooks()[0].Up {
			t.Error("the hook is said to be up although it was detached")
		}
		d.link = nil
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
