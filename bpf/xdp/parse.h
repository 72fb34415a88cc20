/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* From the bytes of a frame to a struct packet. Bytes are reached through a frame view alone, so that a program that
 * cannot access packets directly needs only another frame_at() and frame_has().
 */

#ifndef XDP_AUDIT_PARSE_H
#define XDP_AUDIT_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>

#include "hash.h"
#include "layout.h"

#define VLAN_TAGS 2
#define OFFSET_MASK 0x7fff /* tells the verifier what is so: all headers together are shorter than 17,000 bytes */
#define VLAN_ID_MASK 0x0fff
#define IPV4_FRAGMENT_OFFSET_MASK 0x1fff
#define IPV6_EXTENSIONS 8	 /* RFC 8200, section 4.1: each kind once, destination options twice */
#define IPV6_FRAGMENT_OFFSET_MASK 0xfff8
#define IPV4_ECHO_REPLY 0
#define IPV4_ECHO_REQUEST 8
#define IPV6_ECHO_REQUEST 128
#define IPV6_ECHO_REPLY 129
#define LEAST_TRANSPORT_HEADER 8
#define PROTOCOL_MOBILITY 135
#define PROTOCOL_HIP 139
#define PROTOCOL_SHIM6 140

/* For bytes of a packet and of a key, which the compiler takes to be aligned to less than they are. */
static __always_inline __be16 load_be16(const void *bytes)
{
	return *(const __be16 *)bytes;
}

struct frame {
	const void *data;
	const void *data_end;
	__u32 beyond_bytes; /* after data_end, in buffers that cannot be accessed directly */
	__u32 reserved;
};

struct vlan_tag {
	__be16 control;
	__be16 next_protocol;
};

struct ipv6_extension {
	__u8 next_header;
	__u8 len;
	__be16 fragment_offset; /* of a fragment header */
};

/* <linux/icmp.h> needs a C library. ICMPv6 has the same first 8 bytes. */
struct icmp_header {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 echo_id;
	__be16 echo_sequence;
};

struct sctp_header {
	__be16 source;
	__be16 dest;
	__be32 verification_tag;
	__be32 checksum;
};

static __always_inline const void *frame_at(const struct frame *frame, __u32 offset)
{
	return frame->data + offset;
}

/* Whether the frame has `size` bytes from `bytes` on. */
static __always_inline bool frame_has(const struct frame *frame, const void *bytes, __u32 size)
{
	return bytes + size <= frame->data_end;
}

static __always_inline __u32 frame_len(const struct frame *frame)
{
	__u64 len = frame->data_end - frame->data;

	barrier_var(len); /* else it is the difference of halves of pointers, which cannot be kept on the stack */
	return len + frame->beyond_bytes;
}

