// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"
)

// Documents, flags and manifests state the memory that a slot of the flow table and the counters of
// a device take.
func TestMemoryIsDocumented(t *testing.T) {
	device := fmt.Sprintf("%.1f KiB", float64(unsafe.Sizeof(programDeviceCounters{}))/1024)
	table := fmt.Sprintf("%.1f", float64(slotBytes*65536)/(1<<20))
	for _, test := range []struct{ file, states string }{
		{"docs/requirements.md", fmt.Sprintf("%d a slot; %s MiB for the default of 65,536 slots", slotBytes, table)},
		{"docs/requirements.md", device + " for each device and each possible CPU"},
		{"docs/planning.md", fmt.Sprintf("%d bytes a slot", slotBytes)},
		{"docs/planning.md", "65,536 slots takes " + table + " MiB"},
		{"docs/planning.md", fmt.Sprintf("a slot, record of its flags | %d |", unsafe.Sizeof(programSetRecords{})/flowWays)},
		{"docs/planning.md", device + " for each possible CPU and device"},
		{"docs/runbooks.md", fmt.Sprintf("A slot takes %d bytes", slotBytes)},
		{"docs/runbooks.md", "Each device takes " + device},
		{"docs/flags.md", "Each device takes " + device},
		{"internal/exporter/flags.go", "Each device takes " + device},
		{"deploy/kubernetes/base/daemonset.yaml", fmt.Sprintf("slot takes %d bytes, and each device %s", slotBytes, device)},
	} {
		text, err := os.ReadFile(filepath.Join("..", test.file))
		if err != nil {
			t.Fatal(err)
		}
		words := strings.Join(strings.Fields(strings.ReplaceAll(string(text), "#", " ")), " ")
		if !strings.Contains(words, test.states) {
			t.Errorf("%s does not state %q", test.file, test.states)
		}
	}
}
