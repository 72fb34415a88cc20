// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

const (
	layoutName = "audit_layout"

	// layoutVersion is raised when the meaning of values in the maps changes and their types and
	// names do not.
	layoutVersion = 1
)

// layoutRecord is the value in map_audit_layout.
type layoutRecord struct {
	Text [1016]byte // fields as name=value, padded with zeros
	PID  uint64     // process that has locked the directory
}

// readLayout returns the pinned record; its error wraps os.ErrNotExist if there is none.
func (p *pins) readLayout() (layoutRecord, error) {
	var record layoutRecord
	m, err := ebpf.LoadPinnedMap(p.mapPath(layoutName), nil)
	if err != nil {
		return record, err
	}
	defer m.Close()
	return record, m.Lookup(uint32(0), &record)
}

// newLayoutMap creates a map with the record of this process with a layout.
func newLayoutMap(text string) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: layoutName, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binarySize(layoutRecord{})), MaxEntries: 1,
	})
	if err != nil {
		return nil, explainMap(layoutName, 1, err)
	}
	if err := putLayout(m, text); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// rewriteLayout writes the record of this process with a layout into the pinned map.
func (p *pins) rewriteLayout(text string) error {
	m, err := ebpf.LoadPinnedMap(p.mapPath(layoutName), nil)
	if err != nil {
		return fmt.Errorf("opening the layout of the maps: %w", err)
	}
	defer m.Close()
	return putLayout(m, text)
}

func putLayout(m *ebpf.Map, text string) error {
	record := layoutRecord{PID: uint64(os.Getpid())}
	if copy(record.Text[:], text) < len(text) {
		return fmt.Errorf("layout of the maps has %d bytes, more than the maximum of %d", len(text), len(record.Text))
	}
	if err := m.Put(uint32(0), &record); err != nil {
		return fmt.Errorf("writing the layout of the maps: %w", err)
	}
	return nil
}

func binarySize(record layoutRecord) int { return len(record.Text) + 8 }

// layoutOf describes everything in which two processes must agree so that one can take over the
// maps of the other: sizes and types of the maps, and the settings that their values depend on.
func layoutOf(config Config, specs map[string]*ebpf.MapSpec, cpus, devices int) string {
	digest := sha256.New()
	fmt.Fprintln(digest, familyNames, protocolNames, outcomeNames, fateNames, evictionNames, decisionNames)
	names := make([]string, 0, len(specs))
	for name := range specs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		spec := specs[name]
		fmt.Fprintln(digest, name, spec.Type, spec.KeySize, spec.ValueSize, spec.Flags)
		fmt.Fprintln(digest, typeText(spec.Key), typeText(spec.Value))
	}
	return fmt.Sprintf("version=%d types=%x cpus=%d devices=%d slots=%d window=%d clip=%v clock=%s domain=%s baseline=%s netns=%d",
		layoutVersion, digest.Sum(nil)[:8], cpus, devices, config.Slots(), config.Window, config.Clip, config.Clock, config.Domain, config.Baseline,
		networkNamespace())
}

// networkNamespace returns the inode number of the network namespace of this process, 0 if the
// kernel does not report it. An index of a device means nothing in another namespace.
func networkNamespace() uint64 {
	var stat unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &stat); err != nil {
		return 0
	}
	return stat.Ino
}

// typeText describes the type of a map's key or value, with the names and offsets of its members.
func typeText(t btf.Type) string {
	switch t := t.(type) {
	case nil:
		return ""
	case *btf.Struct:
		var text strings.Builder
		fmt.Fprintf(&text, "struct %d {", t.Size)
		for _, member := range t.Members {
			fmt.Fprintf(&text, " %d %s %s;", member.Offset, member.Name, typeText(member.Type))
		}
		return text.String() + " }"
	case *btf.Array:
		return fmt.Sprintf("[%d]%s", t.Nelems, typeText(t.Type))
	case *btf.Typedef:
		return typeText(t.Type)
	case *btf.Int:
		return t.Name
	}
	return fmt.Sprintf("%v", t)
}

// differingFields describes the fields in which two layouts differ.
func differingFields(before, now string) string {
	var differs []string
	for field := range strings.FieldsSeq(now) {
		name, value, _ := strings.Cut(field, "=")
		if was := fieldOf(before, name); was != value {
			differs = append(differs, fmt.Sprintf("%s is %s and was %s", name, value, was))
		}
	}
	if len(differs) == 0 {
		return "the pinned layout has fields that this version does not know"
	}
	return strings.Join(differs, ", ")
}

// fieldOf returns the value of a field of a layout, "missing" if the layout does not have the
// field.
func fieldOf(layout, name string) string {
	for field := range strings.FieldsSeq(layout) {
		if value, ok := strings.CutPrefix(field, name+"="); ok {
			return value
		}
	}
	return "missing"
}
