/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The VLAN tag that a driver has removed from a frame. Only a program that is bound to its device
 * may ask for the tag: user space takes the call out of all others.
 */

#ifndef XDP_AUDIT_VLAN_H
#define XDP_AUDIT_VLAN_H

#include "frame.h"

extern int bpf_xdp_metadata_rx_vlan_tag(const struct xdp_md *ctx, __be16 *protocol,
					__u16 *control) __ksym __weak;

/* The id of the tag, or 0 if the driver has removed none. */
static __always_inline __u32 stripped_vlan_id(struct xdp_md *ctx)
{
	__be16 protocol = 0;
	__u16 control = 0;

	if (bpf_xdp_metadata_rx_vlan_tag(ctx, &protocol, &control))
		return 0;
	return control & VLAN_ID_MASK;
}

#endif
