// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

const (
	// resyncInterval is how often the devices are listed when the kernel reports no change: it does
	// not report that a program was detached by force, nor that another's program left a device.
	resyncInterval = 10 * time.Second

	// lookInterval is the shortest time between two looks at the devices. The first change after it
	// is looked at immediately.
	lookInterval = 200 * time.Millisecond

	// lookShare is the inverse of the share of its time that the exporter may look at devices when
	// they change all the time. A host may have thousands of devices.
	lookShare = 20
)

// subscription reports changes of network devices, like [netdev.Subscription].
type subscription interface {
	Changes() <-chan struct{}
	Close()
}

// follow brings the set in line with the network devices at changes and at each resyncInterval,
// until the context ends. Unless devices are followed, it only takes hooks from devices that are
// not what they were.
func (s *deviceSet) follow(ctx context.Context) {
	resync := time.NewTicker(resyncInterval)
	defer resync.Stop()
	var changes subscription
	defer func() {
		if changes != nil {
			changes.Close()
		}
	}()
	refusal := ""
	for isRetry := false; ctx.Err() == nil; {
		if changes == nil {
			var err error
			if changes, err = s.kernel.subscribe(); err != nil {
				changes = nil
				if err.Error() != refusal {
					refusal = err.Error()
					s.logger.Error("Cannot subscribe to device changes: looking for devices every 10 seconds", "err", err)
				}
			}
		}
		var pause time.Duration
		if err := s.change(func() (err error) { pause, err = s.followOnce(ctx, isRetry); return err }); err != nil {
			s.logger.Error("Cannot look at the devices: trying again in at most 10 seconds", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		var reports <-chan struct{}
		if changes != nil {
			reports = changes.Changes()
		}
		select {
		case <-ctx.Done():
		case <-resync.C:
			isRetry = true
		case _, isOpen := <-reports:
			isRetry = false
			if !isOpen {
				changes.Close()
				changes = nil
			}
		}
	}
}

// followOnce looks at the devices. It returns how long to pause before the next look.
func (s *deviceSet) followOnce(ctx context.Context, isRetry bool) (pause time.Duration, err error) {
	begin := time.Now()
	devices, err := s.look()
	pause = min(max(lookInterval, lookShare*time.Since(begin)), resyncInterval)
	switch {
	case err != nil:
	case s.config.Follow:
		s.resync(ctx, devices, isRetry)
	default:
		s.detachStale(devices)
	}
	return pause, err
}

// look lists the network devices. Unless devices are followed, it looks up those that have hooks.
func (s *deviceSet) look() ([]netdev.Device, error) {
	if s.config.Follow {
		return s.kernel.listDevices()
	}
	var indices []int
	for _, d := range s.listed {
		if d.link != nil {
			indices = append(indices, d.ifindex)
		}
	}
	return s.lookUp(indices)
}
