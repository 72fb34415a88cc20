/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The flow table: set-associative, of fixed size, shared by all CPUs and devices. A set is changed
 * only under its lock. A packet that does not get the lock at once is counted as contended.
 */

#ifndef XDP_AUDIT_FLOW_H
#define XDP_AUDIT_FLOW_H

#include "baseline.h"
#include "clock.h"
#include "compiler.h"
#include "counters.h"
#include "hash.h"
#include "maps.h"
#include "modes.h"
#include "parse_fast.h"
#include "publish.h"
#include "record.h"

/* See set_find(). */
#define WAY_OF_CANDIDATE 0x08002a004c006e00ULL

/* The parts of a flow's hash. They share no bits, except that the way shares some with the mark and
 * the set, and that the set shares some with the mark in a table of more than 2¹⁶ sets.
 */

static __always_inline __u64 set_of(__u64 hash)
{
	return hash >> 32 & config.set_mask;
}

/* The way of the flow if that was free when the flow began. */
static __always_inline __u64 first_way_of(__u64 hash)
{
	return hash >> 61;
}

/* 16 bits. */
static __always_inline __u64 mark_of(__u64 hash)
{
	return hash >> 48;
}

/* Never 0. */
static __always_inline __u32 tag_of(__u64 hash)
{
	return hash;
}

static __always_inline bool set_try_lock(struct flow_set *set)
{
	return !__sync_lock_test_and_set(&set->lock, 1);
}

static __always_inline void set_unlock(struct flow_set *set)
{
	store_in_order(&set->lock, 0);
}

/* Sets the highest bit of each 16-bit lane that equals the mark. May set it in other lanes above
 * the first equal one.
 */
static __always_inline __u64 lanes_equal_to(__u64 lanes, __u64 mark)
{
	__u64 difference = lanes ^ mark * 0x0001000100010001ULL;

	return (difference - 0x0001000100010001ULL) & ~difference & 0x8000800080008000ULL;
}

static __always_inline bool is_flow_in(const struct flow_set *set, __u64 way, __u64 hash)
{
	return set->tags[way] == tag_of(hash) && set->marks[way] == mark_of(hash);
}

/* Returns the way of a flow that is not in its first way, or FLOW_WAYS if it has none. Compares all
 * marks at once: the CPU would mispredict a chain of comparisons whenever flows alternate. Bit 16·i
 * of the candidates is way i, bit 16·i + 4 is way 4 + i. A multiplication turns the lowest such bit
 * into the number of the way.
 */
static __always_inline __u64 set_find(const struct flow_set *set, __u64 hash)
{
	const __u64 *marks = (const __u64 *)set->marks;
	__u64 candidates = lanes_equal_to(marks[0], mark_of(hash)) >> 15 |
			   lanes_equal_to(marks[1], mark_of(hash)) >> 11;

	for (int i = 0; i < FLOW_WAYS && candidates; i++) {
		__u64 first = candidates & -candidates;
		__u64 way = first * WAY_OF_CANDIDATE >> 61;

		if (is_flow_in(set, way, hash))
			return way;
		candidates ^= first;
	}
	return FLOW_WAYS;
}

/* Returns the way for a new flow: the one with the oldest last packet, to within 8 ns. Free ways
 * have last packets at 0, and of several the preferred one is taken. Has no branches: the CPU
 * could not predict them.
 */
static __always_inline __u32 set_find_victim(const struct flow_set *set, __u32 preferred)
{
	__u64 oldest = ~0ULL >> 1;

#pragma unroll
	for (__u32 way = 0; way < FLOW_WAYS; way++) {
		__u64 last_ns = set->slots[way].last_ns & ~(FLOW_WAYS - 1ULL);
		__s64 difference = (last_ns | (way ^ preferred)) - oldest;

		oldest += difference & sign_of(difference);
	}
	return (oldest ^ preferred) & (FLOW_WAYS - 1);
}

static __always_inline void count_eviction(struct device_counters *counters, __u64 last_ns,
					   __u64 now_ns)
{
	bool is_expired = now_ns > last_ns && now_ns - last_ns > config.idle_timeout_ns;

	counters->flow_evictions[is_expired ? EVICTION_EXPIRED : EVICTION_LIVE]++;
}

/* Assigns a way of a set to a new flow. */
static __always_inline void set_assign(struct flow_set *set, __u32 way, __u64 hash, __u64 now_ns,
				       struct device_counters *counters)
{
	struct flow_slot *slot = &set->slots[way];

	if (set->tags[way])
		count_eviction(counters, slot->last_ns, now_ns);
	counters->flow_inserts++;
	set->marks[way] = mark_of(hash);
	set->tags[way] = tag_of(hash);
	__builtin_memset(slot, 0, sizeof(*slot));
	slot->last_ns = now_ns;
}

static __always_inline struct flow_slot *slot_at(struct flow_set *set, __u64 way)
{
	struct flow_slot *slot = &set->slots[way];

	KEEP_IN_REGISTER(slot); /* 14: clang would compute the address at each access */
	return slot;
}

