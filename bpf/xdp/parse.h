/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The complete parser: from the bytes of any frame to a struct packet. */

#ifndef XDP_AUDIT_PARSE_H
#define XDP_AUDIT_PARSE_H

#include <linux/ip.h>

#include "find_ip.h"
#include "frame.h"
#include "hash.h"
#include "parse_ipv6.h"
#include "parse_transport.h"

#define IPV4_FRAGMENT_OFFSET_MASK 0x1fff

/* The first byte of a header of IPv4: version 4, and 5 to 15 words. */
#define MIN_IPV4_START 0x45
#define MAX_IPV4_START 0x4f

static __always_inline __u64 hash_ipv4_addresses(const struct iphdr *ip)
{
	return hash_pair(ip->saddr, ip->daddr, HASH_KEY_ADDRESSES);
}

/* Parses the packet of IPv4 at `offset`, which ends before `end`. */
static __always_inline int parse_ipv4(const struct frame *frame, __u32 offset, __u32 end,
				      __u32 kind, struct packet *packet)
{
	const struct iphdr *ip = frame_at(frame, offset);
	__u32 header_len, total_len;
	__u8 start, protocol;

	packet->cell = protocol_cell(FAMILY_IPV4, PROTOCOL_OTHER);
	if (!frame_has(frame, ip, sizeof(*ip)))
		return -1;
	start = *(const __u8 *)ip;
	if (start < MIN_IPV4_START || start > MAX_IPV4_START)
		return -1;
	protocol = protocols[ip->protocol];
	packet->cell = protocol_cell(FAMILY_IPV4, protocol);
	packet->kind = kind | FAMILY_IPV4 << 8 | ip->protocol;
	header_len = (start & 0xf) * 4;
	total_len = bpf_ntohs(ip->tot_len);
	if (unlikely(total_len < header_len)) {
		if (total_len || !is_big_frame(frame) || !has_big_packets(protocol))
			return -1;
		total_len = end - offset;
		if (total_len < header_len)
			return -1;
	}
	if (offset + total_len > end)
		return -1;
	packet->addresses = hash_ipv4_addresses(ip);
	if (ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET_MASK)) {
		packet->is_fragment = true;
		return 0;
	}
	return parse_transport(frame, offset + header_len, total_len - header_len, FAMILY_IPV4,
			       protocol, packet);
}

static __always_inline int parse_frame(const struct frame *frame, struct packet *packet,
				       __u64 place)
{
	__u32 vlan_id, end = frame->len_bytes;
	__be16 ethertype;
	int offset;

	packet->len_bytes = frame->len_bytes;
	if (likely(!place)) {
		if (!frame_has(frame, frame->data, sizeof(struct ethhdr)))
			return -1;
		offset = parse_tags(frame, &ethertype, &vlan_id);
		if (offset < 0)
			return -1;
	} else {
		offset = PLACE_OFFSET(place);
		vlan_id = PLACE_VLAN_ID(place);
		ethertype = bpf_htons(PLACE_VERSION(place) == 6 ? ETH_P_IPV6 : ETH_P_IP);
		if (PLACE_END(place) > end)
			return -1;
		if (PLACE_END(place))
			end = PLACE_END(place);
	}
	packet->ip_offset = offset;
	if (ethertype == bpf_htons(ETH_P_IP))
		return parse_ipv4(frame, offset, end, vlan_id << 16, packet);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(frame, offset, end, vlan_id << 16, packet);
	return -1;
}

/* Parses a frame into a zeroed packet, in which IP is at a place of find_ip(), or with 0 after
 * Ethernet and its tags. All headers have to be in the first buffer of the frame. Lengths in them
 * may include the next `beyond_bytes` bytes, which are in further buffers. Returns 0, or -1 if the
 * frame is not IP, truncated or malformed. Then the cell says as much as could be read. A global
 * function, so that the verifier follows it once and not once per path to it.
 */
__noinline int parse_any(struct xdp_md *ctx, struct packet *packet, __u64 place, __u32 beyond_bytes)
{
	struct frame frame;

	if (!packet)
		return -1;
	frame = frame_of(ctx);
	frame.len_bytes += beyond_bytes;
	if (parse_frame(&frame, packet, place)) {
		KEEP_BRANCH(); /* 7 to 16: clang would set the result before each condition */
		return -1;
	}
	return 0;
}

/* Reads the key of a parsed packet, except for its owner, with addresses from its frame. */
static __always_inline void read_key(struct xdp_md *ctx, const struct packet *packet,
				     struct flow_key *key)
{
	struct frame frame = frame_of(ctx);
	__u32 offset = packet->ip_offset & IP_OFFSET_MASK;
	const struct iphdr *ip = frame_at(&frame, offset);
	const struct ipv6hdr *ip6 = frame_at(&frame, offset);

	__builtin_memset(key, 0, sizeof(*key));
	key->source_port = packet->ports;
	key->destination_port = packet->ports >> 16;
	key->vlan_id = packet->kind >> 16;
	key->ip_protocol = packet->kind;
	key->family = packet->kind >> 8;
	if (key->family == FAMILY_IPV4 && frame_has(&frame, ip, sizeof(*ip))) {
		key->source[0] = ip->saddr;
		key->destination[0] = ip->daddr;
	} else if (key->family == FAMILY_IPV6 && frame_has(&frame, ip6, sizeof(*ip6))) {
		__builtin_memcpy(key->source, &ip6->saddr, sizeof(key->source));
		__builtin_memcpy(key->destination, &ip6->daddr, sizeof(key->destination));
	}
}

#endif
