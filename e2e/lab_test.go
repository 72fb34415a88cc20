// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/xdp-audit/xdp_audit_exporter/internal/livebuffer"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

const (
	device  = "audited0" // on which the exporter is attached
	address = "127.0.0.1:9400"

	// patience is the longest time to wait for anything.
	patience = 20 * time.Second
)

// lab is a network of two namespaces. The exporter runs in one, and the other sends to it.
type lab struct {
	t       *testing.T
	ctx     context.Context
	audited netlab.End
	sender  netlab.End
	pairs   map[netip.Addr]*pair // by the addresses of their audited ends
}

// newLab makes a network for one test. At the end of the test no program may be attached in it.
func newLab(t *testing.T) *lab {
	t.Helper()
	if err := cannotRun(); err != nil {
		skip(t, err)
	}
	l := &lab{t: t, ctx: t.Context(), pairs: map[netip.Addr]*pair{}}
	l.audited = netlab.End{Namespace: l.newNamespace(), Device: device}
	l.sender = netlab.End{Namespace: l.newNamespace(), Device: "sender0"}
	l.audited, l.sender = l.connect(device, "sender0", 0)
	t.Cleanup(l.expectNothingAttached)
	return l
}

func (l *lab) newNamespace() *netlab.Namespace {
	l.t.Helper()
	namespace, err := netlab.NewNamespace()
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(namespace.Close)
	return namespace
}

// connect joins the namespaces by a veth pair with the given index.
func (l *lab) connect(audited, sender string, index byte) (a, s netlab.End) {
	l.t.Helper()
	end := func(namespace *netlab.Namespace, device string, host byte) netlab.End {
		return netlab.End{
			Namespace: namespace, Device: device,
			IPv4: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, 16*index + host}), 28),
			IPv6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 7: index, 15: host}), 64),
		}
	}
	a, s = end(l.audited.Namespace, audited, 1), end(l.sender.Namespace, sender, 2)
	if err := netlab.Connect(a, s, 0); err != nil {
		l.t.Fatal(err)
	}
	l.newPair(a, s)
	return a, s
}

// attached returns the devices of the audited namespace that hold an XDP program, with the mode
// that the kernel reports.
func (l *lab) attached() map[string]uint32 {
	l.t.Helper()
	links, err := l.audited.Namespace.Links()
	if err != nil {
		l.t.Fatal(err)
	}
	modes := map[string]uint32{}
	for _, link := range links {
		if xdp := link.Attrs().Xdp; xdp != nil && xdp.Attached {
			modes[link.Attrs().Name] = xdp.AttachMode
		}
	}
	return modes
}

// The modes that the kernel reports: XDP_ATTACHED_DRV and XDP_ATTACHED_SKB of linux/if_link.h.
const (
	attachedDriver  = 1
	attachedGeneric = 2
)

func (l *lab) expectNothingAttached() {
	l.t.Helper()
	if modes := l.attached(); len(modes) > 0 {
		l.t.Errorf("XDP programs are left attached: %v", modes)
	}
}

// poll waits until ready returns nil, and fails the test after patience.
func (l *lab) poll(ready func() error) {
	l.t.Helper()
	if err := l.tryPoll(ready); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) tryPoll(ready func() error) error {
	ctx, cancel := context.WithTimeout(l.ctx, patience)
	defer cancel()
	return netlab.Poll(ctx, ready)
}

// process is a command in the audited namespace.
type process struct {
	lab            *lab
	cmd            *exec.Cmd
	stdout, stderr output
	ended          chan struct{}
}

// output collects the output of a process while it runs.
type output = livebuffer.Buffer

// start starts a command, which is killed at the end of the test if it still runs. The edits are
// applied before the start.
func (l *lab) start(path string, args []string, edits ...func(*exec.Cmd)) *process {
	l.t.Helper()
	p := &process{lab: l, cmd: exec.Command(path, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	for _, edit := range edits {
		edit(p.cmd)
	}
	if err := l.audited.Namespace.Start(p.cmd); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // see cmd.ProcessState
	}()
	l.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if l.t.Failed() {
			l.t.Logf("%s wrote:\n%s%s", path, &p.stdout, &p.stderr)
		}
	})
	return p
}

// hasEnded reports whether the process has ended.
func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// wait returns the exit code of the process, or −1 if a signal ended it.
func (p *process) wait() int {
	p.lab.t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		p.lab.t.Fatalf("%s does not end; it wrote:\n%s", p.cmd.Path, &p.stderr)
		return 0
	}
}

func (p *process) signal(signal syscall.Signal) {
	p.lab.t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		p.lab.t.Fatal(err)
	}
}

// shutdownLimit is the documented time in which a signal ends the exporter.
const shutdownLimit = 5 * time.Second

