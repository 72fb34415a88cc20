// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v2"

	"github.com/xdp-audit/xdp_audit_exporter/collector"
	"github.com/xdp-audit/xdp_audit_exporter/internal/privilege"
	"github.com/xdp-audit/xdp_audit_exporter/internal/trail"
)

type dropFunc func(privilege.Needs, *slog.Logger) (privilege.Held, error)

// dropPrivileges gives up what the exporter no longer needs once it listens and its programs are attached, and checks that
// the files that it opens again can still be opened.
func (o *options) dropPrivileges(drop dropFunc, records *trail.Trail, logger *slog.Logger) (*collector.Privileges, error) {
	if o.keepPrivileges {
		held, err := privilege.Current()
		if err != nil {
			return nil, err
		}
		logger.Warn("Privileges are kept: whoever takes over this process has them too", "capabilities_kept", strings.Join(held.Capabilities, ","))
		return (*collector.Privileges)(&held), nil
	}
	config := *o.web.WebConfigFile
	needs := privilege.Needs{Read: webFiles(config), Attach: o.audit.Follow}
	if o.audit.PinPath != "" { // a start that fails unpins what it has pinned
		needs.Manage = []string{o.audit.PinPath}
	}
	if o.isToSave() {
		needs.Manage = append(needs.Manage, filepath.Dir(o.baselineFile))
	}
	if records != nil && o.trailFile != trail.Stdout {
		needs.Append = []string{o.trailFile}
	}
	held, err := drop(needs, logger)
	if err != nil {
		return nil, fmt.Errorf("%w: run with --privileges.keep to go on with all privileges", err)
	}
	if err := web.Validate(config); err != nil {
		return nil, fmt.Errorf("--web.config.file: %s cannot be used without privileges: make its files readable for user %d, or run with --privileges.keep: %w",
			config, os.Geteuid(), err)
	}
	if records != nil {
		if err := records.Reopen(); err != nil {
			logger.Warn("The audit trail cannot be opened again after it is moved", "err", err)
		}
	}
	return (*collector.Privileges)(&held), nil
}

// webFiles returns the files of a valid configuration of the web server, itself included: all of them are read again while
// it serves.
func webFiles(config string) []string {
	if config == "" {
		return nil
	}
	var content web.Config
	if text, err := os.ReadFile(config); err == nil {
		_ = yaml.Unmarshal(text, &content) // is valid
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
