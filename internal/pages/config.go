// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package pages

import (
	"net/http"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/printable"
)

// Config is the content of the page of the configuration.
type Config struct {
	Time     time.Time `json:"time"`
	Settings []Setting `json:"settings"`
}

// config returns the flags with their values. A value may be any text, and the content of no file
// is among them.
func (s *Site) config(*http.Request) (any, error) {
	c := &Config{Time: s.Now(), Settings: []Setting{}}
	for _, setting := range s.Settings {
		setting.Value = printable.Line(setting.Value)
		c.Settings = append(c.Settings, setting)
	}
	return c, nil
}

// Given returns the number of settings that are not the default.
func (c *Config) Given() (n int) {
	for i := range c.Settings {
		if c.Settings[i].Source != "default" {
			n++
		}
	}
	return n
}
