// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package kernels

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// device is what a guest reports about a kind of device.
type device struct {
	Device   string
	LinkType string
	Mode     string // of the audit with --audit.mode=auto; empty if it is refused
	Refused  string
	Sees     string
	Reason   string // for seeing nothing
	Below    string // what the audit of a device under it sees
}

var deviceLine = regexp.MustCompile(`^\s+\S+\.go:\d+: device (\{.*\})$`)

// readDevice reads a line of the output of a test, and reports whether it is about a device.
func (r *results) readDevice(line string) bool {
	match := deviceLine.FindStringSubmatch(line)
	if match == nil {
		return false
	}
	var d device
	if err := json.Unmarshal([]byte(match[1]), &d); err != nil {
		r.failures = append(r.failures, fmt.Sprintf("device %s: %v", match[1], err))
	}
	r.devices = append(r.devices, d)
	return true
}

// cells are those of the row of the device, without the kernels.
func (d device) cells() []string {
	modes := map[string]string{"drv": "native, generic", "skb": "generic"}[d.Mode]
	sees := d.Sees
	if d.Reason != "" {
		sees += ": " + d.Reason
	}
	cells := []string{d.Device, d.LinkType, modes, d.Refused, sees, d.Below}
	for i := range cells {
		if cells[i] == "" {
			cells[i] = notThere
		}
	}
	return cells
}

// deviceRows returns the rows of the table of devices: what is the same in several kernels is in
// one row. The last cell has the kernels.
func (t table) deviceRows() [][]string {
	var rows [][]string
	last := func(device string) int { // the row of a device after which another one is inserted
		for i := len(rows) - 1; i >= 0; i-- {
			if rows[i][0] == device {
				return i
			}
		}
		return -1
	}
	for _, c := range t {
		previous := -1
		for _, d := range c.devices {
			cells := d.cells()
			i := slices.IndexFunc(rows, func(row []string) bool { return slices.Equal(row[:len(cells)], cells) })
			if i < 0 {
				i = max(previous, last(d.Device)) + 1
				rows = slices.Insert(rows, i, append(cells, c.series))
			} else {
				rows[i][len(cells)] += ", " + c.series
			}
			previous = i
		}
	}
	return rows
}

func (t table) deviceMarkdown() string {
	var b strings.Builder
	head := []string{"device", "link type", "audited", "refused", "the audit sees", "the audit of the device below sees", "Linux"}
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	line(slices.Repeat([]string{"---"}, len(head)))
	for _, row := range t.deviceRows() {
		line(row)
	}
	return b.String()
}

// deviceDifferences returns where a document differs from what the tested kernels report about
// devices.
func (t table) deviceDifferences(document string) (differences []string) {
	written := map[string]bool{} // kernels with the row of a device
	isRow := regexp.MustCompile(`^\| .* \| ([0-9., ]+) \|$`)
	for line := range strings.Lines(document) {
		line = strings.TrimSuffix(line, "\n")
		if match := isRow.FindStringSubmatch(line); match != nil {
			row := strings.TrimSuffix(line, match[1]+" |")
			for series := range strings.SplitSeq(match[1], ", ") {
				written[series+" "+row] = true
			}
		}
	}
	for _, c := range t {
		if c.leftOut(devices[0].tests[0]) {
			continue
		}
		for _, d := range c.devices {
			row := "| " + strings.Join(d.cells(), " | ") + " | "
			if !written[c.series+" "+row] {
				differences = append(differences, fmt.Sprintf("has no row for Linux %s: %s", c.series, row))
			}
			delete(written, c.series+" "+row)
		}
		for row := range written {
			if kernel, rest, _ := strings.Cut(row, " "); kernel == c.series {
				differences = append(differences, fmt.Sprintf("has a row that is not found in Linux %s: %s", c.series, rest))
			}
		}
	}
	return differences
}

func TestTableOfDevices(t *testing.T) {
	const both = `    a_test.go:1: device {"device":"veth","linkType":"ether","mode":"drv","sees":"each packet"}` + "\n"
	old := parse(both+`    a_test.go:1: device {"device":"vrf","linkType":"ether","mode":"skb","refused":"native","sees":"nothing","reason":"it is a vrf"}`+"\n", nil)
	recent := parse(both+`    a_test.go:1: device {"device":"netkit","linkType":"ether","mode":"skb","sees":"each packet"}
    a_test.go:1: device {"device":"vrf","linkType":"ether","mode":"skb","sees":"each packet","below":"outer UDP flow"}
    a_test.go:1: device {"device":"nlmon","linkType":"netlink","mode":"","sees":""}`+"\n", nil)
	got := table{{kernels[1], old}, {kernels[2], recent}}
	text := got.deviceMarkdown()
	const want = `| device | link type | audited | refused | the audit sees | the audit of the device below sees | Linux |
| --- | --- | --- | --- | --- | --- | --- |
| veth | ether | native, generic | – | each packet | – | 6.1, 6.12 |
| netkit | ether | generic | – | each packet | – | 6.12 |
| vrf | ether | generic | native | nothing: it is a vrf | – | 6.1 |
| vrf | ether | generic | – | each packet | outer UDP flow | 6.12 |
| nlmon | netlink | – | – | – | – | 6.12 |
`
	if text != want {
		t.Errorf("got:\n%s\nwant:\n%s", text, want)
	}
	for _, some := range []table{got, got[:1], got[1:]} {
		if differences := some.deviceDifferences("# Devices\n\n" + text); len(differences) != 0 {
			t.Errorf("differences of the table from itself: %q", differences)
		}
	}
	changed := strings.Replace(text, "netkit | ether | generic", "netkit | ether | native", 1)
	if differences := got.deviceDifferences(changed); len(differences) != 2 || !strings.Contains(differences[0], "no row for Linux 6.12: | netkit") ||
		!strings.Contains(differences[1], "not found in Linux 6.12: | netkit") {
		t.Errorf("got %q", differences)
	}
	if differences := got[:1].deviceDifferences(changed); len(differences) != 0 {
		t.Errorf("differences from another kernel: %q", differences)
	}
}
