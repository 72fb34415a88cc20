/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The packets of clients: requests begin here. internal/exchange is the model of this code. */

#ifndef XDP_AUDIT_EXCHANGE_RECEIVE_H
#define XDP_AUDIT_EXCHANGE_RECEIVE_H

#include "exchange_classify.h"
#include "exchange_table.h"

#define UDP_TIMEOUT_NS 5000000000ULL
#define OWNER_INDEX 0xffff /* see struct audit_config */

/* A packet of a client, with what it is measured by. */
struct received {
	struct segment segment;
	__u64 hash;
	__u64 now_ns;
	__u64 request; /* as if the packet were a request */
	struct exchange_set *set;
	__u32 way;
	__u32 reserved;
};

static __always_inline struct exchange_connection *connection_of(struct received *received)
{
	return connection_at(received->set, received->way);
}

/* Ends the outstanding request of the packet's connection. */
static __always_inline void end_request(struct received *received, enum exclusion exclusion)
{
	struct exchange_connection *connection = connection_of(received);

	if (connection->request)
		exchange_end(connection, connection_id(connection, received->hash, received->way),
			     received->now_ns, exclusion);
}

/* Finds or inserts the packet's connection. Returns false if there is no place for it. */
static __always_inline bool find_or_insert(struct received *received)
{
	if (received->way < EXCHANGE_WAYS)
		return true;
	received->way = exchange_insert(received->set, received->hash, received->now_ns);
	return received->way < EXCHANGE_WAYS;
}

static __always_inline void count_request(__u64 request)
{
	struct exchange_cpu *own;
	__u32 cpu;

	own = exchange_cpu(&cpu);
	if (own)
		own->counts[request_slot(request)].requests++;
}

/* Counts a request that has no place as excluded, without a record. */
static __always_inline void count_lost(__u64 request, enum exclusion exclusion)
{
	struct exchange_cpu *own;
	__u32 cpu;

	own = exchange_cpu(&cpu);
	if (!own)
		return;
	own->counts[request_slot(request)].excluded[exclusion]++;
	own->lost++;
}

/* The word of a request to which a segment is added, whose own word is `next`. */
static __always_inline __u64 request_extend(__u64 request, __u64 next)
{
	__u64 extended = (request & ~REQUEST_TIME_MASK) | (next & REQUEST_TIME_MASK);

	if (request_exclusion(request))
		return extended;
	if (request_exclusion(next) == EXCLUSION_UNCLASSIFIED ||
	    request_class(next) != request_class(request))
		return request_spoil(extended, EXCLUSION_MIXED);
	return request_spoil(extended, request_exclusion(next));
}

/* Makes a packet the outstanding request of its connection, or adds it to that. */
static __always_inline void put_request(struct exchange_connection *connection, __u64 next)
{
	__u64 request = *(volatile __u64 *)&connection->request, before;

	if (request) {
		before = __sync_val_compare_and_swap(&connection->request, request,
						     request_extend(request, next));
		if (likely(before == request))
			return;
		/* It was answered meanwhile, before this segment came. */
		next = request_spoil(next, EXCLUSION_PIPELINED);
	}
	connection->position++;
	before = __sync_lock_test_and_set(&connection->request, next);
	count_request(next);
	if (unlikely(before)) /* another CPU has put one at the same time */
		count_lost(before, EXCLUSION_PIPELINED);
}

/* The word of a request that consists of this packet. */
static __always_inline __u64 request_of(const struct exchange_assessment *assessment, __u32 slot,
					__u32 class, __u64 now_ns)
{
	__u64 request = REQUEST_IS_OUTSTANDING | (now_ns & REQUEST_TIME_MASK) |
			(__u64)slot << REQUEST_SLOT_SHIFT |
			(__u64)(assessment->generation & REQUEST_GENERATION_MASK)
				<< REQUEST_GENERATION_SHIFT;

	if (class >= CLASSES)
		return request_spoil(request, EXCLUSION_UNCLASSIFIED);
	return request | (__u64) class << REQUEST_CLASS_SHIFT;
}

/* Begins a connection with a SYN. Returns false if the SYN came again, or has no place. */
static __always_inline bool begin_connection(struct received *received)
{
	__u64 now_ns = received->now_ns;
	__u32 next = ++received->segment.seq;
	struct exchange_connection *connection;

	if (received->way < EXCHANGE_WAYS) {
		connection = connection_of(received);
		if (connection->has_start && !connection->position &&
		    connection->client_next == next)
			return false;
		end_request(received, EXCLUSION_UNANSWERED);
		connection_reset(connection);
	} else if (!find_or_insert(received)) {
		return false;
	}
	connection = connection_of(received);
	connection->client_next = next;
	connection->has_start = 1;
	connection->last_ns = now_ns > EMBRYONIC_NS ? now_ns - EMBRYONIC_NS : 0;
	return true;
}

