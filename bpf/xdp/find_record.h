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

/* Finds the record of the packet's flow and begins to load it: with many flows it is not in the
 * cache, and the CPU computes the score meanwhile. Returns false only if the map is smaller than
 * the configuration says.
 */
static __always_inline bool find_record(struct packet_state *state)
{
	struct set_records *records = bpf_map_lookup_elem(&flow_records, &state->set_index);
	__u32 way = way_of(state->set, state->slot);

	if (!records)
		return false;
	state->records = records;
	state->record = (void *)records + way * sizeof(*state->record);
	BEGIN_LOAD(state->record->n);
	return true;
}

/* The level of the run of the packet's flow, after find_record(). */
static __always_inline struct run_level *level_of(const struct packet_state *state)
{
	return (void *)state->records + offsetof(struct set_records, levels) +
	       way_of(state->set, state->slot) * sizeof(struct run_level);
}

#endif
