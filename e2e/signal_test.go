// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSignalsEndInOrder(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			l := newLab(t)
			e := l.startExporter("--audit.device=" + device)
			l.send(l.newFlow(l.audited.IPv4.Addr()), 100)
			if modes := l.attached(); modes[device] != attachedDriver {
				t.Errorf("attached are %v", modes)
			}
			e.signal(signal)
			if code := e.wait(); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
			l.expectNothingAttached()
			if log := e.stderr.String(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
				t.Errorf("the log complains:\n%s", log)
			}
		})
	}
}

// The kernel detaches the program when the last file descriptor of its link is closed.
func TestKillLeavesNothing(t *testing.T) {
	l := newLab(t)
	e := l.startExporter("--audit.device=" + device)
	if modes := l.attached(); modes[device] != attachedDriver {
		t.Errorf("attached are %v", modes)
	}
	e.signal(syscall.SIGKILL)
	e.wait()
	l.expectNothingAttached()
}

// A write to the trail hangs, because no process reads it. The exporter ends and detaches all
// the same.
func TestAWriteThatHangsDoesNotKeepTheExporter(t *testing.T) {
	const pipeBytes, recordBytes = 4096, 64 // the length of the shortest record
	for _, test := range []struct {
		description string
		open        func(t *testing.T) (path string, stdout *os.File)
	}{
		{"a named pipe", func(t *testing.T) (string, *os.File) {
			path := filepath.Join(t.TempDir(), "trail")
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			reader, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { reader.Close() })
			limitPipe(t, reader, pipeBytes)
			return path, nil
		}},
		{"a pipe as standard output", func(t *testing.T) (string, *os.File) {
			reader, writer, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { reader.Close(); writer.Close() })
			limitPipe(t, reader, pipeBytes)
			return "-", writer
		}},
	} {
		t.Run(test.description, func(t *testing.T) {
			l := newLab(t)
			path, stdout := test.open(t)
			args := append([]string{"--web.listen-address=" + address, "--audit.device=" + device, "--trail.file=" + path}, flagMuch...)
			e := l.launch(binaries.exporter, args, func(cmd *exec.Cmd) {
				if stdout != nil {
					cmd.Stdout = stdout
				}
			})
			e.awaitReady("/-/ready")
			f := l.newFlow(l.audited.IPv4.Addr())
			l.poll(func() error {
				l.send(f, 1000)
				if sent := e.scrape().sum("event_fates_total", "fate=sent"); sent*recordBytes <= pipeBytes {
					return fmt.Errorf("%v events were sent, which fit into the pipe", sent)
				}
				return nil
			})
			e.expectStopped()
			e.expectLog("level=WARN", "events")
		})
	}
}

// Clients, the trail and the log together delay the end no longer than one of them, also if the
// exporter ends with an error.
func TestEverythingIsStuckAtTheEnd(t *testing.T) {
	l := newLab(t)
	pipe := func() *os.File {
		t.Helper()
		reader, writer, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { reader.Close(); writer.Close() })
		limitPipe(t, writer, 4096)
		if _, err := writer.Write(make([]byte, 4096)); err != nil { // full from the start
			t.Fatal(err)
		}
		return writer
	}
	folder := filepath.Join(t.TempDir(), "baselines")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"--web.listen-address=" + address, "--audit.device=" + device, "--trail.file=-",
		"--audit.baseline-file=" + filepath.Join(folder, "baseline.json"), "--audit.window=20"}, flagMuch...)
	e := l.launch(binaries.exporter, args, func(cmd *exec.Cmd) { cmd.Stdout, cmd.Stderr = pipe(), pipe() })
	e.awaitReady("/-/ready")
	f := l.newFlow(l.audited.IPv4.Addr())
	l.poll(func() error {
		l.send(f, 1000)
		if sent := e.scrape().sum("event_fates_total", "fate=sent"); sent == 0 {
			return errors.New("no events were sent")
		}
		return nil
	})
	conn, err := l.audited.Namespace.Dial(l.ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\n"); err != nil { // no end
		t.Fatal(err)
	}
	if err := os.RemoveAll(folder); err != nil { // so the exporter cannot save
		t.Fatal(err)
	}
	t.Logf("it ended after %v", e.expectEnd(1))
	l.expectNothingAttached()
}

func limitPipe(t *testing.T, pipe *os.File, size int) {
	t.Helper()
	if _, err := unix.FcntlInt(pipe.Fd(), unix.F_SETPIPE_SZ, size); err != nil {
		t.Fatal(err)
	}
}

func TestHangupReopensTheTrail(t *testing.T) {
	l := newLab(t)
	folder := t.TempDir()
	path, moved := filepath.Join(folder, "trail"), filepath.Join(folder, "trail.1")
	e := l.startExporter("--audit.device="+device, "--audit.min-samples=10", "--audit.threshold=2",
		"--audit.event-rate=1000000", "--audit.calibrate=0", "--trail.file="+path)
	f := l.newFlow(l.audited.IPv4.Addr())

	// awaitRecords sends until the exporter has written more than n records, and returns their
	// number.
	awaitRecords := func(n float64) float64 {
		var records float64
		l.poll(func() error {
			l.send(f, 1000)
			if records = e.atRest().sum("trail_records_total"); records <= n {
				return fmt.Errorf("%v records, want more than %v", records, n)
			}
			return nil
		})
		return records
	}

	first := awaitRecords(0)
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	second := awaitRecords(first)
	if got := countLines(t, moved); got != second {
		t.Errorf("%v records in the file that was moved, want all %v", got, second)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a new file is there before SIGHUP: %v", err)
	}

	e.signal(syscall.SIGHUP)
	l.poll(func() error {
		_, err := os.Stat(path)
		return err
	})
	l.poll(func() error {
		if e.logged("reopened") == 0 {
			return fmt.Errorf("the log does not say that the trail is reopened")
		}
		return nil
	})
	third := awaitRecords(second)
	if got, want := countLines(t, path), third-second; got != want {
		t.Errorf("%v records in the new file, want %v", got, want)
	}
	if got := countLines(t, moved); got != second {
		t.Errorf("%v records in the old file, want still %v", got, second)
	}
	if got := e.scrape().sum("trail_write_errors_total"); got != 0 {
		t.Errorf("%v records were lost", got)
	}
	e.expectStopped()
}

func countLines(t *testing.T, path string) float64 {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return float64(strings.Count(string(text), "\n"))
}
