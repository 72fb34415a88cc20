// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* The audit with the same flow table under the kernel's spin lock, for comparison. Loads on Linux
 * 6.9 and later, which allow a function call under the lock. Works only with the kernel's clock,
 * which has a time for every packet.
 */

#include "../flow.h"

/* A struct flow_set with a spin lock in the place of its lock. */
struct locked_set {
	struct flow_slot slots[FLOW_WAYS];
	struct bpf_spin_lock lock;
	__u32 rest[(sizeof(struct flow_set) - offsetof(struct flow_set, lock)) / sizeof(__u32) - 1];
};

/* Key: hash & config.set_mask. Value: a set. Writer: the holder of the set's lock. As flow_sets. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct locked_set);
} bench_locked_sets SEC(".maps");

/* slot_observe(), but leaves the delta in *delta_ns, to be counted without the lock: counting may
 * call a helper. Leaves a delta above the idle timeout where there is none to count.
 */
static __always_inline enum outcome locked_observe(struct flow_slot *slot, __u64 now_ns,
						   __u64 *delta_ns,
						   struct device_counters *counters)
{
	__u64 last_ns = slot->last_ns;

	if (now_ns < last_ns)
		return OUTCOME_REORDERED;
	slot->last_ns = now_ns;
	*delta_ns = now_ns - last_ns;
	if (*delta_ns > config.idle_timeout_ns)
		return OUTCOME_IDLE_GAP;
	return baseline_observe(&slot->baseline, *delta_ns, *delta_ns, &counters->last_flag, NULL);
}

static __always_inline enum outcome spinlock_observe(struct packet_state *state,
						     const struct packet *packet)
{
	struct device_counters *counters = state->counters;
	__u64 hash = hash_packet(packet), way = first_way_of(hash), delta_ns = ~0ULL, now_ns = 0;
	__u32 map_key = set_of(hash);
	struct locked_set *locked = bpf_map_lookup_elem(&bench_locked_sets, &map_key);
	struct flow_set *set = (struct flow_set *)locked;
	enum outcome outcome = OUTCOME_NEW_FLOW;

	if (!locked)
		return OUTCOME_CONTENDED;
	clock_read(state, &now_ns);
	bpf_spin_lock(&locked->lock);
	if (!is_flow_in(set, way, hash))
		way = set_find(set, hash);
	if (way < FLOW_WAYS)
		outcome = locked_observe(slot_at(set, way), now_ns, &delta_ns, counters);
	else /* set_insert() would look up flow_keys, which is not allowed under this lock */
		set_assign(set, set_find_victim(set, first_way_of(hash)), hash, now_ns, counters);
	bpf_spin_unlock(&locked->lock);
	state->now_ns = now_ns;
	counters->last_flag.is_sent = false; /* the flow has no record */
	if (delta_ns <= config.idle_timeout_ns)
		count_delta(counters, delta_ns);
	return outcome;
}

/* flow.h is included already. The program below calls this function instead of its own. */
#define flow_observe spinlock_observe

#include "../xdp_audit.bpf.c"
