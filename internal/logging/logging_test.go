// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode"
)

const patience = 20 * time.Second

// blockedWriter blocks writes until goOn is closed.
type blockedWriter struct {
	bytes.Buffer
	goOn chan struct{}
}

func (b *blockedWriter) Write(line []byte) (int, error) {
	<-b.goOn
	return b.Buffer.Write(line)
}

func flush(t *testing.T, w *Writer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w.Flush(ctx)
	if ctx.Err() != nil {
		t.Fatal("the lines were not written")
	}
}

// A reader that does not read blocks no line, and the lost lines are counted.
func TestReaderThatDoesNotRead(t *testing.T) {
	blocked := &blockedWriter{goOn: make(chan struct{})}
	w := NewWriter(blocked)
	logger := w.CountLosses(slog.New(slog.NewTextHandler(w, nil))).With("part", "test")
	const lines = 20_000
	for i := range lines {
		logger.Info("line", "i", i)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	w.Flush(ctx)
	if ctx.Err() == nil {
		t.Error("Flush ended before the lines were written")
	}
	close(blocked.goOn)
	flush(t, w)
	written := strings.Count(blocked.String(), "\n")
	if written == 0 || written == lines || blocked.Len() > maxQueued {
		t.Errorf("%d of %d lines with %d bytes were kept", written, lines, blocked.Len())
	}
	logger.Info("next")
	logger.Info("last")
	flush(t, w)
	tail := strings.Split(blocked.String(), "\n")[written:]
	if want := fmt.Sprintf("msg=next part=test lost_lines=%d", lines-written); !strings.HasSuffix(tail[0], want) {
		t.Errorf("the next line is %q, want %q", tail[0], want)
	}
	if strings.Contains(tail[1], "lost_lines") {
		t.Errorf("the loss is said again: %q", tail[1])
	}
	if _, err := w.Write(make([]byte, maxQueued+1)); !errors.Is(err, ErrFull) {
		t.Errorf("got %v for a line that is too long", err)
	}
}

// No handler of slog writes a character on which a terminal acts, and JSON stays JSON.
func TestControlCharacters(t *testing.T) {
	const value = "\x1b[31m \x7f \u009b \u202e \xff \n"
	for name, handler := range map[string]func(io.Writer) slog.Handler{
		"text": func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
		"JSON": func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
	} {
		var buffer bytes.Buffer
		w := NewWriter(&buffer)
		logger := slog.New(handler(w))
		logger.Info(value, "key", value)
		logger.Info("one", "key", "\x7f")
		flush(t, w)
		text := buffer.String()
		if strings.Count(text, "\n") != 2 || strings.ContainsFunc(strings.ReplaceAll(text, "\n", ""), func(r rune) bool { return !unicode.IsGraphic(r) }) {
			t.Errorf("%s: wrote %q", name, text)
		}
		if name != "JSON" {
			continue
		}
		var line struct{ Msg string }
		if err := json.NewDecoder(&buffer).Decode(&line); err != nil || line.Msg != strings.ToValidUTF8(value, "\uFFFD") {
			t.Errorf("the message is read as %q: %v", line.Msg, err)
		}
	}
}

func TestWriteWithin(t *testing.T) {
	var buffer bytes.Buffer
	WriteWithin(&buffer, "line\n", patience)
	if buffer.String() != "line\n" {
		t.Errorf("got %q", &buffer)
	}
	begin := time.Now()
	reader, writer := io.Pipe()
	defer reader.Close()
	WriteWithin(writer, "line\n", 10*time.Millisecond)
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("took %v", took)
	}
}

func TestLimit(t *testing.T) {
	var buffer bytes.Buffer
	now := time.Now()
	logger := slog.New(limitedHandler{
		slog.NewTextHandler(&buffer, nil), &rateLimit{now: func() time.Time { return now }},
	}).With("a", "b").WithGroup("c")
	logged := func() string {
		defer buffer.Reset()
		return buffer.String()
	}
	for range 1000 {
		logger.Warn("attack")
		logger.Info("start")
	}
	text := logged()
	if n := strings.Count(text, "attack"); n != limitBurst {
		t.Errorf("%d warnings, want %d", n, limitBurst)
	}
	if n := strings.Count(text, "start"); n != 1000 {
		t.Errorf("%d of 1000 lines of the level info", n)
	}
	now = now.Add(limitInterval)
	logger.Error("attack")
	logger.Error("attack")
	if text := logged(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "suppressed_lines=990") {
		t.Errorf("after a while: %s", text)
	}
	now = now.Add(time.Hour)
	for range limitBurst {
		logger.Error("attack")
	}
	if text := logged(); strings.Count(text, "\n") != limitBurst || strings.Count(text, "suppressed_lines=1\n") != 1 {
		t.Errorf("after an hour: %s", text)
	}
}
