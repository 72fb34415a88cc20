/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* MODE_WATCH: records the deltas of some flows in order, for tests that need many of them. User
 * space chooses the flows. It finds busy flows in samples of packets, and watches a flow by
 * writing the number of a watch into the flow's set. All of this runs under the lock of the
 * flow's set.
 */

#ifndef XDP_AUDIT_WATCH_H
#define XDP_AUDIT_WATCH_H

#include "maps.h"
#include "publish.h"

#define SAMPLED_SHIFT 60 /* one packet in 16 */

/* Records a delta if its flow is watched. A flow that took the slot of a watched one is not. */
static __always_inline void watch_record(struct flow_set *set, __u32 way, __u64 delta_ns)
{
	__u32 index = set->watches[way] - 1;
	struct watch *watch;

	if (!set->watches[way])
		return;
	watch = bpf_map_lookup_elem(&flow_watches, &index);
	if (!watch || watch->tag != set->tags[way] || watch->mark != set->marks[way]) {
		set->watches[way] = 0;
		return;
	}
	watch->deltas_ns[watch->recorded & (WATCH_DELTAS - 1)] = delta_ns;
	store_in_order(&watch->recorded, watch->recorded + 1);
}

/* Whether to sample a packet. Depends on its time to the nanosecond, so that no flow escapes by a
 * regular rhythm.
 */
static __always_inline bool is_sampled(__u64 now_ns)
{
	return !(now_ns * 0x9e3779b97f4a7c15ULL >> SAMPLED_SHIFT);
}

static __always_inline void watch_sample(const struct flow_set *set, __u32 slot_index)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct flow_samples *samples = bpf_map_lookup_elem(&sampled_flows, &cpu);
	struct flow_sample *sample;

	if (!samples)
		return;
	sample = &samples->samples[samples->taken & (FLOW_SAMPLES - 1)];
	sample->slot_index = slot_index;
	sample->tag = set->tags[slot_index & (FLOW_WAYS - 1)];
	store_in_order(&samples->taken, samples->taken + 1);
}

/* Records and samples a delta of the flow in that slot. */
static __always_inline void watch_observe(struct flow_set *set, __u32 slot_index, __u64 delta_ns,
					  __u64 now_ns)
{
	watch_record(set, slot_index & (FLOW_WAYS - 1), delta_ns);
	if (is_sampled(now_ns))
		watch_sample(set, slot_index);
}

#endif
