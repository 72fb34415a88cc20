/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The flow table: set-associative, of fixed size, shared by all CPUs and devices. A set is changed under its lock; who
 * does not get the lock at once goes without.
 */

#ifndef XDP_AUDIT_FLOW_H
#define XDP_AUDIT_FLOW_H

#include "baseline.h"
#include "counters.h"
#include "maps.h"

struct flow_hash {
	__u32 set;
	__u32 tag_low; /* never 0 */
	__u32 tag_high; /* 16 bits */
};

/* The NH family of universal hash functions (Black et al., UMAC, 1999) over the words of a flow: for keys that an attacker
 * does not know, two flows agree with probability 2⁻³², whatever they are. Each device has keys of its own.
 */
static __always_inline __u64 hash_words(const struct flow_key *key, int which)
{
	const volatile __u32 *keys = config.hash_keys[which];
	__u32 ports = (__u32)key->source_port << 16 | key->destination_port;
	__u32 kind = (__u32)key->vlan_id << 16 | key->family << 8 | key->ip_protocol;
	__u64 sum = (__u64)(ports + keys[0]) * (kind + keys[1]);

	sum += (__u64)(key->source[0] + keys[2]) * (key->destination[0] + keys[3]);
	if (key->family == FAMILY_IPV6) {
		sum += (__u64)(key->source[1] + keys[4]) * (key->destination[1] + keys[5]);
		sum += (__u64)(key->source[2] + keys[6]) * (key->destination[2] + keys[7]);
		sum += (__u64)(key->source[3] + keys[8]) * (key->destination[3] + keys[9]);
	}
	return sum;
}

/* Spreads the entropy of all bits over the upper ones. */
static __always_inline __u64 hash_mix(__u64 v)
{
	v ^= v >> 32;
	v *= 0x9e3779b97f4a7c15ULL;
	v ^= v >> 29;
	return v * 0xbf58476d1ce4e5b9ULL;
}

static __always_inline struct flow_hash flow_hash(const struct flow_key *key)
{
	__u64 a = hash_mix(hash_words(key, 0)), b = hash_mix(hash_words(key, 1));
	struct flow_hash hash = { .set = a >> 32, .tag_low = b >> 32, .tag_high = b >> 16 & 0xffff };

	if (!hash.tag_low)
		hash.tag_low = 1;
	return hash;
}

static __always_inline bool set_try_lock(struct flow_set *set)
{
	return __sync_val_compare_and_swap(&set->lock, 0, 1) == 0;
}

/* An exchange, because a plain store would not order what came before it on weakly ordered machines. */
static __always_inline void set_unlock(struct flow_set *set)
{
	__sync_lock_test_and_set(&set->lock, 0);
}

/* Returns the way of the flow in its set, or -1. */
static __always_inline int set_find(const struct flow_set *set, struct flow_hash hash)
{
#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++)
		if (set->tags_low[way] == hash.tag_low && set->tags_high[way] == hash.tag_high)
			return way;
	return -1;
}

/* Returns the way that a new flow shall take: a free one, or else the one whose flow was seen longest ago. */
static __always_inline int set_find_victim(const struct flow_set *set)
{
	int victim = 0;

#pragma unroll
	for (int way = 0; way < FLOW_WAYS; way++) {
		if (!set->tags_low[way])
			return way;
		if (set->slots[way].last_ns < set->slots[victim & (FLOW_WAYS - 1)].last_ns)
			victim = way;
	}
	return victim & (FLOW_WAYS - 1);
}

static __always_inline void count_eviction(struct device_counters *counters, __u64 last_ns, __u64 now_ns)
{
	bool is_expired = now_ns > last_ns && now_ns - last_ns > config.idle_timeout_ns;

	counters->flow_evictions[is_expired ? EVICTION_EXPIRED : EVICTION_LIVE]++;
}

static __always_inline void set_insert(struct flow_set *set, __u32 index, struct flow_hash hash,
				       const struct flow_key *key, __u64 now_ns, struct device_counters *counters)
{
	__u32 way = set_find_victim(set) & (FLOW_WAYS - 1);
	struct flow_slot *slot = &set->slots[way];
	__u32 cold = index * FLOW_WAYS + way;
	struct flow_key *owner = bpf_map_lookup_elem(&flow_keys, &cold);

	if (set->tags_low[way])
		count_eviction(counters, slot->last_ns, now_ns);
	counters->flow_inserts++;
	set->tags_low[way] = hash.tag_low;
	set->tags_high[way] = hash.tag_high;
	__builtin_memset(slot, 0, sizeof(*slot));
	slot->last_ns = now_ns;
	if (owner)
		*owner = *key;
}

/* Measures the delta since the flow's last packet and judges it. *delta_ns is set for the outcomes that have_delta(). */
static __always_inline enum outcome slot_observe(struct flow_slot *slot, __u64 now_ns, __u64 *delta_ns,
						 struct flag_state *flag)
{
	if (now_ns < slot->last_ns)
		return OUTCOME_REORDERED;
	*delta_ns = now_ns - slot->last_ns;
	slot->last_ns = now_ns;
	if (*delta_ns > config.idle_timeout_ns)
		return OUTCOME_IDLE_GAP;
	return baseline_observe(slot, *delta_ns, flag);
}

static __always_inline bool is_flagged(enum outcome outcome)
{
	return outcome == OUTCOME_FLAGGED_EARLY || outcome == OUTCOME_FLAGGED_LATE;
}

static __always_inline bool has_delta(enum outcome outcome)
{
	return outcome == OUTCOME_JUDGED || outcome == OUTCOME_MIN_SAMPLES || is_flagged(outcome);
}

/* Finds the packet's flow, or makes it one, and judges the packet by it. */
static __always_inline enum outcome flow_observe(const struct flow_key *key, __u64 now_ns,
						 struct device_counters *counters, struct flag_state *flag)
{
	struct flow_hash hash = flow_hash(key);
	__u32 index = hash.set & config.set_mask;
	struct flow_set *set = bpf_map_lookup_elem(&flow_sets, &index);
	enum outcome outcome = OUTCOME_NEW_FLOW;
	__u64 delta_ns = 0;
	int way;

	if (!set || !set_try_lock(set))
		return OUTCOME_CONTENDED;
	way = set_find(set, hash);
	if (way >= 0)
		outcome = slot_observe(&set->slots[way & (FLOW_WAYS - 1)], now_ns, &delta_ns, flag);
	else
		set_insert(set, index, hash, key, now_ns, counters);
	set_unlock(set);
	if (has_delta(outcome))
		count_delta(counters, delta_ns);
	return outcome;
}

#endif
