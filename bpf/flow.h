/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The flow table: set-associative, of fixed size, shared by all CPUs and devices. A set is changed under its lock; who
 * does not get the lock at once goes without.
 */

#ifndef XDP_AUDIT_FLOW_H
#define XDP_AUDIT_FLOW_H

#include "baseline.h"
#include "clock.h"
#include "common.h"
#include "counters.h"
#include "hash.h"
#include "maps.h"
#include "order.h"
#include "variant.h"

/* See set_find(). */
#define WAY_OF_CANDIDATE 0x08002a004c006e00ULL

struct flow_hash {
	__u32 set;
	__u32 way;  /* where the flow is if that was free when it came */
	__u64 mark; /* 16 bits */
	__u32 tag;  /* never 0 */
	__u32 reserved;
};

/* No bit is used twice, but those of set and mark where a table has more than 2¹³ sets. */
static __always_inline struct flow_hash hash_of(__u64 mixed)
{
	struct flow_hash hash = {
		.set = mixed >> 32 & constant(set_mask),
		.way = mixed >> 61,
		.mark = mixed >> 45 & 0xffff,
		.tag = mixed | 1,
	};

	return hash;
}

static __always_inline bool set_try_lock(struct flow_set *set)
{
	__u64 held = __sync_val_compare_and_swap(&set->lock, 0, 1);

	barrier_var(held); /* else it is turned into a truth value, and then tested */
	return !held;
}

static __always_inline void set_unlock(struct flow_set *set)
{
	store_in_order(&set->lock, 0);
}

/* In each 16-bit lane that agrees with the mark sets the highest bit; it may set others, but none below the first. */
static __always_inline __u64 lanes_that_agree(__u64 lanes, __u64 mark)
{
	__u64 difference = lanes ^ mark * 0x0001000100010001ULL;

	return (difference - 0x0001000100010001ULL) & ~difference & 0x8000800080008000ULL;
}

static __always_inline bool is_flow_in(const struct flow_set *set, int way, const struct flow_hash *hash)
{
	return set->tags[way & (FLOW_WAYS - 1)] == hash->tag && set->marks[way & (FLOW_WAYS - 1)] == hash->mark;
}

/* Returns the way of the flow in its set, or -1. Most flows are where their hash says, so that their slot can be loaded
 * before it is known to be the right one. For the others it looks at all marks at once: a chain of comparisons would be
 * mispredicted whenever flows alternate. The candidates are bits 16·i for way i and 16·i + 4 for way 4 + i, which a
 * multiplication turns into the number of the way.
 */
static __always_inline int set_find(const struct flow_set *set, const struct flow_hash *hash)
{
	const __u64 *marks = (const __u64 *)set->marks;
	__u64 candidates;

	if (is_flow_in(set, hash->way, hash))
		return hash->way;
	candidates = lanes_that_agree(marks[0], hash->mark) >> 15 | lanes_that_agree(marks[1], hash->mark) >> 11;

	for (int i = 0; i < FLOW_WAYS && candidates; i++) {
		__u64 first = candidates & -candidates;
		__u32 way = first * WAY_OF_CANDIDATE >> 61;

		if (is_flow_in(set, way, hash))
			return way;
		candidates ^= first;
	}
	return -1;
}

/* Returns the way that a new flow shall take: the one whose flow was seen longest ago, to within 8 ns, where free ones
 * were never seen and the flow's own comes first. Without branches, which nothing could predict.
 */
static __always_inline __u32 set_find_victim(const struct flow_set *set, __u32 preferred)
{
	__u64 oldest = ~0ULL >> 1;

#pragma unroll
	for (__u32 way = 0; way < FLOW_WAYS; way++) {
		__s64 behind = ((set->slots[way].last_ns & ~(FLOW_WAYS - 1ULL)) | (way ^ preferred)) - oldest;

		oldest += behind & sign_of(behind);
	}
	return (oldest ^ preferred) & (FLOW_WAYS - 1);
}

static __always_inline void count_eviction(struct device_counters *counters, __u64 last_ns, __u64 now_ns)
{
	bool is_expired = now_ns > last_ns && now_ns - last_ns > constant(idle_timeout_ns);

	counters->flow_evictions[is_expired ? EVICTION_EXPIRED : EVICTION_LIVE]++;
}

