// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/exporter-toolkit/web"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
)

// validate checks the flags and completes the configuration of the audit, as far as that is
// possible without the kernel.
func (o *options) validate() (err error) {
	if o.audit, err = o.auditConfig(); err != nil {
		return err
	}
	if !isPlainPath(o.telemetryPath) {
		return flagError("web.telemetry-path", fmt.Errorf("%q is not a plain path such as /metrics", o.telemetryPath))
	}
	// Reading a pipe may wait for ever, and the file is read again for each connection.
	if info, err := os.Stat(*o.web.WebConfigFile); err == nil && !info.Mode().IsRegular() {
		return flagError("web.config.file", fmt.Errorf("%s is not a regular file: use the path of a regular file", *o.web.WebConfigFile))
	}
	if err := o.checkSockets(); err != nil {
		return err
	}
	if err := web.Validate(*o.web.WebConfigFile); err != nil {
		return flagError("web.config.file", fmt.Errorf("%s: %w", *o.web.WebConfigFile, err))
	}
	return nil
}

// auditConfig returns the configuration of the audit.
func (o *options) auditConfig() (bpf.Config, error) {
	config := o.audit
	config.Devices, config.Globs = splitDevices(o.devices)
	if len(config.Devices) == 0 && len(config.Globs) == 0 {
		return config, errors.New("no device to audit: name at least one with --audit.device or XDP_INTERFACE")
	}
	config.Follow = o.follow || !o.isFollowGiven && len(config.Globs) > 0
	config.AllowNone = o.follow
	if slices.Contains(o.collectors, "covert") {
		if o.covertFlows == 0 {
			return config, flagError("collector.covert.flows",
				errors.New("0 is not between 1 and 255; --no-collector.covert disables the collector"))
		}
		config.Watches = o.covertFlows
	}
	if err := config.Validate(); err != nil {
		return config, nameFlag(err)
	}
	return config, o.applyBaselineFile(&config)
}

// flagOf names the flag that sets a field of the configuration.
var flagOf = map[string]string{
	"Devices": "audit.device", "Globs": "audit.device", "MaxDevices": "audit.max-devices", "Mode": "audit.mode",
	"Clock": "audit.clock", "Threshold": "audit.threshold", "MinSamples": "audit.min-samples", "Window": "audit.window",
	"Domain": "audit.domain", "Baseline": "audit.baseline", "IdleTimeout": "audit.idle-timeout", "Calibrate": "audit.calibrate",
	"Flows": "audit.flows", "EventRate": "audit.event-rate", "Watches": "collector.covert.flows",
}

// nameFlag names the flag in an error of bpf.Config.Validate, if one flag alone is at fault.
func nameFlag(err error) error {
	var invalid *bpf.ConfigError
	if errors.As(err, &invalid) && flagOf[invalid.Field] != "" {
		return flagError(flagOf[invalid.Field], err)
	}
	return err
}

// splitDevices splits values at commas into names and globs.
func splitDevices(values []string) (names, globs []string) {
	for _, value := range values {
		for device := range strings.SplitSeq(value, ",") {
			switch device = strings.TrimSpace(device); {
			case device == "":
			case strings.ContainsAny(device, "*?["):
				globs = append(globs, device)
			default:
				names = append(names, device)
			}
		}
	}
	return names, globs
}

// isPlainPath reports whether metrics can be served at a path: it is absolute, clean, without
// patterns, and none of the exporter's other paths.
func isPlainPath(p string) bool {
	isPlain := regexp.MustCompile(`^/[\w.~/-]*$`).MatchString(p) && path.Clean(p) == p
	return isPlain && p != healthyPath && p != readyPath
}
