// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build !privtest

package main

import "net/http"

// probes returns the paths that only the binary for the tests of privileges has.
func probes() map[string]http.Handler { return nil }