/* Makes a way of a set a new flow's. */
static __always_inline void set_take(struct flow_set *set, __u32 way, const struct flow_hash *hash, __u64 now_ns,
				     struct device_counters *counters)
{
	struct flow_slot *slot = &set->slots[way];

	if (set->tags[way])
		count_eviction(counters, slot->last_ns, now_ns);
	counters->flow_inserts++;
	set->marks[way] = hash->mark;
	set->tags[way] = hash->tag;
	__builtin_memset(slot, 0, sizeof(*slot));
	slot->last_ns = now_ns;
}

/* The compiler shall keep the address, and not work it out again for each access. */
static __always_inline struct flow_slot *slot_at(struct flow_set *set, int way)
{
	struct flow_slot *slot = &set->slots[way & (FLOW_WAYS - 1)];

	barrier_var(slot);
	return slot;
}

/* Gives a new flow a slot. Apart from the rest, because few packets get here; the frame is parsed anew for the key, so that
 * the others need not keep what it takes.
 */
static __noinline void set_insert(struct xdp_md *ctx, struct flow_set *set, __u64 mixed, __u64 now_ns,
				  struct device_counters *counters)
{
	struct flow_hash hash = hash_of(mixed);
	__u32 way = set_find_victim(set, hash.way), place = hash.set * FLOW_WAYS + way;
	struct flow_key *key = bpf_map_lookup_elem(&flow_keys, &place);
	struct packet packet;

	barrier_var(ctx); /* else what it points to is handed over in its place, which the verifier does not follow */
	set_take(set, way, &hash, now_ns, counters);
	if (key) {
		parse_packet(ctx, &packet);
		read_key(ctx, &packet, key);
		key->owner = constant(owner);
	}
}

/* Measures the delta since the flow's last packet, judges and counts it. Counting needs no lock, but fills the time in which
 * the division of the baseline's update is under way.
 */
static __always_inline enum outcome slot_observe(struct flow_slot *slot, struct flow_set *set, __u32 place,
						 __u64 now_ns, struct device_counters *counters)
{
	__u64 last_ns = slot->last_ns, delta_ns = now_ns - last_ns;
	enum outcome outcome;

	if (unlikely(delta_ns > constant(idle_timeout_ns))) { /* or now is before last, unless the clock wraps */
		if (now_ns >= last_ns) {
			slot->last_ns = now_ns;
			return OUTCOME_IDLE_GAP;
		}
		/* Packets are reordered by less: the clock was set back, and the flow would wait for it in vain. */
		if (last_ns - now_ns > constant(idle_timeout_ns))
			slot->last_ns = now_ns;
		return OUTCOME_REORDERED;
	}
	slot->last_ns = now_ns;
	if (unlikely(constant(variants)))
		outcome = variant_observe(slot, set, place, delta_ns, counters);
	else
		outcome = baseline_observe(&slot->baseline, delta_ns, delta_ns, &counters->last_flag);
	count_delta(counters, delta_ns);
	return outcome;
}

/* Finds the packet's flow, or makes it one, and judges the packet by it. Its time goes to *now: the clock is read as late as
 * can be, because the processor waits there for all that came before.
 */
static __always_inline enum outcome flow_observe(struct xdp_md *ctx, const struct packet *packet, __u64 *now,
						 struct device_counters *counters)
{
	__u64 mixed = hash_packet(packet), now_ns;
	struct flow_hash hash = hash_of(mixed);
	__u32 map_key = hash.set; /* a copy: what a helper reads cannot stay in registers */
	struct flow_set *set = bpf_map_lookup_elem(&flow_sets, &map_key);
	enum outcome outcome = OUTCOME_NEW_FLOW;
	int way;

	now_ns = *now = clock_read(ctx);
	if (unlikely(now_ns == CLOCK_NONE))
		return OUTCOME_UNTIMED;
	if (unlikely(!set || !set_try_lock(set)))
		return OUTCOME_CONTENDED;
	way = set_find(set, &hash);
	if (likely(way >= 0))
		outcome = slot_observe(slot_at(set, way), set, hash.set * FLOW_WAYS + way, now_ns, counters);
	else
		set_insert(ctx, set, mixed, now_ns, counters);
	set_unlock(set);
	return outcome;
}

#endif
