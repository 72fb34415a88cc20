// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* The audit with the same flow table under the kernel's spin lock, to compare. Loads from Linux 6.9 on, which allows the
 * call of a function under the lock. Only with the kernel's clock, which always has a time.
 */

#include "../flow.h"

/* A flow_set, in which this lock is where that is. */
struct locked_set {
	struct flow_slot slots[FLOW_WAYS];
	struct bpf_spin_lock lock;
	__u32 rest[(sizeof(struct flow_set) - offsetof(struct flow_set, lock)) / sizeof(__u32) - 1];
};

/* Key: hash & config.set_mask. Value: a set. Writer: whoever holds the set's lock. As flow_sets. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct locked_set);
} bench_locked_sets SEC(".maps");

/* As slot_observe(), but leaves the delta in *delta_ns to be counted without the lock: counting may call a helper. A
 * delta beyond the idle timeout is none to count.
 */
static __always_inline enum outcome locked_observe(struct flow_slot *slot, __u64 now_ns, __u64 *delta_ns,
						   struct device_counters *counters)
{
	__u64 last_ns = slot->last_ns;

	if (now_ns < last_ns)
		return OUTCOME_REORDERED;
	slot->last_ns = now_ns;
	*delta_ns = now_ns - last_ns;
	if (*delta_ns > config.idle_timeout_ns)
		return OUTCOME_IDLE_GAP;
	return baseline_observe(&slot->baseline, *delta_ns, *delta_ns, &counters->last_flag);
}

static __always_inline enum outcome spinlock_observe(struct visit *visit, const struct packet *packet)
{
	struct device_counters *counters = visit->counters;
	__u64 hash = hash_packet(packet), way = first_way_of(hash), delta_ns = ~0ULL, now_ns = 0;
	__u32 map_key = set_of(hash);
	struct locked_set *locked = bpf_map_lookup_elem(&bench_locked_sets, &map_key);
	struct flow_set *set = (struct flow_set *)locked;
	enum outcome outcome = OUTCOME_NEW_FLOW;

	if (!locked)
		return OUTCOME_CONTENDED;
	clock_read(visit, &now_ns);
	bpf_spin_lock(&locked->lock);
	if (!is_flow_in(set, way, hash))
		way = set_find(set, hash);
	if (way < FLOW_WAYS)
		outcome = locked_observe(slot_at(set, way), now_ns, &delta_ns, counters);
	else /* set_insert() would look up the cold part, which is not allowed under this lock */
		set_take(set, set_find_victim(set, first_way_of(hash)), hash, now_ns, counters);
	bpf_spin_unlock(&locked->lock);
	visit->now_ns = now_ns;
	if (delta_ns <= config.idle_timeout_ns)
		count_delta(counters, delta_ns);
	return outcome;
}

/* flow.h is behind us: what follows calls this one instead. */
#define flow_observe spinlock_observe

#include "../xdp_audit.bpf.c"
