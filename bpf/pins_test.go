// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netlab"
)

// mountBPF mounts a bpf file system for this thread alone, which has to be one that ends with the
// test, such as that of a namespace.
func mountBPF(root string) error {
	return errors.Join(
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("bpf", root, "bpf", 0, ""),
	)
}

// Pinned maps stay until all the maps that replace them are pinned.
func TestAFailedReplacementKeepsThePinnedMaps(t *testing.T) {
	needBPF(t)
	namespace, err := netlab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(namespace.Close)
	root := t.TempDir()
	newTestMap := func() *ebpf.Map {
		t.Helper()
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	// Pinned maps are told apart by their value.
	before, after, closed := newTestMap(), newTestMap(), newTestMap()
	for value, m := range []*ebpf.Map{before, after} {
		if err := m.Put(uint32(0), uint32(value)); err != nil {
			t.Fatal(err)
		}
	}
	closed.Close()
	layouts := []*ebpf.Map{newTestMap(), newTestMap(), newTestMap()}
	others := []*ebpf.Map{newTestMap(), newTestMap(), newTestMap(), newTestMap()}
	expect := func(p *pins, when string, want uint32) error {
		names, err := p.names("")
		if slices.Sort(names); err != nil || !slices.Equal(names, []string{"map_a", "map_audit_layout", "map_b"}) {
			t.Errorf("%s: pinned are %v: %v", when, names, err)
			return nil
		}
		m, err := ebpf.LoadPinnedMap(p.mapPath("a"), nil)
		if err != nil {
			return err
		}
		defer m.Close()
		var got uint32
		if err := m.Lookup(uint32(0), &got); err != nil || got != want {
			t.Errorf("%s: map_a has the value %d, want %d: %v", when, got, want, err)
		}
		return nil
	}
	if err := namespace.Do(func() error {
		if err := mountBPF(root); err != nil {
			return err
		}
		p, err := openPins(filepath.Join(root, "pins"))
		if err != nil {
			return err
		}
		if err := p.pinMaps(map[string]*ebpf.Map{"a": before, "b": others[0]}, layouts[0]); err != nil {
			return err
		}
		if err := p.replaceMaps(map[string]*ebpf.Map{"a": others[1], "b": closed}, layouts[1]); err == nil {
			t.Error("a map that is closed was pinned")
		}
		err = errors.Join(
			expect(p, "after the failure", 0),
			p.replaceMaps(map[string]*ebpf.Map{"a": after, "b": others[2]}, layouts[2]),
			expect(p, "after a replacement", 1),
			others[3].Pin(filepath.Join(p.path, newPinPrefix+"a")), // as a killed process leaves it
			p.close(),
		)
		if err != nil {
			return err
		}
		if p, err = openPins(p.path); err != nil {
			return err
		}
		return errors.Join(expect(p, "after a kill", 1), p.close())
	}); err != nil {
		t.Fatal(err)
	}
}

// Pinned maps that this process may not open are an error: they are not replaced.
func TestPinsThatCannotBeOpenedAreNotReplaced(t *testing.T) {
	needBPF(t)
	const user = 1234
	namespace, err := netlab.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(namespace.Close)
	root := t.TempDir()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	layout, err := newLayoutMap("x=1")
	if err != nil {
		t.Fatal(err)
	}
	defer layout.Close()
	if err := namespace.Do(func() error {
		if err := errors.Join(os.Chmod(filepath.Dir(root), 0o755), os.Chmod(root, 0o755), mountBPF(root)); err != nil {
			return err
		}
		p, err := openPins(filepath.Join(root, "pins"))
		if err != nil {
			return err
		}
		defer func() {
			if err := p.close(); err != nil {
				t.Error(err)
			}
		}()
		if err := p.pinMaps(map[string]*ebpf.Map{"a": m}, layout); err != nil {
			return err
		}
		for _, owned := range []string{p.path, p.mapPath(layoutName)} {
			if err := os.Chown(owned, user, 0); err != nil {
				return err
			}
			if err := unix.Setfsuid(user); err != nil {
				return err
			}
			_, differs, err := p.loadMaps([]string{"a"}, "x=1")
			if !errors.Is(err, unix.EACCES) || differs != "" {
				t.Errorf("%s is owned: got %q and %v, want EACCES", owned, differs, err)
			}
			if err := unix.Setfsuid(0); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