static __always_inline bool is_vlan_tag(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

/* Returns the offset behind the link layer and its tags, or -1. Leaves the ethertype of the payload in *ethertype and
 * the id of the outer tag in *vlan_id.
 */
static __always_inline int parse_ethernet(const struct frame *frame, __be16 *ethertype, __u32 *vlan_id)
{
	const struct ethhdr *eth = frame_at(frame, 0);
	__u32 offset = sizeof(*eth);

	*vlan_id = 0;
	if (unlikely(!frame_has(frame, eth, sizeof(*eth))))
		return -1;
	*ethertype = load_be16(&eth->h_proto);
	for (int i = 0; i < VLAN_TAGS && unlikely(is_vlan_tag(*ethertype)); i++) {
		const struct vlan_tag *tag = frame_at(frame, offset);

		if (!frame_has(frame, tag, sizeof(*tag)))
			return -1;
		if (i == 0)
			*vlan_id = bpf_ntohs(tag->control) & VLAN_ID_MASK;
		*ethertype = tag->next_protocol;
		offset += sizeof(*tag);
	}
	return offset;
}

static __always_inline bool is_icmp_echo(enum family family, __u8 type)
{
	if (family == FAMILY_IPV4)
		return type == IPV4_ECHO_REQUEST || type == IPV4_ECHO_REPLY;
	return type == IPV6_ECHO_REQUEST || type == IPV6_ECHO_REPLY;
}

/* The ports, or what stands in for them: the id of an echo, type and code, as in NetFlow. */
static __always_inline __u32 ports_of_icmp(enum family family, const struct icmp_header *icmp)
{
	__be16 id = is_icmp_echo(family, icmp->type) ? icmp->echo_id : 0;

	return id | (__u32)bpf_htons(icmp->type << 8 | icmp->code) << 16;
}

/* Whether a header of that size is in the frame, and in the `len` bytes that are its packet's. */
static __always_inline bool has_header(const struct frame *frame, const void *header, __u32 len, __u32 size)
{
	return frame_has(frame, header, size) && len >= size;
}

static __always_inline bool has_tcp_header(const struct frame *frame, const struct tcphdr *tcp, __u32 len)
{
	return has_header(frame, tcp, len, sizeof(*tcp)) && tcp->doff >= 5 && len >= tcp->doff * 4u;
}

static __always_inline __u32 load_ports(const void *header)
{
	return *(const __be32 *)header;
}

/* Reads the ports. The `len` bytes from `offset` on are the packet's transport header and payload, all inside the frame.
 * Returns 0, or -1 if the header is cut short or malformed.
 */
static __always_inline int parse_transport(const struct frame *frame, __u32 offset, __u32 len, enum family family,
					   __u8 protocol, struct packet *packet)
{
	const void *header = frame_at(frame, offset);

	packet->cell = protocol_cell(family, protocol);
	if (protocol == PROTOCOL_OTHER)
		return 0;
	if (!has_header(frame, header, len, LEAST_TRANSPORT_HEADER))
		return -1;
	if (protocol == PROTOCOL_ICMP) {
		packet->ports = ports_of_icmp(family, header);
		return 0;
	}
	if (protocol == PROTOCOL_TCP && !has_tcp_header(frame, header, len))
		return -1;
	if (protocol == PROTOCOL_SCTP && !has_header(frame, header, len, sizeof(struct sctp_header)))
		return -1;
	packet->ports = load_ports(header);
	return 0;
}

/* By the protocol of IPv4, and of IPv6 but for ICMPv6. */
static const __u8 protocols[256] = {
	[IPPROTO_TCP] = PROTOCOL_TCP,	[IPPROTO_UDP] = PROTOCOL_UDP,
	[IPPROTO_SCTP] = PROTOCOL_SCTP, [IPPROTO_ICMP] = PROTOCOL_ICMP,
};

static __always_inline __u8 protocol_of_ipv6(int header)
{
	if (header == IPPROTO_ICMPV6)
		return PROTOCOL_ICMP;
	if (header == IPPROTO_ICMP)
		return PROTOCOL_OTHER;
	return protocols[header & 0xff];
}

static __always_inline __u64 hash_ipv4_addresses(const struct iphdr *ip)
{
	return hash_pair(ip->saddr, ip->daddr, HASH_KEY_ADDRESSES);
}

static __always_inline int parse_ipv4(const struct frame *frame, __u32 offset, struct packet *packet)
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
	return parse_transport(frame, offset + header_len, total_len - header_len, FAMILY_IPV4, protocol, packet);
}

enum extension_kind {
	EXTENSION_NONE,
	EXTENSION_OPTIONS,
	EXTENSION_AUTHENTICATION,
	EXTENSION_FRAGMENT,
	EXTENSION_KINDS,
};

/* Tables instead of comparisons: each branch in the walk would double the verifier's paths, eight times over. */
static const __u8 extension_kinds[256] = {
	[IPPROTO_HOPOPTS] = EXTENSION_OPTIONS,	 [IPPROTO_ROUTING] = EXTENSION_OPTIONS,
	[IPPROTO_DSTOPTS] = EXTENSION_OPTIONS,	 [PROTOCOL_MOBILITY] = EXTENSION_OPTIONS,
	[PROTOCOL_HIP] = EXTENSION_OPTIONS,	 [PROTOCOL_SHIM6] = EXTENSION_OPTIONS,
	[IPPROTO_AH] = EXTENSION_AUTHENTICATION, [IPPROTO_FRAGMENT] = EXTENSION_FRAGMENT,
};

