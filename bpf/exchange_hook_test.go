// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/exchange"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

func TestProgramOfOutgoingPacketsIsBelowTheLimitOfTheVerifier(t *testing.T) {
	audit := loadExchanges(t, nil)
	info, err := audit.devices.listed[0].program.egress.Info()
	if err != nil {
		t.Fatal(err)
	}
	instructions, ok := info.VerifiedInstructions()
	if t.Logf("%d verified instructions", instructions); !ok || instructions >= 200_000 {
		t.Errorf("verified instructions: got %d, want 1 to 199,999", instructions)
	}
}

// exchangeOnLoopback sends a request to a server in the namespace of this thread and reads the
// response. Both are of one byte.
func exchangeOnLoopback(listener net.Listener) error {
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		return err
	}
	defer server.Close()
	one := []byte{0}
	for _, step := range []func([]byte) (int, error){client.Write, server.Read, server.Write, client.Read} {
		if _, err := step(one); err != nil {
			return err
		}
	}
	return nil
}

// A pinned hook of a process that measures no response times gets the program that does, and the
// other way round. The hook of outgoing packets ends with the process.
func TestPinnedHooksAndResponseTimes(t *testing.T) {
	needBPF(t)
	namespace, err := netlab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(namespace.Close)
	root := t.TempDir()
	config := DefaultConfig()
	config.Devices, config.Mode, config.PinPath = []string{"lo"}, ModeGeneric, filepath.Join(root, "pins")
	err = namespace.Do(func() error {
		if err := mountBPF(root); err != nil {
			return err
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer listener.Close()
		for i, connections := range []uint32{0, 64, 64, 0} {
			config.ExchangeConnections = connections
			audit, err := Open(config, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			if !audit.Hooks()[0].Up {
				t.Errorf("start %d: the hook is not up: %s", i, audit.Hooks()[0].Reason)
			}
			a := Assessment{
				Name: "lo", Protocol: ProtocolTCP, Port: netip.MustParseAddrPort(listener.Addr().String()).Port(),
				Classes: [2]ClassMatch{{DSCP: ptr[uint8](0)}, {DSCP: ptr[uint8](1)}},
			}
			if err := audit.SetAssessments([]Assessment{a}); (err != nil) != (connections == 0) {
				t.Errorf("start %d: %v", i, err)
			}
			if err := exchangeOnLoopback(listener); err != nil {
				return err
			}
			counts, _ := audit.ExchangeCounts()
			if connections > 0 && counts[0].Responses[0] != 1 || connections == 0 && counts != nil {
				t.Errorf("start %d: counted %+v", i, counts)
			}
			if n := outgoingPrograms(t); n != int(min(connections, 1)) {
				t.Errorf("start %d: %d programs of outgoing packets", i, n)
			}
			if err := audit.Close(); err != nil {
				return err
			}
			if n := outgoingPrograms(t); n != 0 {
				t.Errorf("after start %d: %d programs of outgoing packets", i, n)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// outgoingPrograms counts the programs of outgoing packets of the loopback device.
func outgoingPrograms(t *testing.T) int {
	t.Helper()
	const loopback = 1
	result, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXEgress})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip("the kernel has no TCX")
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(result.Programs)
}

// withoutCapabilities calls f on a thread that has none.
func withoutCapabilities(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		var none [2]unix.CapUserData
		err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Assessments are replaced and read without any capability.
func TestAssessmentsNeedNoPrivilege(t *testing.T) {
	audit := loadExchanges(t, nil)
	request, response := requestAndResponse(ipv4Peer)
	program := audit.devices.listed[0].program
	if err := withoutCapabilities(func() error {
		return audit.SetAssessments([]Assessment{service("login", ProtocolTCP, servicePort)})
	}); err != nil {
		t.Fatal(err)
	}
	run(t, program.Program, request, 1000, 1)
	runSent(t, program.egress, response, 2000)
	if err := withoutCapabilities(func() error {
		audit.exchanges.read(func(batch []Exchange) {
			if len(batch) != 1 || batch[0].Class != int(exchange.ClassX) {
				t.Errorf("got %+v", batch)
			}
		})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
