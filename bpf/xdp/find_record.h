/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Finds the record of a flow for a flagged packet. */

#ifndef XDP_AUDIT_FIND_RECORD_H
#define XDP_AUDIT_FIND_RECORD_H

#include "compiler.h"
#include "maps.h"

/* The way of a slot in its set. A difference of pointers, so that most packets need not keep it. */
static __always_inline __u32 way_of(const struct flow_set *set, const struct flow_slot *slot)
{
	return (__u64)((void *)slot - (void *)set) / sizeof(*slot) & (FLOW_WAYS - 1);
}

/* Finds the record of the packet's flow and begins to load both of its cache lines: with many flows
 * they are not in the cache, and the CPU computes the score meanwhile. Returns false only if the
 * map is smaller than the configuration says.
 */
static __always_inline bool find_record(struct packet_state *state)
{
	struct set_records *records = bpf_map_lookup_elem(&flow_records, &state->set_index);
	__u64 offset = (void *)state->slot - (void *)state->set;
	struct flow_record *record;

	if (!records)
		return false;
	offset &= (FLOW_WAYS - 1) * sizeof(*state->slot);
	record = (void *)records + offset * (sizeof(*record) / sizeof(*state->slot));
	BEGIN_LOAD(record->n);
	BEGIN_LOAD(record->level.since_ns);
	state->record = record;
	return true;
}

#endif
