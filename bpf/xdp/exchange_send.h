/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The packets of servers: responses end requests. internal/exchange is the model of this code. */

#ifndef XDP_AUDIT_EXCHANGE_SEND_H
#define XDP_AUDIT_EXCHANGE_SEND_H

#include "exchange_classify.h"
#include "exchange_table.h"

/* Headers from Ethernet to TCP, with two tags and without options of IP. */
#define USUAL_HEADERS                                                                              \
	(sizeof(struct ethhdr) + 2 * sizeof(struct vlan_tag) + sizeof(struct ipv6hdr) +            \
	 sizeof(struct tcphdr))
#define LONGEST_HEADERS 256

static __always_inline struct frame skb_frame(const struct __sk_buff *skb)
{
	struct frame frame = { .data = (void *)(long)skb->data,
			       .data_end = (void *)(long)skb->data_end,
			       .len_bytes = skb->len };

	return frame;
}

/* The frame of a buffer with the headers in its linear part. Frames of packet sockets have less of
 * them there.
 */
static __always_inline struct frame frame_with_headers(struct __sk_buff *skb)
{
	struct frame frame = skb_frame(skb);
	__u32 wanted = USUAL_HEADERS;

	if (likely(frame_has(&frame, frame.data, USUAL_HEADERS)))
		return frame;
	if (wanted > frame.len_bytes)
		wanted = frame.len_bytes;
	if (frame.data_end - frame.data >= wanted)
		return frame;
	wanted = LONGEST_HEADERS;
	if (wanted > frame.len_bytes)
		wanted = frame.len_bytes;
	bpf_skb_pull_data(skb, wanted);
	return skb_frame(skb);
}

/* Returns the offset of the header of IP, and its family; -1 if the packet is not IP. The outer tag
 * is not in the frame, except in that of a packet socket.
 */
static __always_inline int find_sent_ip(const struct frame *frame, __u8 *family)
{
	const __u8 *ip = frame_at(frame, 0);
	__be16 ethertype;
	__u32 vlan_id;
	int offset;

	if (config.link_layer == LINK_LAYER_NONE) {
		if (!frame_has(frame, ip, 1))
			return -1;
		*family = *ip >> 4 == 6 ? FAMILY_IPV6 : FAMILY_IPV4;
		return 0;
	}
	if (!frame_has(frame, frame->data, sizeof(struct ethhdr)))
		return -1;
	offset = parse_tags(frame, &ethertype, &vlan_id);
	*family = FAMILY_OTHER;
	if (ethertype == bpf_htons(ETH_P_IP))
		*family = FAMILY_IPV4;
	if (ethertype == bpf_htons(ETH_P_IPV6))
		*family = FAMILY_IPV6;
	return *family == FAMILY_OTHER ? -1 : offset;
}

/* The part of the hash of the addresses, as a packet of the client has them. */
static __always_inline __u64 hash_reversed(const struct frame *frame, __u32 offset, __u8 family)
{
	const struct ipv6hdr *ip6 = frame_at(frame, offset);
	const struct iphdr *ip = frame_at(frame, offset);
	const __be32 *source = ip6->daddr.in6_u.u6_addr32;
	const __be32 *destination = ip6->saddr.in6_u.u6_addr32;

	if (family == FAMILY_IPV4)
		return frame_has(frame, ip, sizeof(*ip))
			       ? hash_pair(ip->daddr, ip->saddr, HASH_KEY_ADDRESSES)
			       : 0;
	if (!frame_has(frame, ip6, sizeof(*ip6)))
		return 0;
	return hash_pair(source[0], destination[0], HASH_KEY_ADDRESSES) +
	       hash_pair(source[1], destination[1], HASH_KEY_ADDRESSES + 2) +
	       hash_pair(source[2], destination[2], HASH_KEY_ADDRESSES + 4) +
	       hash_pair(source[3], destination[3], HASH_KEY_ADDRESSES + 6);
}

/* Whether a TCP segment ends the outstanding request of its connection, and how. Returns -1 if it
 * does not. EXCLUSION_NONE: it is the first segment of the response.
 */
static __always_inline int send_tcp(struct exchange_connection *connection,
				    const struct segment *segment)
{
	__u32 end = segment->seq + segment->len;

	if (segment->flags & TCP_RST) {
		connection->last_ns = 0;
		return EXCLUSION_UNANSWERED;
	}
	if (segment->flags & TCP_SYN) {
		connection->server_next = segment->seq + 1;
		connection->is_known = 1;
		return -1;
	}
	if (!segment->len)
		return EXCLUSION_UNANSWERED; /* a FIN */
	if (connection->is_known && !is_before(connection->server_next, end))
		return -1; /* it is sent again */
	__sync_lock_test_and_set(&connection->server_next, end);
	connection->is_known = 1;
	if (is_before(segment->ack, *(volatile __u32 *)&connection->client_next)) {
		exchange_spoil(connection, EXCLUSION_PIPELINED);
		return -1;
	}
	return EXCLUSION_NONE;
}

static __always_inline int send_udp(struct exchange_connection *connection)
{
	if ((__s32)connection->server_next > 0)
		__sync_fetch_and_add(&connection->server_next, -1);
	return EXCLUSION_NONE;
}

/* Handles a packet from the port of an assessment, whose header of IP is at `offset`. now_ns is its
 * time on the metadata clock.
 */
static __always_inline void exchange_send(const struct frame *frame, __u32 offset,
					  const struct segment *segment, __u64 now_ns)
{
	__u64 hash = hash_connection(hash_reversed(frame, offset, segment->family),
				     segment->ports << 16 | segment->ports >> 16, segment->family,
				     segment->ip_protocol);
	struct exchange_set *set = exchange_set_of(hash);
	struct exchange_connection *connection;
	__u32 way;
	int end;

	if (!set)
		return;
	way = exchange_way(set, hash);
	if (way >= EXCHANGE_WAYS)
		return;
	connection = connection_at(set, way);
	end = segment->ip_protocol == IPPROTO_TCP ? send_tcp(connection, segment)
						  : send_udp(connection);
	if (end >= 0 && *(volatile __u64 *)&connection->request)
		exchange_end(connection, connection_id(connection, hash, way), now_ns, end);
}

static __always_inline bool matters(const struct segment *segment)
{
	return segment->ip_protocol == IPPROTO_UDP || segment->len ||
	       segment->flags & (TCP_SYN | TCP_RST | TCP_FIN);
}

/* Measures a packet that leaves the device. */
static __always_inline void exchange_observe_sent(struct __sk_buff *skb)
{
	struct frame frame = frame_with_headers(skb);
	struct segment segment;
	__u8 family;
	int offset = find_sent_ip(&frame, &family);

	if (offset < 0 || read_segment(&frame, offset, frame.len_bytes, family, &segment))
		return;
	if (slot_of_port(segment.ip_protocol, segment.ports) && matters(&segment))
		exchange_send(&frame, offset, &segment,
			      config.clock_source == CLOCK_SOURCE_METADATA ? skb->tstamp : 0);
}

#endif
