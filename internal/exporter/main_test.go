// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package exporter

import (
	"strings"
	"testing"
)

func TestIsJSON(t *testing.T) {
	for args, want := range map[string]bool{
		"": false, "--log.format=json": true, "--log.format json": true, "--log.format=logfmt": false, "--log.format": false,
		"--nope --log.format=json": true, "--log.format=json --log.format=logfmt": false, "-- --log.format=json": false,
		"--log.format=json -- a": true, "--trail.file=--log.format=json": false,
	} {
		if got := isJSON(strings.Fields(args)); got != want {
			t.Errorf("%q: %t, want %t", args, got, want)
		}
	}
}
