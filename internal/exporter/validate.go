// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/exporter-toolkit/web"
	"go.yaml.in/yaml/v2"
	"golang.org/x/crypto/bcrypt"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/internal/pages"
	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
	"github.com/xdp-audit/xdp_audit_exporter/internal/regularfile"
)

// validate checks the flags and completes the configuration of the audit, as far as that is
// possible without the kernel.
func (o *options) validate() (err error) {
	if o.audit, err = o.auditConfig(); err != nil {
		return err
	}
	if err := o.readLeak(); err != nil {
		return err
	}
	return o.validateWeb()
}

// validateWeb checks the flags of the web server, and its configuration.
func (o *options) validateWeb() error {
	if !isPlainPath(o.telemetryPath) {
		return flagError("web.telemetry-path", fmt.Errorf("%q is not a plain path such as /metrics", o.telemetryPath))
	}
	if !o.withoutPages && pages.IsTaken(o.telemetryPath) {
		return flagError("web.telemetry-path", fmt.Errorf("%q is the path of a page: use another one, or --web.disable-ui", o.telemetryPath))
	}
	// Reading a pipe may wait for ever, and the file is read again for each connection.
	config := *o.web.WebConfigFile
	if err := regularfile.Check(config); err != nil && !isAbsent(config) {
		return flagError("web.config.file", err)
	}
	if err := o.checkSockets(); err != nil {
		return err
	}
	if err := checkPasswords(config); err != nil {
		return flagError("web.config.file", fmt.Errorf("%s: %w", config, err))
	}
	if err := web.Validate(config); err != nil {
		return flagError("web.config.file", fmt.Errorf("%s: %w", config, err))
	}
	return nil
}

// checkPasswords returns an error that names the user whose password is not a hash. That of the
// toolkit does not. A file that cannot be read or parsed is left to the toolkit.
func checkPasswords(config string) error {
	var content web.Config
	if text, err := os.ReadFile(config); err != nil || yaml.Unmarshal(text, &content) != nil {
		return nil
	}
	for _, user := range slices.Sorted(maps.Keys(content.Users)) {
		if _, err := bcrypt.Cost([]byte(content.Users[user])); err != nil {
			return fmt.Errorf("basic_auth_users: the password of user %q is not a bcrypt hash: "+
				"create one with htpasswd -nBC 10 %s: %w", user, printable.ShellWord(user), err)
		}
	}
	return nil
}

// auditConfig returns the configuration of the audit.
func (o *options) auditConfig() (bpf.Config, error) {
	config := o.audit
	config.Devices, config.Globs = splitDevices(o.devices)
	switch {
	case len(config.Devices) > 0 || len(config.Globs) > 0:
	case len(o.devices) > 0:
		return config, o.flagError("audit.device", fmt.Errorf("%q names no device: name one, or leave it out to audit the devices that hold a default route",
			strings.Join(o.devices, ",")))
	default:
		config.DefaultRoute = true
		if !o.isModeGiven { // in native mode some drivers restart the device
			config.Mode = bpf.ModeGeneric
		}
	}
	config.Follow = o.follow || !o.isFollowGiven && (len(config.Globs) > 0 || config.DefaultRoute)
	config.AllowNone = o.follow
	if o.covertFlows == 0 || o.covertFlows > bpf.MaxWatches {
		return config, o.flagError("collector.covert.flows", fmt.Errorf(
			"%d is not between 1 and %d; --no-collector.covert disables the collector", o.covertFlows, bpf.MaxWatches))
	}
	if slices.Contains(o.collectors, "covert") {
		config.Watches = o.covertFlows
	}
	if o.leakFile != "" { // even without an assessment: a reload may add one
		if config.Clock == bpf.ClockMetadata {
			return config, flagError(leakFlag, fmt.Errorf("the clock metadata has no time of responses: use --audit.clock=%s", bpf.ClockKtime))
		}
		if config.ExchangeConnections = o.leakConnections; config.ExchangeConnections == 0 {
			return config, flagError("leak.connections", errors.New("0 is too few: use at least 8"))
		}
	}
	if err := config.Validate(); err != nil {
		return config, o.nameFlag(err)
	}
	return config, o.applyBaselineFile(&config)
}

// flagOf names the flag that sets a field of the configuration.
var flagOf = map[string]string{
	"Devices": "audit.device", "Globs": "audit.device", "MaxDevices": "audit.max-devices", "Mode": "audit.mode",
	"Clock": "audit.clock", "Threshold": "audit.threshold", "Clip": "audit.clip", "MinSamples": "audit.min-samples", "Window": "audit.window",
	"Domain": "audit.domain", "Baseline": "audit.baseline", "IdleTimeout": "audit.idle-timeout", "Calibrate": "audit.calibrate",
	"Flows": "audit.flows", "EventRate": "audit.event-rate", "Watches": "collector.covert.flows",
	"PinPath": "bpf.pin-path", "ExchangeConnections": "leak.connections",
}

// nameFlag names the flag in an error of bpf.Config.Validate, if one flag alone is at fault.
func (o *options) nameFlag(err error) error {
	var invalid *bpf.ConfigError
	if errors.As(err, &invalid) && flagOf[invalid.Field] != "" {
		return o.flagError(flagOf[invalid.Field], err)
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
	return isPlain && !slices.Contains([]string{healthyPath, readyPath, leakPath, reloadPath}, p)
}