/* The bytes of an extension header are ((len & mask) + add) << shift. */
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

/* What the walk over extension headers comes to, in one register: a frame view handed over by pointer would have to live
 * on the stack for all that are parsed.
 */
#define WALK_HEADER(walk) ((walk) & 0xff)
#define WALK_IS_FRAGMENT(walk) ((walk) >> 8 & 1)
#define WALK_OFFSET(walk) ((walk) >> 16)

/* Walks extension headers from `offset` up to `end`. Returns the header behind them, its offset, and whether it is behind
 * the header of a later fragment, where there is nothing to walk; or -1 if they are cut short or too many.
 */
static __noinline int parse_ipv6_extensions(const void *data, const void *data_end, __u32 offset, __u32 end, __u8 header)
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
		at += (((extension->len & size->mask) + size->add) << (size->shift & 3)) & EXTENSION_SIZE_MASK;
		if (kind == EXTENSION_FRAGMENT && extension->fragment_offset & bpf_htons(IPV6_FRAGMENT_OFFSET_MASK))
			return at << 16 | 1 << 8 | header;
	}
	return -1;
}

static __always_inline __u64 hash_ipv6_addresses(const struct ipv6hdr *ip)
{
	const __be32 *source = ip->saddr.in6_u.u6_addr32, *destination = ip->daddr.in6_u.u6_addr32;

	return hash_pair(source[0], destination[0], HASH_KEY_ADDRESSES) +
	       hash_pair(source[1], destination[1], HASH_KEY_ADDRESSES + 2) +
	       hash_pair(source[2], destination[2], HASH_KEY_ADDRESSES + 4) +
	       hash_pair(source[3], destination[3], HASH_KEY_ADDRESSES + 6);
}

static __always_inline int parse_ipv6(const struct frame *frame, __u32 offset, struct packet *packet)
{
	const struct ipv6hdr *ip = frame_at(frame, offset);
	__u32 end;
	int header;

	packet->cell = protocol_cell(FAMILY_IPV6, PROTOCOL_OTHER);
	if (!frame_has(frame, ip, sizeof(*ip)) || ip->version != 6)
		return -1;
	packet->addresses = hash_ipv6_addresses(ip);
	header = ip->nexthdr;
	offset += sizeof(*ip);
	end = offset + bpf_ntohs(ip->payload_len);
	if (!ip->payload_len && header == IPPROTO_HOPOPTS)
		end = frame_len(frame); /* a jumbogram, RFC 2675 */
	packet->cell = protocol_cell(FAMILY_IPV6, protocol_of_ipv6(header));
	if (end > frame_len(frame))
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
	packet->kind |= FAMILY_IPV6 << 8 | header;
	if (packet->is_fragment)
		return 0;
	return parse_transport(frame, offset & OFFSET_MASK, end - offset, FAMILY_IPV6, protocol_of_ipv6(header), packet);
}

/* Parses a frame into a zeroed packet. Returns 0, or -1 if it is not IP, truncated or malformed; then family and protocol
 * are as far as they could be read.
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

static __always_inline struct frame frame_of(const struct xdp_md *ctx)
{
	struct frame frame = { .data = (void *)(long)ctx->data, .data_end = (void *)(long)ctx->data_end };

	return frame;
}

/* Parses again what could not be parsed as a frame in one buffer: the lengths in the headers go beyond the first buffer of
 * a frame in several. All headers are in it. Returns whether that was it.
 */
static __always_inline bool parse_frame_in_buffers(struct xdp_md *ctx, struct frame *frame, struct packet *packet)
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

/* Parses any frame into a zeroed packet, whichever buffers it is in. Returns 0 or -1, as parse_frame() does. A global
 * function, which the verifier follows once and not for each way that leads to it.
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

/* The bytes of a frame, in whichever buffers they are. */
static __always_inline __u32 whole_len(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);

	return config.has_frags ? bpf_xdp_get_buff_len(ctx) : frame_len(&frame);
}

/* Reads the key of a packet that was parsed, with addresses from its frame. The device is left to whoever keeps the key. */
static __always_inline void read_key(struct xdp_md *ctx, const struct packet *packet, struct flow_key *key)
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