/* A TCP segment with data. */
static __always_inline void receive_data(struct received *received)
{
	__u32 seq = received->segment.seq, ack = received->segment.ack, server_next;
	__u32 end = seq + received->segment.len;
	bool has_ack = received->segment.flags & TCP_ACK, is_new = received->way >= EXCHANGE_WAYS;
	struct exchange_connection *connection;
	__u64 next = received->request;

	if (!find_or_insert(received)) {
		count_request(next);
		count_lost(next, EXCLUSION_EVICTED);
		return;
	}
	connection = connection_of(received);
	if (is_new)
		connection->client_next = seq;
	if (!is_before(connection->client_next, end)) {
		/* A probe repeats the last byte. */
		if (received->segment.len != 1 || end != connection->client_next)
			exchange_spoil(connection, EXCLUSION_RETRANSMITTED);
		return;
	}
	if (!connection->is_known && has_ack) {
		connection->server_next = ack;
		connection->is_known = 1;
	}
	server_next = *(volatile __u32 *)&connection->server_next;
	if (seq != connection->client_next)
		next = request_spoil(next, EXCLUSION_RETRANSMITTED);
	if (has_ack && is_before(ack, server_next))
		next = request_spoil(next, EXCLUSION_PIPELINED);
	connection->client_next = end;
	connection->last_ns = received->now_ns;
	put_request(connection, next);
	/* The server may have sent while the request was put. Its program first changes server_next
	 * and then reads the request, both in this order for all CPUs.
	 */
	if (has_ack && is_before(ack, *(volatile __u32 *)&connection->server_next))
		exchange_spoil(connection, EXCLUSION_PIPELINED);
}

static __always_inline void receive_tcp(struct received *received)
{
	if (received->segment.flags & TCP_RST) {
		if (received->way < EXCHANGE_WAYS) {
			end_request(received, EXCLUSION_UNANSWERED);
			connection_of(received)->last_ns = 0;
		}
		return;
	}
	if (received->segment.flags & TCP_SYN && !begin_connection(received))
		return;
	if (received->segment.len)
		receive_data(received);
}

/* UDP has no numbers. While datagrams are unanswered, it is not known which of them a response is
 * for.
 */
static __always_inline void receive_udp(struct received *received)
{
	struct exchange_connection *connection;
	__u64 next = received->request;

	if (!find_or_insert(received)) {
		count_request(next);
		count_lost(next, EXCLUSION_EVICTED);
		return;
	}
	connection = connection_of(received);
	if (received->now_ns - connection->last_ns > UDP_TIMEOUT_NS) {
		end_request(received, EXCLUSION_UNANSWERED);
		connection->server_next = 0;
	}
	if ((__s32)connection->server_next > 0) {
		end_request(received, EXCLUSION_PIPELINED);
		next = request_spoil(next, EXCLUSION_PIPELINED);
	}
	__sync_fetch_and_add(&connection->server_next, 1);
	connection->last_ns = received->now_ns;
	put_request(connection, next);
}

/* Whether the assessment of a slot is of this device. */
static __always_inline bool is_assessed_here(__u32 slot)
{
	__u32 key = config.owner & OWNER_INDEX;
	__u64 *slots = bpf_map_lookup_elem(&exchange_devices, &key);

	return slots && *slots >> slot & 1;
}

/* Handles a packet for the port of an assessment. `kind` is as in struct packet. `place` has the
 * slot of the assessment above 8 bits with the offset of the header of IP. The packet is parsed
 * again for what the audit does not need.
 */
static __noinline int exchange_receive(struct xdp_md *ctx, __u64 addresses, __u64 now_ns,
				       __u32 kind, __u32 place)
{
	__u32 slot = place >> 8 & (ASSESSMENT_SLOTS - 1), offset = place & IP_OFFSET_MASK, class;
	struct exchange_assessment *assessment;
	struct segment *segment;
	struct received received = {};
	struct frame frame;

	segment = &received.segment;
	frame = frame_of(ctx);
	if (!is_assessed_here(slot) || !is_after_ethernet(&frame, offset) ||
	    read_segment(&frame, offset, len_of_buffers(ctx), kind >> 8, segment))
		return 0;
	if (segment->ip_protocol == IPPROTO_TCP && !segment->len &&
	    !(segment->flags & (TCP_SYN | TCP_RST)))
		return 0;
	assessment = bpf_map_lookup_elem(&exchange_assessments, &slot);
	if (!assessment)
		return 0;
	class = class_of(assessment, &frame, offset, segment, kind >> 16);
	received.now_ns = now_ns;
	received.request = request_of(assessment, slot, class, now_ns);
	received.hash =
		hash_connection(addresses, segment->ports, segment->family, segment->ip_protocol);
	received.set = exchange_set_of(received.hash);
	if (!received.set)
		return 0;
	received.way = exchange_way(received.set, received.hash);
	if (segment->ip_protocol == IPPROTO_TCP)
		receive_tcp(&received);
	else
		receive_udp(&received);
	return 0;
}

#endif
