// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

// LowersFirst returns names of devices in their order, except that a device follows those below it:
// the ports of a bridge or bond, and the device of a VLAN. The kernel refuses an XDP program on a
// device below one that has a program, and accepts it in the other order.
func LowersFirst(names []string, devices []Device) []string {
	wanted := make(map[string]bool, len(names))
	for _, name := range names {
		wanted[name] = true
	}
	byName, byIndex, ports := map[string]*Device{}, map[int]*Device{}, map[int][]*Device{}
	for i := range devices {
		d := &devices[i]
		byName[d.Name], byIndex[d.Index] = d, d
		if d.Master != 0 {
			ports[d.Master] = append(ports[d.Master], d)
		}
	}
	ordered := make([]string, 0, len(names))
	isVisited := make(map[*Device]bool, len(names))
	var visit func(d *Device)
	visit = func(d *Device) {
		if d == nil || isVisited[d] {
			return
		}
		isVisited[d] = true
		visit(byIndex[d.Lower])
		for _, port := range ports[d.Index] {
			visit(port)
		}
		if wanted[d.Name] {
			ordered = append(ordered, d.Name)
		}
	}
	for _, name := range names {
		if d := byName[name]; d != nil {
			visit(d)
		} else {
			ordered = append(ordered, name)
		}
	}
	return ordered
}
