/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Protocols above IP: the port numbers of a packet, and for ICMP the numbers in their place. */

#ifndef XDP_AUDIT_PARSE_TRANSPORT_H
#define XDP_AUDIT_PARSE_TRANSPORT_H

#include <linux/in.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "frame.h"

#define IPV4_ECHO_REPLY 0
#define IPV4_ECHO_REQUEST 8
#define IPV6_ECHO_REQUEST 128
#define IPV6_ECHO_REPLY 129
#define MIN_TRANSPORT_HEADER 8
#define MAX_IP_LEN 0xffff

/* <linux/icmp.h> needs a C library. The first 8 bytes of ICMPv6 are the same. */
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

/* By the protocol number of IPv4, and of IPv6 except for ICMPv6. */
static const __u8 protocols[256] = {
	[IPPROTO_TCP] = PROTOCOL_TCP,
	[IPPROTO_UDP] = PROTOCOL_UDP,
	[IPPROTO_SCTP] = PROTOCOL_SCTP,
	[IPPROTO_ICMP] = PROTOCOL_ICMP,
};

static __always_inline __u8 protocol_of_ipv6(int header)
{
	if (header == IPPROTO_ICMPV6)
		return PROTOCOL_ICMP;
	if (header == IPPROTO_ICMP)
		return PROTOCOL_OTHER;
	return protocols[header & 0xff];
}

/* Linux merges packets to more than the length in the header of IP can say. That length is 0 then:
 * the packet ends with its frame.
 */
static __always_inline bool is_big_frame(const struct frame *frame)
{
	return frame->len_bytes > MAX_IP_LEN;
}

static __always_inline bool has_big_packets(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP;
}

static __always_inline bool is_icmp_echo(enum family family, __u8 type)
{
	if (family == FAMILY_IPV4)
		return type == IPV4_ECHO_REQUEST || type == IPV4_ECHO_REPLY;
	return type == IPV6_ECHO_REQUEST || type == IPV6_ECHO_REPLY;
}

/* The numbers in the place of ports: the id of an echo, and type and code, as in NetFlow. */
static __always_inline __u32 ports_of_icmp(enum family family, const struct icmp_header *icmp)
{
	__be16 id = is_icmp_echo(family, icmp->type) ? icmp->echo_id : 0;

	return id | (__u32)bpf_htons(icmp->type << 8 | icmp->code) << 16;
}

/* Whether a header of `size` bytes is in the frame and in the `len` bytes left of its packet. */
static __always_inline bool has_header(const struct frame *frame, const void *header, __u32 len,
				       __u32 size)
{
	return frame_has(frame, header, size) && len >= size;
}

static __always_inline bool has_tcp_header(const struct frame *frame, const struct tcphdr *tcp,
					   __u32 len)
{
	return has_header(frame, tcp, len, sizeof(*tcp)) && tcp->doff >= 5 && len >= tcp->doff * 4u;
}

/* The ports of TCP, UDP and SCTP: the source in the lower half, in network order. */
static __always_inline __u32 load_ports(const void *header)
{
	return *(const __be32 *)header;
}

/* Reads the ports of a packet whose transport header and payload are the `len` bytes at `offset`,
 * all inside the frame. Returns 0, or -1 if the header is truncated or malformed.
 */
static __always_inline int parse_transport(const struct frame *frame, __u32 offset, __u32 len,
					   enum family family, __u8 protocol, struct packet *packet)
{
	const void *header = frame_at(frame, offset);

	if (protocol == PROTOCOL_OTHER)
		return 0;
	if (!has_header(frame, header, len, MIN_TRANSPORT_HEADER))
		return -1;
	if (protocol == PROTOCOL_ICMP) {
		packet->ports = ports_of_icmp(family, header);
		return 0;
	}
	if (protocol == PROTOCOL_TCP && !has_tcp_header(frame, header, len))
		return -1;
	if (protocol == PROTOCOL_SCTP &&
	    !has_header(frame, header, len, sizeof(struct sctp_header)))
		return -1;
	packet->ports = load_ports(header);
	return 0;
}

#endif
