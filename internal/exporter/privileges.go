// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v2"

	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/appendfile"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
)

type dropFunc func(privilege.Needs, *slog.Logger) (privilege.Held, error)

// dropPrivileges gives up every privilege that the exporter no longer needs. It checks that the
// files that are reopened later can still be opened.
func (e *exporter) dropPrivileges() (*collector.Privileges, error) {
	o := e.options
	if o.keepPrivileges {
		held, err := privilege.Current()
		if err != nil {
			return nil, err
		}
		e.logger.Warn("Privileges are kept: an attacker who takes over this process has the same privileges",
			"capabilities_kept", strings.Join(held.Capabilities, ","))
		return (*collector.Privileges)(&held), nil
	}
	drop := e.process.drop
	if drop == nil {
		drop = privilege.Drop
	}
	held, err := drop(e.needs(), e.logger)
	if err != nil {
		return nil, fmt.Errorf("%w: use --privileges.keep to continue with all privileges", err)
	}
	config := *o.web.WebConfigFile
	if err := web.Validate(config); err != nil {
		return nil, flagError("web.config.file", fmt.Errorf(
			"%s cannot be used without privileges: make its files readable for user %d, or use --privileges.keep: %w",
			config, os.Geteuid(), err))
	}
	if o.leakFile != "" {
		if _, err := o.readAssessments(); err != nil {
			return nil, fmt.Errorf("%w: make the file readable for user %d, or use --privileges.keep", err, os.Geteuid())
		}
	}
	if err := e.leak.reopen(); err != nil {
		e.logger.Warn("The raw file cannot be reopened after a rotation", "err", OneLine(err))
	}
	if e.trail != nil {
		if err := e.trail.Reopen(); err != nil {
			e.logger.Warn("The audit trail cannot be reopened after a rotation", "err", err)
		}
	}
	return (*collector.Privileges)(&held), nil
}

// refusePrograms gives up attaching programs, if the exporter attaches none any more.
func (e *exporter) refusePrograms() {
	if e.process.drop == nil && !e.options.keepPrivileges && !e.options.audit.Follow {
		privilege.RefusePrograms(e.logger)
	}
}

// needs returns the privileges that the exporter needs while it serves.
func (e *exporter) needs() privilege.Needs {
	o := e.options
	needs := privilege.Needs{Read: webFiles(*o.web.WebConfigFile), Attach: o.audit.Follow}
	if o.audit.PinPath != "" && (!o.check || !isAbsent(o.audit.PinPath)) {
		// A start that fails removes its pins.
		needs.Manage = []string{o.audit.PinPath}
	}
	if o.savesBaseline() {
		needs.Manage = append(needs.Manage, filepath.Dir(o.baselineFile))
	}
	needs.Remove = o.socketDirectories() // the files of Unix sockets, at the end
	if e.trail != nil && o.trailFile != appendfile.Stdout {
		needs.Append = []string{o.trailFile}
	}
	o.leakNeeds(&needs)
	return needs
}

// isAbsent reports whether there is no file at path. A check does not create the directory of pins.
func isAbsent(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// webFiles returns the files of a valid configuration of the web server, including the
// configuration. The server reads all of them again for each connection.
func webFiles(config string) []string {
	if config == "" {
		return nil
	}
	var content web.Config
	if text, err := os.ReadFile(config); err == nil {
		_ = yaml.Unmarshal(text, &content) // web.Validate has checked it
	}
	content.TLSConfig.SetDirectory(filepath.Dir(config))
	files := []string{config}
	for _, path := range []string{content.TLSConfig.TLSCertPath, content.TLSConfig.TLSKeyPath, content.TLSConfig.ClientCAs} {
		if path != "" {
			files = append(files, path)
		}
	}
	return files
}
