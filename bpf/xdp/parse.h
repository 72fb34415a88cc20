/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The complete parser: from the bytes of any frame to a struct packet. */

#ifndef XDP_AUDIT_PARSE_H
#define XDP_AUDIT_PARSE_H

#include <linux/ip.h>

#include "frame.h"
#include "hash.h"
#include "parse_ipv6.h"
#include "parse_transport.h"

#define IPV4_FRAGMENT_OFFSET_MASK 0x1fff

static __always_inline __u64 hash_ipv4_addresses(const struct iphdr *ip)
{
	return hash_pair(ip->saddr, ip->daddr, HASH_KEY_ADDRESSES);
}

static __always_inline int parse_ipv4(const struct frame *frame, __u32 offset,
				      struct packet *packet)
{
	const struct iphdr *ip = frame_at(frame, offset);
	__u32 header_len, total_len;
	__u8 protocol;

	packet->cell = protocol_cell(FAMILY_IPV4, PROTOCOL_OTHER);
	if (!frame_has(frame, ip, sizeof(*ip)) || ip->version != 4 || ip->ihl < 5)
		return -1;
	protocol = protocols[ip->protocol];
	packet->cell = protocol_cell(FAMILY_IPV4, protocol);
	packet->kind |= FAMILY_IPV4 << 8 | ip->protocol;
	header_len = ip->ihl * 4;
	total_len = bpf_ntohs(ip->tot_len);
	if (total_len < header_len || offset + total_len > frame_len(frame))
		return -1;
	packet->addresses = hash_ipv4_addresses(ip);
	if (ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET_MASK)) {
		packet->is_fragment = true;
		return 0;
	}
	return parse_transport(frame, offset + header_len, total_len - header_len, FAMILY_IPV4,
			       protocol, packet);
}

/* Parses a frame into a zeroed packet. Returns 0, or -1 if the frame is not IP, truncated or
 * malformed. Then cell and kind say as much as could be read.
 */
static __always_inline int parse_frame(const struct frame *frame, struct packet *packet)
{
	__be16 ethertype;
	__u32 vlan_id;
	int offset;

	packet->len_bytes = frame_len(frame);
	offset = parse_ethernet(frame, &ethertype, &vlan_id);
	if (offset < 0)
		return -1;
	packet->kind = vlan_id << 16;
	if (ethertype == bpf_htons(ETH_P_IP))
		return parse_ipv4(frame, offset, packet);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(frame, offset, packet);
	return -1;
}

/* Parses a frame in several buffers, which parse_frame() rejects because the lengths in its headers
 * reach beyond the first buffer. All headers have to be in the first buffer. Returns whether the
 * frame is such a frame and parsed.
 */
static __always_inline bool parse_frame_in_buffers(struct xdp_md *ctx, struct frame *frame,
						   struct packet *packet)
{
	__u32 first_bytes = frame_len(frame), len_bytes;

	if (!config.has_frags)
		return false;
	len_bytes = bpf_xdp_get_buff_len(ctx);
	if (len_bytes <= first_bytes)
		return false;
	frame->beyond_bytes = len_bytes - first_bytes;
	__builtin_memset(packet, 0, sizeof(*packet));
	return !parse_frame(frame, packet);
}

/* Parses any frame into a zeroed packet. Returns 0 or -1, as parse_frame() does. A global function,
 * so that the verifier follows it once and not once per path to it.
 */
__noinline int parse_any(struct xdp_md *ctx, struct packet *packet)
{
	struct frame frame = frame_of(ctx);

	if (!packet)
		return -1;
	if (!parse_frame(&frame, packet) || parse_frame_in_buffers(ctx, &frame, packet))
		return 0;
	return -1;
}

/* Reads the key of a parsed packet, except for its owner, with addresses from its frame. */
static __always_inline void read_key(struct xdp_md *ctx, const struct packet *packet,
				     struct flow_key *key)
{
	struct frame frame = frame_of(ctx);
	__be16 ethertype;
	__u32 vlan_id;
	int offset = parse_ethernet(&frame, &ethertype, &vlan_id);
	const struct iphdr *ip = frame_at(&frame, offset);
	const struct ipv6hdr *ip6 = frame_at(&frame, offset);

	__builtin_memset(key, 0, sizeof(*key));
	key->source_port = packet->ports;
	key->destination_port = packet->ports >> 16;
	key->vlan_id = packet->kind >> 16;
	key->ip_protocol = packet->kind;
	key->family = packet->kind >> 8;
	if (offset < 0)
		return;
	if (key->family == FAMILY_IPV4 && frame_has(&frame, ip, sizeof(*ip))) {
		key->source[0] = ip->saddr;
		key->destination[0] = ip->daddr;
	} else if (key->family == FAMILY_IPV6 && frame_has(&frame, ip6, sizeof(*ip6))) {
		__builtin_memcpy(key->source, &ip6->saddr, sizeof(key->source));
		__builtin_memcpy(key->destination, &ip6->daddr, sizeof(key->destination));
	}
}

#endif