// expectEnd sends SIGTERM, and expects the process to end in time with an exit code.
func (p *process) expectEnd(exitCode int) (took time.Duration) {
	p.lab.t.Helper()
	begin := time.Now()
	p.signal(syscall.SIGTERM)
	code := p.wait()
	if took = time.Since(begin); took > shutdownLimit {
		p.lab.t.Errorf("it ended %v after SIGTERM, want at most %v", took, shutdownLimit)
	}
	if code != exitCode {
		p.lab.t.Errorf("exit code %d after SIGTERM, want %d", code, exitCode)
	}
	return took
}

// expectStopped sends SIGTERM, and expects the process to detach and to exit with code 0.
func (p *process) expectStopped() {
	p.lab.t.Helper()
	p.expectEnd(0)
	p.lab.expectNothingAttached()
}

// exporter is a running exporter with a client for it.
type exporter struct {
	*process
	client *http.Client
	scheme string
}

// startExporter starts the exporter on the lab's address and waits until it serves. It is not ready
// if no device is audited.
func (l *lab) startExporter(args ...string) *exporter {
	l.t.Helper()
	e := l.launch(binaries.exporter, append([]string{"--web.listen-address=" + address}, args...))
	e.awaitReady("/-/healthy")
	return e
}

// launch starts a program that serves on the lab's address.
func (l *lab) launch(path string, args []string, edits ...func(*exec.Cmd)) *exporter {
	l.t.Helper()
	return &exporter{l.start(path, args, edits...), l.client(), "http"}
}

// occupyAddress listens on the address of the lab, so that no exporter can.
func (l *lab) occupyAddress() (taken net.Listener) {
	l.t.Helper()
	taken, err := l.audited.Namespace.Listen(address)
	if err != nil {
		l.t.Fatal(err)
	}
	return taken
}

// changeBothEnds calls change with the link of each end of the pair, in the namespace of the end.
func (l *lab) changeBothEnds(change func(netlink.Link) error) {
	l.t.Helper()
	for _, end := range []netlab.End{l.audited, l.sender} {
		err := end.Namespace.Do(func() error {
			link, err := netlink.LinkByName(end.Device)
			if err != nil {
				return err
			}
			return change(link)
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
}

// client returns an HTTP client in the audited namespace.
func (l *lab) client() *http.Client {
	transport := &http.Transport{DialContext: l.audited.Namespace.Dial}
	l.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func (e *exporter) awaitReady(path string) {
	e.lab.t.Helper()
	e.lab.poll(func() error {
		if e.hasEnded() {
			e.lab.t.Fatalf("%s ended: %s", e.cmd.Path, &e.stderr)
		}
		status, _, err := e.ask(path)
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%s answers %d", path, status)
		}
		return err
	})
}

func (e *exporter) ask(path string) (status int, body string, err error) {
	request, err := http.NewRequestWithContext(e.lab.ctx, http.MethodGet, e.scheme+"://"+address+path, nil)
	if err != nil {
		return 0, "", err
	}
	return do(e.client, request)
}

func do(client *http.Client, request *http.Request) (status int, body string, err error) {
	response, err := client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}

// get requests a path and expects a status.
func (e *exporter) get(path string, want int) string {
	e.lab.t.Helper()
	status, body, err := e.ask(path)
	if err != nil {
		e.lab.t.Fatal(err)
	}
	if status != want {
		e.lab.t.Errorf("GET %s: status %d, want %d: %s", path, status, want, body)
	}
	return body
}

// Key phrases of messages that several tests expect.
const (
	takenOver    = "taken over"
	mapsReplaced = "replac"

	// Messages of the kernel.
	kernelRefusesNative = "Underlying driver does not support XDP in native mode"
	kernelRefusesLower  = "Cannot attach when an upper device already has a program"
)

// logged counts the lines of the log that contain every part, ignoring case.
func (p *process) logged(parts ...string) (lines int) {
	for line := range strings.Lines(p.stderr.String()) {
		contains := true
		for _, part := range parts {
			contains = contains && strings.Contains(strings.ToLower(line), strings.ToLower(part))
		}
		if contains {
			lines++
		}
	}
	return lines
}

// expectLog expects that exactly one line of the log contains every part.
func (p *process) expectLog(parts ...string) {
	p.lab.t.Helper()
	_ = p.lab.tryPoll(func() error {
		if p.logged(parts...) == 0 {
			return fmt.Errorf("no line contains %q", parts)
		}
		return nil
	})
	if lines := p.logged(parts...); lines != 1 {
		p.lab.t.Errorf("%d lines of the log contain %q, want 1:\n%s", lines, parts, &p.stderr)
	}
}
