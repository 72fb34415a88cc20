// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// asVictim is the environment variable that turns the test binary into the process that
// TestNothingIsLeft kills.
const asVictim = "NETLAB_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(asVictim) != "" {
		fmt.Println(victim())
		select {}
	}
	os.Exit(m.Run())
}

// victim creates a namespace, starts a command in it and returns the process id of the command.
func victim() (int, error) {
	namespace, err := NewNamespace()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command("sleep", "600")
	if err := namespace.Start(cmd); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_BPF") == "1" {
		t.Fatal("REQUIRE_BPF=1, but creating network namespaces requires root")
	}
	t.Skip("creating network namespaces requires root")
}

func newNamespace(t *testing.T) *Namespace {
	t.Helper()
	namespace, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(namespace.Close)
	return namespace
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newPair(t *testing.T, mtu int) (a, b End) {
	t.Helper()
	a = End{newNamespace(t), "left", netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}
	b = End{newNamespace(t), "right", netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")}
	if err := Connect(a, b, mtu); err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestPacketsCross(t *testing.T) {
	needRoot(t)
	const mtu = 1400
	a, b := newPair(t, mtu)
	for _, to := range []netip.Prefix{b.IPv4, b.IPv6} {
		t.Run(to.Addr().String(), func(t *testing.T) {
			server, err := b.Namespace.ListenPacket(netip.AddrPortFrom(to.Addr(), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			client, err := a.Namespace.Dial(t.Context(), "udp", server.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if _, err := client.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			buffer := make([]byte, 100)
			n, _, err := server.ReadFrom(buffer)
			if err != nil || string(buffer[:n]) != "hello" {
				t.Errorf("received %q, %v", buffer[:n], err)
			}
		})
	}
	for _, end := range []End{a, b} {
		link, err := end.Namespace.Link(end.Device)
		if err != nil {
			t.Fatal(err)
		}
		if link.Attrs().MTU != mtu {
			t.Errorf("%s has an MTU of %d, want %d", end.Device, link.Attrs().MTU, mtu)
		}
	}
}

// A pair carries no address resolution, no router solicitation and no multicast reports.
func TestAPairIsSilent(t *testing.T) {
	needRoot(t)
	a, b := newPair(t, 0)
	sent := uint64(0)
	for _, to := range []netip.Prefix{b.IPv4, b.IPv6} {
		conn, err := a.Namespace.Dial(t.Context(), "udp", netip.AddrPortFrom(to.Addr(), 9).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for written := 0; written < 10; {
			_, err := conn.Write([]byte("x"))
			switch {
			case err == nil:
				written++
				sent++
			// The port is closed: the error is the ICMP answer to the previous packet.
			case !errors.Is(err, unix.ECONNREFUSED):
				t.Fatal(err)
			}
		}
	}
	link, err := a.Namespace.Link(a.Device)
	if err != nil {
		t.Fatal(err)
	}
	if got := link.Attrs().Statistics.TxPackets; got != sent {
		t.Errorf("%d packets left the device, want the %d that were sent", got, sent)
	}
}

func TestNothingIsLeft(t *testing.T) {
	needRoot(t)
	process := exec.CommandContext(t.Context(), os.Args[0])
	process.Env = append(os.Environ(), asVictim+"=1")
	output, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Fields(line)[0])
	if err != nil || pid == 0 {
		t.Fatalf("the process said %q", line)
	}
	command, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(command)
	if err := process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = process.Wait()
	ended := []unix.PollFd{{Fd: int32(command), Events: unix.POLLIN}}
	if n, err := unix.Poll(ended, 10_000); n != 1 || err != nil {
		t.Errorf("the command outlived the process that was killed: %d, %v", n, err)
	}
}

func TestCloseEndsCommands(t *testing.T) {
	needRoot(t)
	namespace, err := NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "600")
	if err := namespace.Start(cmd); err != nil {
		t.Fatal(err)
	}
	namespace.Close()
	if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the command ended with %v, want that it was killed", err)
	}
}

func TestNamespacesAreApart(t *testing.T) {
	needRoot(t)
	a, b := newPair(t, 0)
	for _, end := range []End{a, b} {
		links, err := end.Namespace.Links()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, link := range links {
			names = append(names, link.Attrs().Name)
		}
		if want := []string{"lo", end.Device}; !slices.Equal(names, want) {
			t.Errorf("the namespace has the devices %v, want %v", names, want)
		}
		if _, err := netlink.LinkByName(end.Device); err == nil {
			t.Errorf("%s is in this process's namespace", end.Device)
		}
	}
}

func TestPace(t *testing.T) {
	const packets = 2000
	r := rand.New(rand.NewPCG(1, 2))
	var gaps []time.Duration
	var sent []time.Duration
	errEnough := errors.New("enough")
	err := Pace(testContext(t), func(int) time.Duration {
		gaps = append(gaps, time.Millisecond+time.Duration(20e3*r.NormFloat64()))
		return gaps[len(gaps)-1]
	}, func(i int) error {
		now, err := monotonic()
		sent = append(sent, now)
		if i == packets {
			return errEnough
		}
		return err
	})
	if !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	var delays []time.Duration
	for i := 1; i <= packets; i++ {
		late := sent[i] - sent[i-1] - gaps[i]
		if late < 0 {
			t.Errorf("call %d came %v early", i, -late)
		}
		delays = append(delays, late)
	}
	slices.Sort(delays)
	t.Logf("calls were late by %v in the median, %v in 99 %%, %v at most",
		delays[packets/2], delays[packets*99/100], delays[packets-1])
}

func TestPoll(t *testing.T) {
	calls := 0
	err := Poll(testContext(t), func() error {
		calls++
		if calls < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || calls != 3 {
		t.Errorf("got %v after %d calls, want success after 3", err, calls)
	}
	never := errors.New("never")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Poll(ctx, func() error { return never }); !errors.Is(err, never) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the last error and the deadline", err)
	}
}
