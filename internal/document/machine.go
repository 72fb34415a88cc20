// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package document

import (
	"fmt"
	"os"
	"regexp"
	"runtime"

	"golang.org/x/sys/unix"
)

// Machine describes the machine of a measurement.
type Machine struct {
	CPU    string // model
	Cores  int
	Kernel string // version without the suffix, which may name the person who built it
}

// String returns the machine as in documents.
func (m Machine) String() string {
	return fmt.Sprintf("%s, %d cores, Linux %s", m.CPU, m.Cores, m.Kernel)
}

// ThisMachine returns the machine that runs this process.
func ThisMachine() (Machine, error) {
	m := Machine{CPU: runtime.GOARCH, Cores: runtime.NumCPU()}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return m, fmt.Errorf("reading the kernel's version: %w", err)
	}
	m.Kernel = regexp.MustCompile(`^[0-9.]*[0-9]`).FindString(unix.ByteSliceToString(name.Release[:]))
	cpus, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	if model := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(cpus); model != nil {
		m.CPU = string(model[1])
	}
	return m, nil
}
