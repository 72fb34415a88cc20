// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* Measures the response times of services in addition to the audit: the program of incoming packets
 * is the audit's, extended, and another one sees the packets that leave the device.
 */

#include "xdp_audit.bpf.c"

#include "exchange_receive.h"
#include "exchange_send.h"

#define TCX_NEXT -1 /* the next program decides; TC_ACT_UNSPEC for clsact */

static __always_inline int xdp_exchange_body(struct xdp_md *ctx)
{
	struct packet_state state;
	struct packet packet;
	__u32 slot;

	if (audit_parse(ctx, &state, &packet))
		return XDP_PASS;
	slot = slot_of_port(packet.kind, packet.ports >> 16);
	state.now_ns = 0; /* of a packet without a time */
	audit_flow(&state, &packet);
	if (unlikely(slot) && state.now_ns)
		exchange_receive(ctx, packet.addresses, state.now_ns, packet.kind,
				 (slot - 1) << 8 | packet.ip_offset);
	return XDP_PASS;
}

SEC("xdp.frags")
int xdp_exchange(struct xdp_md *ctx)
{
	return xdp_exchange_body(ctx);
}

SEC("tc")
int tc_exchange(struct __sk_buff *skb)
{
	exchange_observe_sent(skb);
	return TCX_NEXT;
}
