/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* A parser for nearly all packets: TCP and UDP, over IPv4 without options or IPv6 without
 * extension headers, in one buffer, and not a fragment other than the first. For these its result
 * equals that of parse_any(), and stays in registers. It leaves all other frames to the
 * complete parser. Saves about 80 instructions per packet.
 */

#ifndef XDP_AUDIT_PARSE_FAST_H
#define XDP_AUDIT_PARSE_FAST_H

#include "compiler.h"
#include "parse.h"

#define IPV4_FAST_START 0x45 /* version 4, header of 5 words */
#define MIN_IPV4_PACKET (sizeof(struct iphdr) + MIN_TRANSPORT_HEADER)

/* Bytes after the IP header that a frame needs for this parser: a TCP header, so that only one test
 * is needed for all protocols. A UDP packet with less than 12 bytes of payload goes to the complete
 * parser, except over IPv4 where Ethernet pads its frame to 60 bytes.
 */
#define FAST_TRANSPORT_HEADER sizeof(struct tcphdr)

/* The byte of a TCP header that has its length: 4 bits, in words. The other bits are a flag and
 * reserved bits.
 */
#define TCP_LENGTH_BYTE 12
#define MIN_TCP_LENGTH_BYTE (5 << 4)

/* Whether a TCP header has at least 5 words and ends within the `len` bytes left of its packet, as
 * in has_tcp_header(). May be false for a valid header if a reserved bit is set: not masking these
 * bits saves 1.
 */
static __always_inline bool has_common_tcp_header(const void *header, __u32 len)
{
	__u8 length = ((const __u8 *)header)[TCP_LENGTH_BYTE];

	return length >= MIN_TCP_LENGTH_BYTE && length >> 2 <= len;
}

/* `len` bytes from `header` on are the transport header and the payload. The frame has at least
 * FAST_TRANSPORT_HEADER bytes from `header` on.
 */
static __always_inline int parse_fast_transport(const void *header, __u32 len, enum family family,
						__u8 ip_protocol, struct packet *packet)
{
	__u32 kind;

	packet->ports = load_ports(header);
	if (ip_protocol == IPPROTO_TCP) {
		if (unlikely(!has_common_tcp_header(header, len)))
			return -1;
		packet->cell = protocol_cell(family, PROTOCOL_TCP);
		kind = packet->kind | family << 8 | IPPROTO_TCP;
		/* 2, for IPv6 29: clang would assemble the word where IPv4 and IPv6 meet */
		KEEP_IN_REGISTER(kind);
	} else {
		if (unlikely(ip_protocol != IPPROTO_UDP))
			return -1;
		packet->cell = protocol_cell(family, PROTOCOL_UDP);
		kind = packet->kind | family << 8 | IPPROTO_UDP;
	}
	packet->kind = kind;
	return 0;
}

static __always_inline int parse_fast_ipv4(const struct frame *frame, __u32 offset,
					   struct packet *packet)
{
	const struct iphdr *ip = frame_at(frame, offset);
	__u32 total_len;

	if (unlikely(!frame_has(frame, ip, sizeof(*ip) + FAST_TRANSPORT_HEADER) ||
		     *(const __u8 *)ip != IPV4_FAST_START))
		return -1;
	total_len = bpf_ntohs(ip->tot_len);
	if (unlikely(total_len < MIN_IPV4_PACKET || total_len > packet->len_bytes - offset))
		return -1;
	if (unlikely(ip->frag_off & bpf_htons(IPV4_FRAGMENT_OFFSET_MASK)))
		return -1;
	packet->addresses = hash_ipv4_addresses(ip);
	return parse_fast_transport(ip + 1, total_len - sizeof(*ip), FAMILY_IPV4, ip->protocol,
				    packet);
}

static __always_inline int parse_fast_ipv6(const struct frame *frame, __u32 offset,
					   struct packet *packet)
{
	const struct ipv6hdr *ip = frame_at(frame, offset);
	__u32 len;

	if (unlikely(!frame_has(frame, ip, sizeof(*ip) + FAST_TRANSPORT_HEADER) ||
		     ip->version != 6))
		return -1;
	len = bpf_ntohs(ip->payload_len);
	if (unlikely(len < MIN_TRANSPORT_HEADER ||
		     len > packet->len_bytes - offset - (__u32)sizeof(*ip)))
		return -1;
	packet->addresses = hash_ipv6_addresses(ip);
	return parse_fast_transport(ip + 1, len, FAMILY_IPV6, ip->nexthdr, packet);
}

/* Results of parse_fast() for frames that do not have IP after Ethernet and its tags. */
#define NOT_IP 1       /* complete up to an ethertype that has no IP */
#define ENCAPSULATED 2 /* find_ip() may find IP */