/* Inserts a new flow. A function of its own, because few packets get here. It parses the frame
 * again, so that other packets need not keep what the key is made of.
 */
static __noinline void set_insert(struct xdp_md *ctx, struct flow_set *set, __u64 hash,
				  __u64 now_ns, struct device_counters *counters)
{
	__u32 way = set_find_victim(set, first_way_of(hash));
	__u32 slot_index = set_of(hash) * FLOW_WAYS + way;
	struct flow_key *key = bpf_map_lookup_elem(&flow_keys, &slot_index);
	struct packet packet;

	/* Without this, clang may pass members of the context instead of its address. For this
	 * code, clang 14 passes the address either way, and Linux 6.1 and later accept it. Costs 1
	 * for a new flow.
	 */
	VERIFIER_KNOWS(ctx);
	set_assign(set, way, hash, now_ns, counters);
	if (key) {
		parse_packet(ctx, &packet);
		read_key(ctx, &packet, key);
		key->owner = config.owner;
	}
}

/* A packet that is earlier than the flow's last one, or later by more than the idle timeout. */
static __always_inline enum outcome slot_resume(struct flow_slot *slot, __u64 now_ns)
{
	__u64 last_ns = slot->last_ns;

	if (now_ns >= last_ns) {
		slot->last_ns = now_ns;
		return OUTCOME_IDLE_GAP;
	}
	/* Reordering is shorter than the idle timeout. This clock was set back, and the flow would
	 * count all packets as reordered until it has caught up.
	 */
	if (last_ns - now_ns > config.idle_timeout_ns)
		slot->last_ns = now_ns;
	return OUTCOME_REORDERED;
}

/* Judges and counts a delta that baseline_try_fast() did not judge, or any in other modes. */
static __always_inline enum outcome slot_observe_slow(struct packet_state *state)
{
	struct device_counters *counters;
	enum outcome outcome;
	__u64 delta_ns;

	READ_FROM_STACK(state); /* 12: other packets would keep the members in registers */
	counters = state->counters;
	delta_ns = state->delta_ns;
	if (config.modes)
		outcome = observe_in_modes(state);
	else
		outcome = baseline_observe_slow(&state->slot->baseline, delta_ns, delta_ns,
						&counters->last_flag, state);
	if (is_flagged(outcome))
		record_flag(state, outcome - OUTCOME_FLAGGED_EARLY);
	count_delta(counters, delta_ns);
	return outcome;
}

/* Measures, judges and counts the delta since the flow's last packet. Counting needs no lock, but
 * overlaps with the division in the update of the baseline.
 */
static __always_inline enum outcome slot_observe(struct packet_state *state, struct flow_slot *slot,
						 __u64 now_ns)
{
	__u64 delta_ns = now_ns - slot->last_ns;

	/* Also true if now is earlier: the delta wraps. */
	if (unlikely(delta_ns > config.idle_timeout_ns))
		return slot_resume(slot, now_ns);
	slot->last_ns = now_ns;
	if (likely(!config.modes && baseline_try_fast(&slot->baseline, delta_ns))) {
		count_delta(state->counters, delta_ns);
		return OUTCOME_JUDGED;
	}
	state->slot = slot;
	state->delta_ns = delta_ns;
	return slot_observe_slow(state);
}

/* An outcome on an unlikely path. */
static __always_inline enum outcome cold_outcome(enum outcome outcome)
{
	KEEP_BRANCH(); /* 3: clang would set the outcome before the condition, for all packets */
	return outcome;
}

/* Finds or inserts the packet's flow and judges the packet. Reads the clock as late as possible,
 * because the CPU waits there for all earlier instructions. A packet that baseline_try_fast()
 * judges calls no function after the clock, except for the first delta: across a call, values
 * stay only in four registers.
 */
static __always_inline enum outcome flow_observe(struct packet_state *state,
						 const struct packet *packet)
{
	__u64 hash = hash_packet(packet), way = first_way_of(hash), now_ns;
	struct flow_set *set;
	enum outcome outcome;

	state->set_index = set_of(hash);
	set = bpf_map_lookup_elem(&flow_sets, &state->set_index);
	if (unlikely(!set))
		return cold_outcome(OUTCOME_CONTENDED);
	if (unlikely(!clock_read(state, &now_ns)))
		return cold_outcome(OUTCOME_UNTIMED);
	state->now_ns = now_ns;
	if (unlikely(!set_try_lock(set)))
		return cold_outcome(OUTCOME_CONTENDED);
	state->set = set;
	if (unlikely(!is_flow_in(set, way, hash))) {
		way = set_find(set, hash);
		if (way >= FLOW_WAYS) {
			set_insert(state->ctx, set, hash, state->now_ns, state->counters);
			set_unlock(state->set);
			return cold_outcome(OUTCOME_NEW_FLOW);
		}
	}
	outcome = slot_observe(state, slot_at(set, way), state->now_ns);
	set_unlock(state->set);
	return outcome;
}

#endif
