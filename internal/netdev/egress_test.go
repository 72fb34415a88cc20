// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package netdev

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What is in the way of the filter of outgoing packets is found before it is added. With ingress in
// the place of clsact, the kernel would add the filter to what the device receives.
func TestInspectEgressFilters(t *testing.T) {
	const loopback, noProgram = 1, -1
	qdisc := func(kind string) error {
		return netlink.QdiscAdd(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: loopback, Handle: clsactHandle, Parent: netlink.HANDLE_CLSACT}, QdiscType: kind,
		})
	}
	match := func(priority uint16) error {
		return netlink.FilterAdd(&netlink.U32{ClassId: 1, FilterAttrs: netlink.FilterAttrs{
			LinkIndex: loopback, Parent: netlink.HANDLE_MIN_EGRESS, Priority: priority, Protocol: unix.ETH_P_ALL,
		}})
	}
	for _, test := range []struct {
		name      string
		add       func() error
		hasClsact bool
		names     []string
		refusal   string
	}{
		{"nothing", func() error { return nil }, false, nil, ""},
		{"ingress", func() error { return qdisc("ingress") }, false, nil, "ingress takes the place of clsact"},
		{"clsact", func() error { return qdisc("clsact") }, true, nil, ""},
		{"a later filter", func() error { return errors.Join(qdisc("clsact"), match(7)) }, true, []string{"u32 (priority 7)"}, ""},
		{"another first filter", func() error { return errors.Join(qdisc("clsact"), match(1), match(2)) }, true,
			[]string{"u32 (priority 1)", "u32 (priority 2)"}, "u32 (priority 1) takes the place of the first one"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got EgressFilters
			var replaced error
			err := newNamespace(t).Do(func() (err error) {
				if err := test.add(); err != nil {
					return err
				}
				got, err = InspectEgressFilters(loopback)
				replaced = ReplaceEgressFilter(loopback, noProgram, "test")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			isRefused := test.refusal != ""
			if got.HasClsact != test.hasClsact || !slices.Equal(got.Names, test.names) || (got.Refusal != "") != isRefused || !strings.Contains(got.Refusal, test.refusal) {
				t.Errorf("got %+v", got)
			}
			if replaced == nil || isRefused != strings.Contains(replaced.Error(), "takes the place of") {
				t.Errorf("adding the filter: %v", replaced)
			}
		})
	}
}
