// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package bpf

import (
	"context"
	"time"

	"github.com/xdp-audit/xdp_audit_exporter/internal/netdev"
)

// resyncInterval is how often the devices are listed when the kernel reports no change: it does not
// report that a program was detached by force, nor that another's program left a device.
const resyncInterval = 10 * time.Second

// follow brings the set in line with the network devices at each change and each resyncInterval,
// until the context ends. Unless devices are followed, it only takes hooks from devices that are not
// what they were.
func (s *deviceSet) follow(ctx context.Context) {
	resync := time.NewTicker(resyncInterval)
	defer resync.Stop()
	var changes *netdev.Subscription
	defer func() { changes.Close() }()
	refusal := ""
	for isRetry := false; ctx.Err() == nil; {
		if changes == nil {
			var err error
			if changes, err = netdev.Subscribe(); err != nil && err.Error() != refusal {
				refusal = err.Error()
				s.logger.Error("Cannot subscribe to device changes: looking for devices every 10 seconds", "err", err)
			}
		}
		if err := s.change(func() error { return s.followOnce(ctx, isRetry) }); err != nil {
			s.logger.Error("Cannot look at the devices: trying again in at most 10 seconds", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-resync.C:
			isRetry = true
		case _, isOpen := <-changes.Changes():
			isRetry = false
			if !isOpen {
				changes.Close()
				changes = nil
			}
		}
	}
}

func (s *deviceSet) followOnce(ctx context.Context, isRetry bool) error {
	if s.config.Follow {
		devices, err := netdev.List()
		if err == nil {
			s.resync(ctx, devices, isRetry)
		}
		return err
	}
	var indices []int
	for _, d := range s.listed {
		if d.link != nil {
			indices = append(indices, d.ifindex)
		}
	}
	devices, err := s.lookUp(indices)
	if err == nil {
		s.detachStale(devices)
	}
	return err
}
