/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The flow table: set-associative, of fixed size, shared by all CPUs and devices. A set is changed under its lock; who
 * does not get the lock at once goes without.
 */

#ifndef XDP_AUDIT_FLOW_H
#define XDP_AUDIT_FLOW_H

#include "baseline.h"
#include "clock.h"
#include "parse_fast.h"
#include "counters.h"
#include "hash.h"
#include "maps.h"
#include "publish.h"
#include "modes.h"

/* See set_find(). */
#define WAY_OF_CANDIDATE 0x08002a004c006e00ULL

/* The parts of a flow's hash. No bit is in two of them, but those of the way, and in a table of more than 2¹⁶ sets some of the mark. */

static __always_inline __u32 set_of(__u64 hash)
{
	return hash >> 32 & config.set_mask;
}

/* Where the flow is if that was free when it came. */
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
	__u64 held = __sync_lock_test_and_set(&set->lock, 1);

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

static __always_inline bool is_flow_in(const struct flow_set *set, __u64 way, __u64 hash)
{
	return set->tags[way] == tag_of(hash) && set->marks[way] == mark_of(hash);
}

/* Returns the way of a flow that is not in its first way, or FLOW_WAYS if it is in none. It looks at all marks at once: a chain of
 * comparisons would be mispredicted whenever flows alternate. The candidates are bits 16·i for way i and 16·i + 4 for way
 * 4 + i, which a multiplication turns into the number of the way.
 */
static __always_inline __u64 set_find(const struct flow_set *set, __u64 hash)
{
	const __u64 *marks = (const __u64 *)set->marks;
	__u64 candidates;

	candidates = lanes_that_agree(marks[0], mark_of(hash)) >> 15 | lanes_that_agree(marks[1], mark_of(hash)) >> 11;

	for (int i = 0; i < FLOW_WAYS && candidates; i++) {
		__u64 first = candidates & -candidates;
		__u64 way = first * WAY_OF_CANDIDATE >> 61;

		if (is_flow_in(set, way, hash))
			return way;
		candidates ^= first;
	}
	return FLOW_WAYS;
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
	bool is_expired = now_ns > last_ns && now_ns - last_ns > config.idle_timeout_ns;

	counters->flow_evictions[is_expired ? EVICTION_EXPIRED : EVICTION_LIVE]++;
}

/* Makes a way of a set a new flow's. */
static __always_inline void set_take(struct flow_set *set, __u32 way, __u64 hash, __u64 now_ns,
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

/* The compiler shall keep the address, and not work it out again for each access. */
static __always_inline struct flow_slot *slot_at(struct flow_set *set, __u64 way)
{
	struct flow_slot *slot = &set->slots[way];

	barrier_var(slot);
	return slot;
}

/* Gives a new flow a slot. Apart from the rest, because few packets get here; the frame is parsed anew for the key, so that
 * the others need not keep what it takes.
 */
static __noinline void set_insert(struct xdp_md *ctx, struct flow_set *set, __u64 hash, __u64 now_ns,
				  struct device_counters *counters)
{
	__u32 way = set_find_victim(set, first_way_of(hash)), place = set_of(hash) * FLOW_WAYS + way;
	struct flow_key *key = bpf_map_lookup_elem(&flow_keys, &place);
	struct packet packet;

	barrier_var(ctx); /* else what it points to is handed over in its place, which the verifier does not follow */
	set_take(set, way, hash, now_ns, counters);
	if (key) {
		parse_packet(ctx, &packet);
		read_key(ctx, &packet, key);
		key->owner = config.owner;
	}
}

/* A packet whose time is not within the idle timeout after the flow's last one: later, or earlier. */
static __always_inline enum outcome slot_resume(struct flow_slot *slot, __u64 now_ns)
{
	__u64 last_ns = slot->last_ns;

	if (now_ns >= last_ns) {
		slot->last_ns = now_ns;
		return OUTCOME_IDLE_GAP;
	}
	/* Packets are reordered by less: the clock was set back, and the flow would wait for it in vain. */
	if (last_ns - now_ns > config.idle_timeout_ns)
		slot->last_ns = now_ns;
	return OUTCOME_REORDERED;
}

/* Judges and counts a delta that is not near to the mean, or that is judged in another way. All is read from the stack, or the
 * others would have to keep for this what they have found.
 */
static __always_inline enum outcome slot_judge(struct visit *visit)
{
	struct device_counters *counters;
	enum outcome outcome;
	__u64 delta_ns;

	barrier_var(visit);
	counters = visit->counters;
	delta_ns = visit->delta_ns;
	if (config.variants)
		outcome = variant_observe(visit->slot, visit->set, visit->place, delta_ns, counters);
	else
		outcome = baseline_observe_rest(&visit->slot->baseline, delta_ns, delta_ns, &counters->last_flag);
	count_delta(counters, delta_ns);
	return outcome;
}

/* Measures the delta since the flow's last packet, judges and counts it. Counting needs no lock, but fills the time in which
 * the division of the baseline's update is under way.
 */
static __always_inline enum outcome slot_observe(struct visit *visit, struct flow_slot *slot, __u64 now_ns)
{
	__u64 delta_ns = now_ns - slot->last_ns;

	if (unlikely(delta_ns > config.idle_timeout_ns)) /* or now is before last, unless the clock wraps */
		return slot_resume(slot, now_ns);
	slot->last_ns = now_ns;
	if (likely(!config.variants && baseline_observe_near(&slot->baseline, delta_ns))) {
		count_delta(visit->counters, delta_ns);
		return OUTCOME_JUDGED;
	}
	visit->slot = slot;
	visit->delta_ns = delta_ns;
	return slot_judge(visit);
}

/* Keeps the compiler from setting an outcome ahead, for the case that a condition holds. */
static __always_inline enum outcome at_last(enum outcome outcome)
{
	barrier();
	return outcome;
}

/* Finds the packet's flow, or makes it one, and judges the packet by it. The clock is read as late as can be, because the
 * processor waits there for all that came before. On the way of a packet that is near to the mean of its flow, nothing behind the
 * clock calls a function but for a first delta: for a call the compiler has to keep what it knows out of most registers.
 */
static __always_inline enum outcome flow_observe(struct visit *visit, const struct packet *packet)
{
	__u64 hash = hash_packet(packet), way = first_way_of(hash), now_ns;
	__u32 map_key = set_of(hash); /* a copy: what a helper reads cannot stay in registers */
	struct flow_set *set = bpf_map_lookup_elem(&flow_sets, &map_key);
	enum outcome outcome;

	if (unlikely(!set))
		return at_last(OUTCOME_CONTENDED);
	if (unlikely(!clock_read(visit, &now_ns)))
		return at_last(OUTCOME_UNTIMED);
	visit->now_ns = now_ns;
	if (unlikely(!set_try_lock(set)))
		return at_last(OUTCOME_CONTENDED);
	visit->set = set;
	if (unlikely(!is_flow_in(set, way, hash))) {
		way = set_find(set, hash);
		if (way >= FLOW_WAYS) {
			set_insert(visit->ctx, set, hash, visit->now_ns, visit->counters);
			set_unlock(visit->set);
			return at_last(OUTCOME_NEW_FLOW);
		}
	}
	if (config.variants)
		visit->place = set_of(hash) * FLOW_WAYS + way;
	outcome = slot_observe(visit, slot_at(set, way), visit->now_ns);
	set_unlock(visit->set);
	return outcome;
}

#endif
