/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* IPv6 with its extension headers. */

#ifndef XDP_AUDIT_PARSE_IPV6_H
#define XDP_AUDIT_PARSE_IPV6_H

#include <linux/ipv6.h>

#include "frame.h"
#include "hash.h"
#include "parse_transport.h"

/* For the verifier: all headers together are shorter than 17,000 bytes. */
#define OFFSET_MASK 0x7fff
#define IPV6_EXTENSIONS 8 /* RFC 8200, section 4.1: each kind once, destination options twice */
#define IPV6_FRAGMENT_OFFSET_MASK 0xfff8
#define PROTOCOL_MOBILITY 135
#define PROTOCOL_HIP 139
#define PROTOCOL_SHIM6 140

struct ipv6_extension {
	__u8 next_header;
	__u8 len;
	__be16 fragment_offset; /* of a fragment header */
};

enum extension_kind {
	EXTENSION_NONE,
	EXTENSION_OPTIONS,
	EXTENSION_AUTHENTICATION,
	EXTENSION_FRAGMENT,
	EXTENSION_KINDS,
};

/* Kinds and sizes are tables: each branch in the walk would double the verifier's paths in each of
 * its eight steps.
 */
static const __u8 extension_kinds[256] = {
	[IPPROTO_HOPOPTS] = EXTENSION_OPTIONS,	 [IPPROTO_ROUTING] = EXTENSION_OPTIONS,
	[IPPROTO_DSTOPTS] = EXTENSION_OPTIONS,	 [PROTOCOL_MOBILITY] = EXTENSION_OPTIONS,
	[PROTOCOL_HIP] = EXTENSION_OPTIONS,	 [PROTOCOL_SHIM6] = EXTENSION_OPTIONS,
	[IPPROTO_AH] = EXTENSION_AUTHENTICATION, [IPPROTO_FRAGMENT] = EXTENSION_FRAGMENT,
};

/* An extension header has ((len & mask) + add) << shift bytes. */
static const struct extension_size {
	__u8 mask;
	__u8 add;
	__u8 shift;
} extension_sizes[EXTENSION_KINDS] = {
	[EXTENSION_OPTIONS] = { .mask = 0xff, .add = 1, .shift = 3 },
	[EXTENSION_AUTHENTICATION] = { .mask = 0xff, .add = 2, .shift = 2 },
	[EXTENSION_FRAGMENT] = { .mask = 0, .add = 1, .shift = 3 },
};

#define EXTENSION_SIZE_MASK 0xffc
#define KIND_IS_BIG (1U << 31) /* the sign, which costs least to test */

/* The result of a walk over extension headers, in one register. With a pointer to a result, or to a
 * struct frame, all packets would keep these on the stack.
 */
#define WALK_HEADER(walk) ((walk)&0xff)
#define WALK_IS_FRAGMENT(walk) ((walk) >> 8 & 1)
#define WALK_OFFSET(walk) ((walk) >> 16)

/* Walks extension headers from `offset` up to `end`. Returns the number of the first other header,
 * its offset, and whether the packet is a fragment other than the first, at whose header the walk
 * ends. Returns -1 if the headers are truncated or too many.
 */
static __noinline int parse_ipv6_extensions(const void *data, const void *data_end, __u32 offset,
					    __u32 end, __u8 header)
{
	const struct frame frame = { .data = data, .data_end = data_end };
	__u32 at = offset & OFFSET_MASK;

	for (int i = 0; i <= IPV6_EXTENSIONS; i++) {
		const struct ipv6_extension *extension = frame_at(&frame, at);
		__u8 kind = extension_kinds[header] & (EXTENSION_KINDS - 1);
		const struct extension_size *size = &extension_sizes[kind];

		if (kind == EXTENSION_NONE)
			return at > end ? -1 : (int)(at << 16 | header);
		if (i == IPV6_EXTENSIONS || !frame_has(&frame, extension, 8) || at + 8 > end)
			return -1;
		header = extension->next_header;
		at += (((extension->len & size->mask) + size->add) << (size->shift & 3)) &
		      EXTENSION_SIZE_MASK;
		if (kind == EXTENSION_FRAGMENT &&
		    extension->fragment_offset & bpf_htons(IPV6_FRAGMENT_OFFSET_MASK))
			return at << 16 | 1 << 8 | header;
	}
	return -1;
}

static __always_inline __u64 hash_ipv6_addresses(const struct ipv6hdr *ip)
{
	const __be32 *source = ip->saddr.in6_u.u6_addr32;
	const __be32 *destination = ip->daddr.in6_u.u6_addr32;

	return hash_pair(source[0], destination[0], HASH_KEY_ADDRESSES) +
	       hash_pair(source[1], destination[1], HASH_KEY_ADDRESSES + 2) +
	       hash_pair(source[2], destination[2], HASH_KEY_ADDRESSES + 4) +
	       hash_pair(source[3], destination[3], HASH_KEY_ADDRESSES + 6);
}

/* Whether this header or one after it may be TCP or UDP. */
static __always_inline bool may_have_big_packets(__u8 header)
{
	return extension_kinds[header] || has_big_packets(protocol_of_ipv6(header));
}

/* Parses the packet of IPv6 at `offset`, which ends before `limit`. */
static __always_inline int parse_ipv6(const struct frame *frame, __u32 offset, __u32 limit,
				      __u32 kind, struct packet *packet)
{
	const struct ipv6hdr *ip = frame_at(frame, offset);
	__u32 len, end;
	int header;

	packet->cell = protocol_cell(FAMILY_IPV6, PROTOCOL_OTHER);
	if (!frame_has(frame, ip, sizeof(*ip)) || ip->version != 6)
		return -1;
	packet->addresses = hash_ipv6_addresses(ip);
	header = ip->nexthdr;
	offset += sizeof(*ip);
	len = bpf_ntohs(ip->payload_len);
	end = offset + len;
	if (unlikely(!len)) {
		if (header == IPPROTO_HOPOPTS) { /* a jumbogram, RFC 2675 */
			end = limit;
		} else if (is_big_frame(frame) && may_have_big_packets(header)) {
			end = limit;
			kind |= KIND_IS_BIG;
		}
	}
	packet->cell = protocol_cell(FAMILY_IPV6, protocol_of_ipv6(header));
	if (end > limit)
		return -1;
	if (extension_kinds[header & 0xff]) {
		int walk = parse_ipv6_extensions(frame->data, frame->data_end, offset, end, header);

		if (walk < 0)
			return -1;
		header = WALK_HEADER(walk);
		offset = WALK_OFFSET(walk);
		packet->is_fragment = WALK_IS_FRAGMENT(walk);
		packet->cell = protocol_cell(FAMILY_IPV6, protocol_of_ipv6(header));
	}
	if (unlikely((__s32)kind < 0)) {
		if (!has_big_packets(protocol_of_ipv6(header)))
			return -1;
		kind &= ~KIND_IS_BIG;
	}
	packet->kind = kind | FAMILY_IPV6 << 8 | header;
	if (packet->is_fragment)
		return 0;
	return parse_transport(frame, offset & OFFSET_MASK, end - offset, FAMILY_IPV6,
			       protocol_of_ipv6(header), packet);
}

#endif
