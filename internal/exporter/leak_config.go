// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/appendfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessment"
	"github.com/xdp-audit/xdp_audit_exporter/internal/assessmentfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

const (
	leakFlag = "leak.config.file"
	rawFlag  = "leak.raw-file"
)

// readLeak reads the configuration of leak assessments, and checks the flags of raw files.
func (o *options) readLeak() error {
	if o.leakFile == "" {
		if o.rawFile != "" {
			return flagError(rawFlag, fmt.Errorf("%s needs assessments: give --%s as well", o.rawFile, leakFlag))
		}
		return nil
	}
	if strings.Contains(filepath.Dir(o.rawFile), assessment.RawName) {
		return flagError(rawFlag, fmt.Errorf("%s has %s in the name of a directory: put it into the name of the file", o.rawFile, assessment.RawName))
	}
	if o.rawFile == appendfile.Stdout && o.trailFile == appendfile.Stdout {
		return flagError(rawFlag, errors.New("standard output is that of --trail.file: use a file for one of them"))
	}
	file, err := o.readAssessments()
	if err != nil {
		return err
	}
	o.leak = file
	return o.checkRawPaths()
}

// checkRawPaths returns an error if a raw file is another file of the exporter.
func (o *options) checkRawPaths() error {
	for _, raw := range o.rawFiles() {
		for _, other := range []struct{ flag, path string }{{leakFlag, o.leakFile}, {"trail.file", o.trailFile}, {"audit.baseline-file", o.baselineFile}} {
			if other.path != "" && isSameFile(raw, other.path) {
				return flagError(rawFlag, fmt.Errorf("%s is the file of --%s: use another file", raw, other.flag))
			}
		}
	}
	return nil
}

// isSameFile reports whether two paths are, or would be, those of one file.
func isSameFile(a, b string) bool {
	one, err := os.Stat(a)
	other, err2 := os.Stat(b)
	if err != nil || err2 != nil {
		return filepath.Clean(a) == filepath.Clean(b)
	}
	return os.SameFile(one, other)
}

// readAssessments returns the content of the configuration file, of which the exporter can audit
// the devices.
func (o *options) readAssessments() (*assessmentfile.File, error) {
	file, err := assessmentfile.Read(o.leakFile)
	if err != nil {
		return nil, flagError(leakFlag, err)
	}
	present, err := netdev.List()
	if err != nil {
		present = nil // names of the flags alone
	}
	for i := range file.Assessments {
		if a := &file.Assessments[i]; a.Device != "" && !audits(&o.audit, a.Device, present) {
			return nil, flagError(leakFlag, fmt.Errorf(
				"%s: assessment %s: device %s is not audited: use the kernel's name of a device of --audit.device, or remove the key", o.leakFile, a.Name, a.Device))
		}
	}
	return file, nil
}

// audits reports whether a device with this name would be audited.
func audits(config *bpf.Config, name string, present []netdev.Device) bool {
	for _, given := range config.Devices {
		device, isHere := netdev.Find(given, present)
		if given == name || isHere && device.Name == name {
			return true
		}
	}
	return slices.ContainsFunc(config.Globs, func(glob string) bool {
		return len(netdev.Match(glob, []netdev.Device{{Name: name}})) > 0
	})
}

// names returns the names of the assessments.
func names(file *assessmentfile.File) []string {
	names := []string{}
	for i := range file.Assessments {
		names = append(names, file.Assessments[i].Name)
	}
	return names
}

// rawFiles returns the paths of the raw files of the assessments.
func (o *options) rawFiles() (paths []string) {
	if o.rawFile == "" || o.rawFile == appendfile.Stdout || o.leak == nil {
		return nil
	}
	for _, name := range names(o.leak) {
		paths = append(paths, strings.ReplaceAll(o.rawFile, assessment.RawName, name))
	}
	return paths
}

// checkRaw returns the error with which the raw files cannot be opened, and creates none.
func (o *options) checkRaw() error {
	if err := assessment.CheckRawPath(o.rawFile, len(names(o.leak))); err != nil {
		return flagError(rawFlag, err)
	}
	for _, path := range o.rawFiles() {
		if err := appendfile.Check(path); err != nil {
			return flagError(rawFlag, err)
		}
	}
	return nil
}

// leakNeeds adds what reloads and rotations need.
func (o *options) leakNeeds(needs *privilege.Needs) {
	if o.leakFile == "" {
		return
	}
	needs.Read = append(needs.Read, o.leakFile)
	if o.rawFile == "" || o.rawFile == appendfile.Stdout {
		return
	}
	// A reload may add assessments, whose files do not exist yet.
	if directory := filepath.Dir(o.rawFile); !privilege.IsShared(directory) {
		needs.Create = append(needs.Create, directory)
		return
	}
	needs.Append = append(needs.Append, o.rawFiles()...)
}
