/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The table of connections: set-associative and of fixed size. A connection is found without a lock
 * and inserted under that of its set.
 */

#ifndef XDP_AUDIT_EXCHANGE_TABLE_H
#define XDP_AUDIT_EXCHANGE_TABLE_H

#include "exchange_request.h"
#include "hash.h"

/* A connection without a request looks older than it is by 18 minutes, so that a flood of
 * connections evicts connections of its own.
 */
#define EMBRYONIC_NS (1ULL << 40)

static __always_inline struct exchange_set *exchange_set_of(__u64 hash)
{
	__u32 key = hash >> 32 & exchange_config.set_mask;

	return bpf_map_lookup_elem(&exchange_sets, &key);
}

/* Returns the way of a connection in its set; EXCHANGE_WAYS if it has none. */
static __always_inline __u32 exchange_way(const struct exchange_set *set, __u64 hash)
{
	__u32 way;

	for (way = 0; way < EXCHANGE_WAYS; way++)
		if (set->tags[way] == (__u32)hash)
			break;
	return way;
}

static __always_inline struct exchange_connection *connection_at(struct exchange_set *set,
								 __u32 way)
{
	return &set->connections[way & (EXCHANGE_WAYS - 1)];
}

/* The number of a connection: its place, and how many connections had the place before. */
static __always_inline __u64 connection_id(const struct exchange_connection *connection, __u64 hash,
					   __u32 way)
{
	__u32 set = hash >> 32 & exchange_config.set_mask;

	return (__u64)connection->generation << 32 | (set * EXCHANGE_WAYS + way);
}

/* The way that a new connection takes: a free one, or the one with the oldest request. */
static __always_inline __u32 oldest_way(const struct exchange_set *set)
{
	__u64 oldest_ns = ~0ULL;
	__u32 oldest = 0;

	for (__u32 way = 0; way < EXCHANGE_WAYS; way++) {
		__u64 last_ns = set->tags[way] ? set->connections[way].last_ns : 0;

		if (last_ns < oldest_ns) {
			oldest_ns = last_ns;
			oldest = way;
		}
	}
	return oldest;
}

/* Begins a connection in a place whose request was taken out. */
static __always_inline void connection_reset(struct exchange_connection *connection)
{
	connection->generation++;
	connection->position = 0;
	connection->is_known = 0;
	connection->has_start = 0;
	connection->client_next = 0;
	connection->server_next = 0;
	connection->last_ns = 0;
}

/* Inserts a connection. Returns its way; EXCHANGE_WAYS if another CPU holds the lock. It is in
 * line: called, it is too much for Linux 6.1, which rounds each stack up to 32 bytes: "combined
 * stack size of 4 calls is 544. Too large".
 */
static __always_inline __u32 exchange_insert(struct exchange_set *set, __u64 hash, __u64 now_ns)
{
	__u32 way;

	if (__sync_lock_test_and_set(&set->lock, 1))
		return EXCHANGE_WAYS;
	way = exchange_way(set, hash);
	if (way == EXCHANGE_WAYS) {
		struct exchange_connection *connection;

		way = oldest_way(set);
		connection = connection_at(set, way);
		/* Found by no other CPU from here on, until it is the new connection. */
		set->tags[way & (EXCHANGE_WAYS - 1)] = 0;
		exchange_end(connection, connection_id(connection, hash, way), now_ns,
			     EXCLUSION_EVICTED);
		connection_reset(connection);
		__sync_lock_test_and_set(&set->tags[way & (EXCHANGE_WAYS - 1)], (__u32)hash);
	}
	store_in_order(&set->lock, 0);
	return way;
}

#endif