/* The result of parse_fast() for an ethertype other than IP. */
static __always_inline int not_ip(__be16 ethertype)
{
	return is_encapsulation(ethertype) ? ENCAPSULATED : NOT_IP;
}

/* The result of parse_fast() for a frame that is too short for it. */
static __always_inline int parse_fast_short(const struct frame *frame, const struct ethhdr *eth)
{
	__be16 ethertype;

	if (!frame_has(frame, eth, sizeof(*eth)))
		return -1;
	ethertype = load_be16(&eth->h_proto);
	if (ethertype == bpf_htons(ETH_P_IP) || ethertype == bpf_htons(ETH_P_IPV6) ||
	    is_vlan_tag(ethertype))
		return -1;
	return not_ip(ethertype);
}

/* Parses most packets of a device with Ethernet, from whose frame the driver has removed the tag of
 * the VLAN stripped_id; 0 for none. Returns 0, one of the results above, or -1 if the packet needs
 * the complete parser. That would find the same of a frame that is not IP, in 76 more instructions.
 */
static __always_inline int parse_fast_ethernet(const struct frame *frame, __u32 stripped_id,
					       struct packet *packet)
{
	const struct ethhdr *eth = frame_at(frame, 0);
	__be16 ethertype;
	__u32 vlan_id;
	int offset;

	packet->len_bytes = frame->len_bytes;
	packet->kind = stripped_id << 16;
	packet->is_fragment = false;
	packet->ip_offset = sizeof(*eth);
	/* An IPv6 packet is longer. */
	if (unlikely(!frame_has(frame, eth,
				sizeof(*eth) + sizeof(struct iphdr) + FAST_TRANSPORT_HEADER)))
		return parse_fast_short(frame, eth);
	if (likely(load_be16(&eth->h_proto) == bpf_htons(ETH_P_IP)))
		return parse_fast_ipv4(frame, sizeof(*eth), packet);
	offset = parse_tags(frame, &ethertype, &vlan_id);
	if (unlikely(offset < 0))
		return -1;
	packet->kind = (stripped_id ? stripped_id : vlan_id) << 16;
	packet->ip_offset = offset;
	if (ethertype == bpf_htons(ETH_P_IP))
		return parse_fast_ipv4(frame, offset, packet);
	if (unlikely(ethertype != bpf_htons(ETH_P_IPV6)))
		return not_ip(ethertype);
	return parse_fast_ipv6(frame, offset, packet);
}

/* Parses most packets of a device whose driver removes no tag. Returns what parse_fast_ethernet()
 * returns, and ENCAPSULATED for all frames of another device.
 */
static __always_inline int parse_fast(const struct frame *frame, struct packet *packet)
{
	packet->len_bytes = frame->len_bytes;
	if (unlikely(config.link_layer != LINK_LAYER_ETHERNET))
		return ENCAPSULATED;
	return parse_fast_ethernet(frame, 0, packet);
}

/* Parses a frame again that parse_any() rejected. A short frame with a tag may still have an
 * encapsulation, and lengths in the headers may reach beyond the first buffer.
 */
static __always_inline int parse_again(struct xdp_md *ctx, struct packet *packet, __u64 place)
{
	struct frame frame = frame_of(ctx);
	__u32 beyond_bytes = 0;

	if (!place)
		place = find_ip(ctx);
	if (config.has_frags)
		beyond_bytes = bpf_xdp_get_buff_len(ctx) - frame.len_bytes;
	if (!place && !beyond_bytes)
		return -1;
	__builtin_memset(packet, 0, sizeof(*packet));
	return parse_any(ctx, packet, place, beyond_bytes);
}

/* Parses a frame for which parse_fast() returned `fast`, which is -1 or ENCAPSULATED. Returns 0 or
 * -1, as parse_any() does.
 */
static __always_inline int parse_slow(struct xdp_md *ctx, struct packet *packet, int fast)
{
	struct packet any;
	__u64 place = 0;
	int error;

	/* A copy: members of a struct whose address is passed on cannot stay in registers. */
	__builtin_memset(&any, 0, sizeof(any));
	if (unlikely(fast == ENCAPSULATED)) {
		place = find_ip(ctx);
		if (!place) {
			any.len_bytes = len_of_buffers(ctx);
			*packet = any;
			return -1;
		}
	}
	error = parse_any(ctx, &any, place, 0);
	if (unlikely(error))
		error = parse_again(ctx, &any, place);
	*packet = any;
	packet->cell &= PROTOCOL_CELLS - 1;
	return error;
}

/* Parses any frame. Returns 0 or -1, as parse_any() does. */
static __always_inline int parse_packet(struct xdp_md *ctx, struct packet *packet)
{
	struct frame frame = frame_of(ctx);
	int error = parse_fast(&frame, packet);

	return likely(!error) ? 0 : parse_slow(ctx, packet, error);
}

#endif
