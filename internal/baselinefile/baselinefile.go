// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package baselinefile stores what devices have learnt in a file, so that they can be audited
// against it later.
//
// The file is JSON: {"baseline": …, "sha256": …}. The digest is that of the compact text of the
// baseline. It detects damage; it does not protect against an attacker who can write the file.
// docs/baseline-file.md describes the fields.
package baselinefile

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/excess"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/regularfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/timing"
)

const (
	version = 1

	// maxBytes is larger than a file of the maximum number of devices.
	maxBytes = 16 << 20
)

// Terms are the settings that a baseline depends on. A baseline is meaningless under other
// settings.
type Terms struct {
	Domain      timing.Domain `json:"domain"`
	Threshold   float64       `json:"threshold"`
	Clock       string        `json:"clock"`
	IdleTimeout time.Duration `json:"idle_timeout_ns"`
}

// File is the content of a file.
type File struct {
	Terms   Terms
	Saved   time.Time // to the second
	Devices map[string]timing.Learnt
	Pasts   map[string]excess.Past // of flags; not of every device
}

// outer, inner and device are the JSON form of a file.
type outer struct {
	Baseline json.RawMessage `json:"baseline"`
	SHA256   string          `json:"sha256"`
}

type inner struct {
	Version int               `json:"version"`
	Saved   time.Time         `json:"saved"`
	Terms   Terms             `json:"terms"`
	Devices map[string]device `json:"devices"`
}

type device struct {
	Samples uint64 `json:"samples"`
	MeanQ16 uint64 `json:"mean_q16"`
	M2      string `json:"m2"` // decimal, because a JSON number may not hold 96 bits

	Past *excess.Past `json:"past,omitempty"`

	// Scores of flagged packets in the files of versions up to 0.2.0. They are ignored.
	Judged json.RawMessage `json:"judged,omitempty"`
	Early  json.RawMessage `json:"early,omitempty"`
	Late   json.RawMessage `json:"late,omitempty"`
}

// Encode returns the JSON text of a file, with a final newline.
func (f *File) Encode() ([]byte, error) {
	in := inner{Version: version, Saved: f.Saved.UTC().Truncate(time.Second), Terms: f.Terms, Devices: map[string]device{}}
	for name, l := range f.Devices {
		d := device{Samples: l.N, MeanQ16: l.MeanQ16, M2: l.M2.Big().String()}
		if past, ok := f.Pasts[name]; ok {
			d.Past = &past
		}
		in.Devices[name] = d
	}
	text, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	text, err = json.MarshalIndent(outer{Baseline: text, SHA256: digest(text)}, "", "\t")
	return append(text, '\n'), err
}

func digest(compact []byte) string {
	sum := sha256.Sum256(compact)
	return hex.EncodeToString(sum[:])
}

// Parse reads the JSON text of a file. The error describes the first problem.
func Parse(text []byte) (*File, error) {
	var out outer
	if err := decode(text, &out); err != nil {
		return nil, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, out.Baseline); err != nil {
		return nil, errors.New("it has no baseline")
	}
	// The version is checked before the digest: another version may have another digest.
	var v struct{ Version int }
	if err := json.Unmarshal(compact.Bytes(), &v); err != nil {
		return nil, fmt.Errorf("its baseline is damaged: %w", err)
	}
	if v.Version != version {
		return nil, fmt.Errorf("it has version %d, but this exporter reads version %d", v.Version, version)
	}
	if got := digest(compact.Bytes()); got != out.SHA256 {
		return nil, errors.New("its digest does not match its baseline: it was damaged or edited")
	}
	var in inner
	if err := decode(compact.Bytes(), &in); err != nil {
		return nil, err
	}
	if in.Saved.IsZero() || len(in.Devices) == 0 {
		return nil, errors.New("it has no date or no device")
	}
	f := &File{Terms: in.Terms, Saved: in.Saved, Devices: map[string]timing.Learnt{}, Pasts: map[string]excess.Past{}}
	for name, d := range in.Devices {
		l, err := d.learnt()
		if err == nil {
			err = l.Validate()
		}
		if err == nil && d.Past != nil {
			err = d.Past.Validate()
			f.Pasts[name] = *d.Past
		}
		if err == nil && !isDeviceName(name) {
			err = errors.New("not a valid device name")
		}
		if err != nil {
			return nil, fmt.Errorf("device %q: %w", name, err)
		}
		f.Devices[name] = l
	}
	return f, nil
}

// isDeviceName reports whether a name is a text of [printable.Name] for the kernel's name of a
// device.
func isDeviceName(name string) bool {
	parsed, err := printable.ParseName(name)
	raw, _ := printable.RawName(parsed) // it is valid
	return err == nil && parsed == name && len(raw) <= printable.MaxName
}

// decode parses a single JSON value. Unknown fields and data after the value are errors.
func decode(text []byte, value any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(value); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("it is cut short")
		}
		return fmt.Errorf("it cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("it has data after its end")
	}
	return nil
}

func (d device) learnt() (timing.Learnt, error) {
	l := timing.Learnt{State: timing.State{N: d.Samples, MeanQ16: d.MeanQ16}}
	m2, ok := new(big.Int).SetString(d.M2, 10)
	if !ok || len(d.M2) > 39 || m2.Sign() < 0 || m2.BitLen() > 96 {
		return l, fmt.Errorf("m2 %.50q is not a whole number below 2⁹⁶", d.M2)
	}
	low := new(big.Int).And(m2, new(big.Int).SetUint64(1<<64-1))
	l.M2 = timing.Uint128{Hi: m2.Rsh(m2, 64).Uint64(), Lo: low.Uint64()}
	return l, nil
}

const remedy = "restore it, or move it away to start learning from zero"

// Read returns the content of a file that was learnt under these terms. It returns nil without
// an error if the file does not exist.
func Read(path string, terms Terms) (*File, error) {
	text, err := regularfile.Read(path, maxBytes, "baseline", remedy)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be used: %w: %s", path, err, remedy)
	}
	if differs := f.Terms.differs(terms); differs != "" {
		return nil, fmt.Errorf("%s was learnt with other settings: %s: set the flag as before, or move the file away to start learning from zero", path, differs)
	}
	return f, nil
}

// differs describes the first flag whose value has changed; empty if none has.
func (t Terms) differs(now Terms) string {
	switch {
	case t.Domain != now.Domain:
		return fmt.Sprintf("--audit.domain is %s and was %.20q", now.Domain, t.Domain)
	case t.Threshold != now.Threshold:
		return fmt.Sprintf("--audit.threshold is %v and was %v", now.Threshold, t.Threshold)
	case t.Clock != now.Clock:
		return fmt.Sprintf("--audit.clock is %s and was %.20q", now.Clock, t.Clock)
	case t.IdleTimeout != now.IdleTimeout:
		return fmt.Sprintf("--audit.idle-timeout is %v and was %v", now.IdleTimeout, t.IdleTimeout)
	}
	return ""
}
