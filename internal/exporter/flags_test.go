// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/bpf"
	"github.com/xdp-audit/xdp_audit_exporter/collector"
)

// TestConfig says which configuration the flags and the environment make.
func TestConfig(t *testing.T) {
	config := func(edit func(c *bpf.Config)) bpf.Config {
		c := bpf.DefaultConfig()
		c.Devices = []string{"eth0"}
		edit(&c)
		return c
	}
	tests := []struct {
		description string
		env         map[string]string
		args        []string
		want        bpf.Config
	}{
		{"defaults", nil, []string{"--audit.device=eth0"}, config(func(*bpf.Config) {})},
		{
			"every flag", nil,
			[]string{
				"--audit.device=eth0", "--audit.device=eth1,eth2", "--audit.mode=auto", "--audit.threshold=4.5", "--audit.clip=2.5", "--audit.min-samples=30",
				"--audit.window=1000", "--audit.idle-timeout=250ms", "--audit.flows=1024", "--audit.event-rate=0", "--audit.clock=metadata",
				"--audit.baseline=device", "--audit.domain=log2", "--audit.calibrate=0.001",
				"--audit.follow", "--audit.max-devices=8", "--bpf.pin-path=/sys/fs/bpf/a",
			},
			bpf.Config{
				Devices: []string{"eth0", "eth1", "eth2"}, Mode: bpf.ModeAuto, Clock: bpf.ClockMetadata, Threshold: 4.5, Clip: 2.5, MinSamples: 30,
				Window: 1000, IdleTimeout: 250 * time.Millisecond, Flows: 1024, EventRate: 0, Domain: bpf.DomainLog2, Baseline: bpf.BaselineDevice,
				Calibrate: 0.001, Follow: true, AllowNone: true, MaxDevices: 8, PinPath: "/sys/fs/bpf/a",
			},
		},
		{
			"every variable",
			map[string]string{
				"XDP_INTERFACE": "eth0, eth1,", "XDP_MODE": "skb", "XDP_AUDIT_THRESHOLD": "5", "XDP_AUDIT_CLIP": "0", "XDP_AUDIT_MIN_SAMPLES": "50",
				"XDP_AUDIT_WINDOW": "2000", "XDP_AUDIT_IDLE_TIMEOUT": "2s", "XDP_AUDIT_FLOWS": "64", "XDP_AUDIT_EVENT_RATE": "7",
				"XDP_AUDIT_CLOCK": "metadata", "XDP_AUDIT_BASELINE": "device", "XDP_AUDIT_DOMAIN": "log2", "XDP_AUDIT_CALIBRATE": "0",
				"XDP_AUDIT_FOLLOW": "false", "XDP_AUDIT_MAX_DEVICES": "9", "XDP_AUDIT_PIN_PATH": "/sys/fs/bpf/b",
			},
			nil,
			bpf.Config{
				Devices: []string{"eth0", "eth1"}, Mode: bpf.ModeGeneric, Clock: bpf.ClockMetadata, Threshold: 5, MinSamples: 50,
				Window: 2000, IdleTimeout: 2 * time.Second, Flows: 64, EventRate: 7, Domain: bpf.DomainLog2, Baseline: bpf.BaselineDevice,
				MaxDevices: 9, PinPath: "/sys/fs/bpf/b",
			},
		},
		{
			"a flag wins over its variable", map[string]string{"XDP_INTERFACE": "eth1", "XDP_MODE": "skb"},
			[]string{"--audit.device=eth0", "--audit.mode=drv"}, config(func(*bpf.Config) {}),
		},
		{
			"an empty variable is none", map[string]string{"XDP_INTERFACE": "eth0", "XDP_MODE": "", "XDP_AUDIT_FLOWS": ""},
			nil, config(func(*bpf.Config) {}),
		},
		{
			"a name with characters that are escaped", map[string]string{"XDP_INTERFACE": "a%2cb,x%5b1%5d,ba%ffd0"}, nil,
			config(func(c *bpf.Config) { c.Devices = []string{"a%2cb", "x%5b1%5d", "ba%ffd0"} }),
		},
		{
			"a glob is followed", nil, []string{"--audit.device=eth0,l[o]"},
			config(func(c *bpf.Config) { c.Globs, c.Follow = []string{"l[o]"}, true }),
		},
		{
			"no device", nil, nil,
			config(func(c *bpf.Config) {
				c.Devices, c.DefaultRoute, c.Follow, c.Mode = nil, true, true, bpf.ModeGeneric
			}),
		},
		{
			"no device, in a mode", nil, []string{"--audit.mode=drv"},
			config(func(c *bpf.Config) { c.Devices, c.DefaultRoute, c.Follow = nil, true, true }),
		},
		{
			"no device, in the mode of a variable", map[string]string{"XDP_MODE": "auto", "XDP_INTERFACE": ""}, []string{"--no-audit.follow"},
			config(func(c *bpf.Config) { c.Devices, c.DefaultRoute, c.Mode = nil, true, bpf.ModeAuto }),
		},
		{
			"no device needs to be there", nil, []string{"--audit.follow"},
			config(func(c *bpf.Config) {
				c.Devices, c.DefaultRoute, c.Follow, c.AllowNone, c.Mode = nil, true, true, true, bpf.ModeGeneric
			}),
		},
	}
	for _, test := range tests {
		t.Run(test.description, func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			var got bpf.Config
			open := func(_ context.Context, c bpf.Config, _ *slog.Logger) (audit, error) {
				got = c
				return nil, errors.New("far enough")
			}
			args := append([]string{"--web.listen-address=127.0.0.1:0"}, test.args...)
			if err := run(context.Background(), args, io.Discard, io.Discard, open, dropNothing); err == nil || err.Error() != "far enough" {
				t.Fatal(err)
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestBadEnvironment(t *testing.T) {
	t.Setenv("XDP_AUDIT_FLOWS", "many")
	err := run(context.Background(), []string{"--audit.device=eth0"}, io.Discard, io.Discard, mustNotOpen(t), dropNothing)
	expectError(t, err, "--audit.flows (XDP_AUDIT_FLOWS)", `"many"`, "0 to 4294967295", "--help")
}

// Each field of the configuration that can be invalid alone has a flag that exists.
func TestFlagOf(t *testing.T) {
	var help strings.Builder
	if _, err := parseFlags([]string{"--help"}, &help); err != nil {
		t.Fatal(err)
	}
	for field, flag := range flagOf {
		if _, isField := reflect.TypeFor[bpf.Config]().FieldByName(field); !isField {
			t.Errorf("the configuration has no field %s", field)
		}
		if !strings.Contains(help.String(), "--"+flag) {
			t.Errorf("%s has the flag --%s, which does not exist", field, flag)
		}
	}
}

func TestSplitDevices(t *testing.T) {
	tests := []struct {
		description  string
		values       []string
		names, globs []string
	}{
		{"names in their order", []string{"tap0", "eth1,eth0"}, []string{"tap0", "eth1", "eth0"}, nil},
		{"globs apart from names", []string{"eth?,lo", "eth[1-9]*"}, []string{"lo"}, []string{"eth?", "eth[1-9]*"}},
		{"spaces and empty values", []string{" lo , ", ""}, []string{"lo"}, nil},
		{"a name given twice is left to be refused", []string{"lo", "lo"}, []string{"lo", "lo"}, nil},
	}
	for _, test := range tests {
		t.Run(test.description, func(t *testing.T) {
			names, globs := splitDevices(test.values)
			if !slices.Equal(names, test.names) || !slices.Equal(globs, test.globs) {
				t.Errorf("got %v and %v, want %v and %v", names, globs, test.names, test.globs)
			}
		})
	}
}

func TestFollowing(t *testing.T) {
	for _, test := range []struct {
		description       string
		args              []string
		follow, allowNone bool
	}{
		{"names are not followed", []string{"--audit.device=eth0"}, false, false},
		{"globs are followed, but one device has to be there", []string{"--audit.device=eth*"}, true, false},
		{"names are followed on demand, and waited for", []string{"--audit.device=eth0", "--audit.follow"}, true, true},
		{"globs are only expanded on demand", []string{"--audit.device=eth*", "--no-audit.follow"}, false, false},
	} {
		t.Run(test.description, func(t *testing.T) {
			o, err := parseFlags(test.args, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			config, err := o.auditConfig()
			if err != nil || config.Follow != test.follow || config.AllowNone != test.allowNone {
				t.Errorf("got %+v and error %v", config, err)
			}
		})
	}
}

func TestWatchedFlows(t *testing.T) {
	for _, test := range []struct {
		args []string
		want uint32
		err  []string
	}{
		{nil, 0, nil},
		{[]string{"--collector.covert.flows=8"}, 0, nil},
		{[]string{"--collector.covert"}, 64, nil},
		{[]string{"--collector.covert", "--collector.covert.flows=8"}, 8, nil},
		{[]string{"--collector.covert", "--collector.covert.flows=0"}, 0,
			[]string{"--collector.covert.flows", "between 1 and 255", "--no-collector.covert"}},
		{[]string{"--collector.covert", "--collector.covert.flows=256"}, 0, []string{"256", "255"}},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			o, err := parseFlags(append(test.args, "--audit.device=eth0"), io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			config, err := o.auditConfig()
			if test.err != nil {
				expectError(t, err, test.err...)
				return
			}
			if err != nil || config.Watches != test.want {
				t.Errorf("%d watches and error %v, want %d", config.Watches, err, test.want)
			}
		})
	}
}

func TestCollectorFlags(t *testing.T) {
	tests := []struct {
		args []string
		want []string
	}{
		{nil, collector.Defaults()},
		{[]string{"--no-collector.timing", "--no-collector.trail"}, []string{"packets", "flags", "events", "flows", "program", "leak", "privileges"}},
		{[]string{"--collector.disable-defaults"}, []string{}},
		{[]string{"--collector.disable-defaults", "--collector.flags", "--collector.packets"}, []string{"packets", "flags"}},
		{[]string{"--collector.packets", "--collector.disable-defaults"}, []string{"packets"}},
	}
	for _, test := range tests {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			o, err := parseFlags(test.args, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if o.collectors == nil || !slices.Equal(o.collectors, test.want) {
				t.Errorf("got %q, want %q", o.collectors, test.want)
			}
		})
	}
}
