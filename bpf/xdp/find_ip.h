/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Finds IP where it does not follow Ethernet and its tags: in a session of PPPoE (RFC 2516), below
 * a stack of MPLS labels (RFC 3032), and at the start of the frames of a device without Ethernet.
 */

#ifndef XDP_AUDIT_FIND_IP_H
#define XDP_AUDIT_FIND_IP_H

#include <linux/ip.h>
#include <linux/ipv6.h>

#include "compiler.h"
#include "frame.h"
#include "vlan.h"

#define PPPOE_VERSION_AND_TYPE 0x11
#define PPPOE_SESSION_DATA 0
#define PPPOE_HEADER 6 /* before the protocol, from where on its length counts */
#define PPP_IPV4 0x0021
#define PPP_IPV6 0x0057
#define MPLS_LABELS 8
#define MPLS_BOTTOM 1
#define IP_OFFSET_MASK 0x7f /* for the verifier: the headers before IP are shorter */

struct pppoe_session {
	__u8 version_and_type;
	__u8 code;
	__be16 session_id;
	__be16 len;
	__be16 protocol;
};

struct mpls_label {
	__be16 label;
	__u8 bottom; /* in its lowest bit */
	__u8 ttl;
};

/* Where IP is in a frame, in one register. End 0 is the end of the frame. */
#define PLACE(offset, version, vlan_id, end)                                                       \
	((__u64)(end) << 32 | (__u64)(vlan_id) << 16 | (version) << 8 | (offset))
#define PLACE_OFFSET(place) ((place)&IP_OFFSET_MASK)
#define PLACE_VERSION(place) ((place) >> 8 & 0xf)
#define PLACE_VLAN_ID(place) ((place) >> 16 & VLAN_ID_MASK)
#define PLACE_END(place) ((place) >> 32)

/* Whether something that may carry IP has this ethertype. */
static __always_inline bool is_encapsulation(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_PPP_SES) || ethertype == bpf_htons(ETH_P_MPLS_UC) ||
	       ethertype == bpf_htons(ETH_P_MPLS_MC);
}

/* The place of the header of IP at `offset`, or 0 if it has another version than 4 and 6. */
static __always_inline __u64 place_at(const struct frame *frame, __u32 offset, __u32 vlan_id)
{
	const __u8 *header = frame_at(frame, offset);
	__u8 version;

	if (!frame_has(frame, header, sizeof(*header)))
		return 0;
	version = *header >> 4;
	return version == 4 || version == 6 ? PLACE(offset, version, vlan_id, 0) : 0;
}

/* A session has a length of its own, because Ethernet pads short frames. */
static __always_inline __u64 find_in_pppoe(const struct frame *frame, __u32 offset, __u32 vlan_id)
{
	const struct pppoe_session *session = frame_at(frame, offset);
	__u32 end, version = 0, header_len = 0;

	if (!frame_has(frame, session, sizeof(*session)) ||
	    session->version_and_type != PPPOE_VERSION_AND_TYPE ||
	    session->code != PPPOE_SESSION_DATA)
		return 0;
	if (session->protocol == bpf_htons(PPP_IPV4)) {
		version = 4;
		header_len = sizeof(struct iphdr);
	} else if (session->protocol == bpf_htons(PPP_IPV6)) {
		version = 6;
		header_len = sizeof(struct ipv6hdr);
	}
	end = offset + PPPOE_HEADER + bpf_ntohs(session->len);
	offset += sizeof(*session);
	return version && end >= offset + header_len ? PLACE(offset, version, vlan_id, end) : 0;
}

/* No label says what is below the stack: the version of IP does. */
static __always_inline __u64 find_below_mpls(const struct frame *frame, __u32 offset, __u32 vlan_id)
{
	for (int i = 0; i < MPLS_LABELS; i++) {
		const struct mpls_label *label = frame_at(frame, offset);

		if (!frame_has(frame, label, sizeof(*label)))
			return 0;
		offset += sizeof(*label);
		if (label->bottom & MPLS_BOTTOM)
			return place_at(frame, offset, vlan_id);
	}
	return 0;
}

/* Returns the place of IP, or 0 if there is none. A global function, as parse_any() is. */
__noinline __u64 find_ip(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	__u32 vlan_id, stripped_id = 0;
	__be16 ethertype;
	int offset;

	if (config.link_layer == LINK_LAYER_NONE)
		return place_at(&frame, 0, 0);
	if (!frame_has(&frame, frame.data, sizeof(struct ethhdr)))
		return 0;
	offset = parse_tags(&frame, &ethertype, &vlan_id);
	if (offset < 0)
		return 0;
	if (config.link_layer == LINK_LAYER_STRIPPED) {
		stripped_id = stripped_vlan_id(ctx);
		if (stripped_id)
			vlan_id = stripped_id;
		if (ethertype == bpf_htons(ETH_P_IP))
			return PLACE(offset, 4, vlan_id, 0);
		if (ethertype == bpf_htons(ETH_P_IPV6))
			return PLACE(offset, 6, vlan_id, 0);
	}
	if (!is_encapsulation(ethertype))
		return 0;
	if (ethertype == bpf_htons(ETH_P_PPP_SES))
		return find_in_pppoe(&frame, offset, vlan_id);
	return find_below_mpls(&frame, offset, vlan_id);
}

#endif
