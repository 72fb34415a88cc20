// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// randomNames gives names and alternative names to network devices, takes them away and moves them,
// as a kernel would let it: no name belongs to two.
func randomNames(k *fakeKernel, random *rand.Rand, next *int) string {
	names := []string{"up", "down", "a", "v1", "v2", "x"}
	name := names[random.IntN(len(names))]
	isUsed := k.devices[name] != 0 || k.aliases[name] != ""
	present := slices.Sorted(maps.Keys(k.devices))
	if len(present) == 0 || !isUsed && random.IntN(2) == 0 {
		if isUsed {
			return "nothing"
		}
		*next++
		k.devices[name] = *next
		return "add " + name
	}
	device := present[random.IntN(len(present))]
	dropAliases := func() {
		maps.DeleteFunc(k.aliases, func(_, of string) bool { return of == device })
	}
	switch step := random.IntN(5); {
	case step == 0:
		k.remove(device)
		dropAliases()
		return "remove " + device
	case step == 1 && !isUsed:
		k.devices[name] = k.devices[device]
		delete(k.devices, device)
		for alias, of := range k.aliases {
			if of == device {
				k.aliases[alias] = name
			}
		}
		return "rename " + device + " to " + name
	case step == 2 && !isUsed:
		k.aliases[name] = device
		return "alias " + name + " of " + device
	case step == 3:
		delete(k.aliases, name)
		return "no alias " + name
	case step == 4:
		k.detach(k.devices[device])
		return "detach " + device
	}
	return "nothing"
}

// Whatever happens to the names of devices: each wanted device is audited by its own program and
// under the kernel's name, and no other device is, as long as there is room.
func TestRandomNames(t *testing.T) {
	for seed := range uint64(500) {
		random := rand.New(rand.NewPCG(seed, 1))
		config := setConfig([]string{"up", "down"}, []string{"v*"})
		config.MaxDevices = 2 + uint32(random.IntN(5))
		s := newTestSet(config, newFakeKernel())
		next := 0
		var steps []string
		for range 25 {
			for range 1 + random.IntN(2) {
				steps = append(steps, randomNames(s.kernel, random, &next))
			}
			devices := s.kernel.list()
			s.resync(t.Context(), devices, true)
			s.checkHooks(t, fmt.Sprint(seed))
			wanted := s.config.wanted(devices)
			for _, d := range s.listed {
				_, isHere := s.kernel.devices[d.name]
				if !slices.Contains(wanted, d.name) || isHere == d.isGone && d.wasUp {
					t.Errorf("%s is listed, and gone: %t", d.name, d.isGone)
				}
			}
			for _, name := range wanted {
				i := slices.IndexFunc(s.listed, func(d *device) bool { return d.name == name })
				_, isHere := s.kernel.devices[name]
				if len(wanted) <= int(config.MaxDevices) && (i < 0 || isHere && !s.listed[i].isUp()) {
					t.Errorf("%s is not up", name)
				}
			}
			if t.Failed() {
				t.Fatalf("seed %d: after %v: %s; aliases %v, devices %v\n%s", seed, steps, s.state(), s.kernel.aliases, s.kernel.devices, s.log)
			}
		}
		if err := s.close(); err != nil || len(s.kernel.hooks) != 0 || s.kernel.programs != 0 {
			t.Fatalf("seed %d: %v: %d hooks and %d programs are left after %v", seed, err, len(s.kernel.hooks), s.kernel.programs, steps)
		}
	}
}
