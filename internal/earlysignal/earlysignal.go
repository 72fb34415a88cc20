// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package earlysignal receives signals from a time before main. The packages of the exporter
// take ten milliseconds to initialize, in which a signal without a receiver ends the process.
// This package imports nothing that takes long, so that the runtime initializes it early.
package earlysignal

import (
	"os"
	"os/signal"
	"syscall"
)

// Hangup receives SIGHUP. One signal waits until it is received.
var Hangup = receive(syscall.SIGHUP)

func receive(s os.Signal) <-chan os.Signal {
	received := make(chan os.Signal, 1)
	signal.Notify(received, s)
	return received
}
