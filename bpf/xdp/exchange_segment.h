/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* What response times need of a packet. */

#ifndef XDP_AUDIT_EXCHANGE_SEGMENT_H
#define XDP_AUDIT_EXCHANGE_SEGMENT_H

#include "compiler.h"
#include "exchange_layout.h"
#include "frame.h"
#include "parse.h"

#define IPV4_FRAGMENT_MASK 0x3fff /* offset, and more fragments */
#define TCP_FLAGS_BYTE 13
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* A TCP segment or a UDP datagram. */
struct segment {
	__u32 seq;
	__u32 ack;
	__u32 len;   /* of the payload */
	__u32 ports; /* as in struct packet */
	__u8 dscp;
	__u8 flags;
	__u8 ip_protocol;
	__u8 family;
	__u32 reserved;
};

static __always_inline bool is_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

/* Reads the header of TCP or UDP, with `len` bytes left of the packet. */
static __always_inline int read_transport(const struct frame *frame, __u32 offset, __u32 len,
					  struct segment *segment)
{
	const struct tcphdr *tcp;
	const struct udphdr *udp;
	__u32 header;

	/* Without this, clang keeps the offset in a form of which Linux 6.18 knows only a larger
	 * maximum. It rejects the program: "R1 offset is outside of the packet".
	 */
	NO_BRANCH(offset);
	offset &= OFFSET_MASK;
	tcp = frame_at(frame, offset);
	udp = frame_at(frame, offset);

	if (segment->ip_protocol == IPPROTO_UDP) {
		if (!frame_has(frame, udp, sizeof(*udp)))
			return -1;
		segment->ports = load_ports(udp);
		return 0;
	}
	if (!frame_has(frame, tcp, sizeof(*tcp)))
		return -1;
	segment->ports = load_ports(tcp);
	segment->seq = bpf_ntohl(tcp->seq);
	segment->ack = bpf_ntohl(tcp->ack_seq);
	segment->flags = ((const __u8 *)tcp)[TCP_FLAGS_BYTE];
	header = ((const __u8 *)tcp)[TCP_LENGTH_BYTE] >> 4 << 2;
	if (len < header)
		return -1;
	segment->len = len - header;
	return 0;
}

/* Reads a packet of IPv4 at `offset`, which ends before `end`. The length in the header of a packet
 * that is too large for it is 0.
 */
static __always_inline int read_ipv4(const struct frame *frame, __u32 offset, __u32 end,
				     struct segment *segment)
{
	const struct iphdr *ip = frame_at(frame, offset);
	__u32 header, len;

	if (!frame_has(frame, ip, sizeof(*ip)) || ip->frag_off & bpf_htons(IPV4_FRAGMENT_MASK))
		return -1;
	segment->ip_protocol = ip->protocol;
	segment->dscp = ip->tos >> 2;
	header = (*(const __u8 *)ip & 0xf) * 4;
	len = bpf_ntohs(ip->tot_len);
	if (!len)
		len = end - offset;
	if (header < sizeof(*ip) || len < header)
		return -1;
	return read_transport(frame, offset + header, len - header, segment);
}

static __always_inline int read_ipv6(const struct frame *frame, __u32 offset, __u32 end,
				     struct segment *segment)
{
	const struct ipv6hdr *ip = frame_at(frame, offset);
	__u32 len;
	int walk;

	if (!frame_has(frame, ip, sizeof(*ip)))
		return -1;
	segment->ip_protocol = ip->nexthdr;
	segment->dscp = bpf_ntohs(load_be16(ip)) >> 6 & 0x3f;
	len = bpf_ntohs(ip->payload_len);
	offset += sizeof(*ip);
	if (!len)
		len = end - offset;
	if (likely(!extension_kinds[ip->nexthdr]))
		return read_transport(frame, offset, len, segment);
	walk = parse_ipv6_extensions(frame->data, frame->data_end, offset, offset + len,
				     ip->nexthdr);
	if (walk < 0 || WALK_IS_FRAGMENT(walk))
		return -1;
	segment->ip_protocol = WALK_HEADER(walk);
	return read_transport(frame, WALK_OFFSET(walk) & OFFSET_MASK,
			      len - (WALK_OFFSET(walk) - offset), segment);
}

/* Reads a packet of IP at `offset`, which ends before `end`. A fragment is not a segment: the
 * length of its request is not known. Returns 0 or -1.
 */
static __always_inline int read_segment(const struct frame *frame, __u32 offset, __u32 end,
					__u8 family, struct segment *segment)
{
	segment->family = family;
	segment->flags = 0;
	segment->len = 0;
	if (family == FAMILY_IPV4)
		return read_ipv4(frame, offset, end, segment);
	if (family == FAMILY_IPV6)
		return read_ipv6(frame, offset, end, segment);
	return -1;
}

/* Whether the header of IP at `offset` follows Ethernet and its tags. Packets that leave a device
 * are not looked for in PPPoE and MPLS.
 */
static __always_inline bool is_after_ethernet(const struct frame *frame, __u32 offset)
{
	const void *ethertype = frame_at(frame, offset - sizeof(__be16));

	if (config.link_layer == LINK_LAYER_NONE)
		return true;
	if (offset < sizeof(struct ethhdr) || !frame_has(frame, ethertype, sizeof(__be16)))
		return false;
	return load_be16(ethertype) == bpf_htons(ETH_P_IP) ||
	       load_be16(ethertype) == bpf_htons(ETH_P_IPV6);
}

/* The hash of a connection, from the parts of addresses and ports as a packet of the client has
 * them. It leaves the VLAN id out: a driver may remove that from the packets of one direction.
 */
static __always_inline __u64 hash_connection(__u64 addresses, __u32 ports, __u8 family,
					     __u8 ip_protocol)
{
	return hash_mix(addresses + hash_pair(ports, family << 8 | ip_protocol, HASH_KEY_PORTS));
}

#endif
