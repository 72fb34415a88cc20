// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import "testing"

// The kernel refuses a port of a bridge that has a program. Ports are attached before their bridge,
// whatever the order of names and indices. Devices that are named keep their indices.
func TestPortsAreAttachedBeforeTheirBridge(t *testing.T) {
	for _, test := range []struct {
		description  string
		names, globs []string
		want         string
	}{
		{"by a glob", nil, []string{"*"}, "p 0 drv, q 1 drv, br 2 drv"},
		{"by names", []string{"br", "q", "p"}, nil, "p 0 drv, q 1 drv, br 2 drv"},
		{"the bridge by its name", []string{"br"}, []string{"p", "q"}, "p 0 drv, q 1 drv, br 2 drv"},
	} {
		t.Run(test.description, func(t *testing.T) {
			k := newFakeKernel()
			k.devices["br"], k.devices["q"], k.devices["p"] = 1, 9, 8
			k.masters = map[string]string{"p": "br", "q": "br"}
			config := setConfig(test.names, test.globs)
			config.MaxDevices = 3
			s := newTestSet(config, k)
			if err := s.start(t.Context(), k.list()); err != nil {
				t.Fatal(err)
			}
			if got := s.state(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
