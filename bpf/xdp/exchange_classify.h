/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The assessment and the class of a packet. */

#ifndef XDP_AUDIT_EXCHANGE_CLASSIFY_H
#define XDP_AUDIT_EXCHANGE_CLASSIFY_H

#include "exchange_segment.h"

/* Returns the slot plus 1 of the assessment of a port, in network order; 0 for none. */
static __always_inline __u32 slot_of_port(__u8 ip_protocol, __u32 port)
{
	port &= PORTS - 1;
	if (ip_protocol == IPPROTO_TCP)
		return exchange_ports[0][port];
	if (ip_protocol == IPPROTO_UDP)
		return exchange_ports[1][port];
	return 0;
}

static __always_inline bool has_source(const struct exchange_class *class,
				       const struct frame *frame, __u32 offset, __u8 family)
{
	const struct ipv6hdr *ip6 = frame_at(frame, offset);
	const struct iphdr *ip = frame_at(frame, offset);
	const __be32 *source = ip6->saddr.in6_u.u6_addr32;

	if (family == FAMILY_IPV4)
		return frame_has(frame, ip, sizeof(*ip)) &&
		       (ip->saddr & class->source_mask[0]) == class->source[0];
	return frame_has(frame, ip6, sizeof(*ip6)) &&
	       (source[0] & class->source_mask[0]) == class->source[0] &&
	       (source[1] & class->source_mask[1]) == class->source[1] &&
	       (source[2] & class->source_mask[2]) == class->source[2] &&
	       (source[3] & class->source_mask[3]) == class->source[3];
}

/* Whether a packet is of a class. Its header of IP is at `offset`. */
static __always_inline bool is_of_class(const struct exchange_class *class,
					const struct frame *frame, __u32 offset,
					const struct segment *segment, __u32 vlan_id)
{
	__u32 kind = vlan_id << 16 | segment->family << 8 | segment->dscp;
	__u16 port = bpf_ntohs(segment->ports);

	if ((kind & class->kind_mask) != class->kind)
		return false;
	if ((__u16)(port - class->port_low) > class->port_span)
		return false;
	return !class->has_source || has_source(class, frame, offset, segment->family);
}

/* Returns the class of a packet; CLASSES for none. User space allows no packet of both classes. */
static __always_inline __u32 class_of(const struct exchange_assessment *assessment,
				      const struct frame *frame, __u32 offset,
				      const struct segment *segment, __u32 vlan_id)
{
	if (is_of_class(&assessment->classes[0], frame, offset, segment, vlan_id))
		return 0;
	if (is_of_class(&assessment->classes[1], frame, offset, segment, vlan_id))
		return 1;
	return CLASSES;
}

#endif
