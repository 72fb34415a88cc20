/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Recording the deltas of some flows, for tests that need many of them in their order. Which flows these are is up to user
 * space: it gives a flow a watch by writing its number into the flow's set, and learns from samples which flows are worth it.
 * All of it is done under the lock of the flow's set.
 */

#ifndef XDP_AUDIT_WATCH_H
#define XDP_AUDIT_WATCH_H

#include "maps.h"
#include "publish.h"

#define SAMPLED_SHIFT 60 /* one packet in 16 */

/* Records a delta if its flow has a watch. A flow that took the way of a watched one does not have its watch. */
static __always_inline void watch_record(struct flow_set *set, __u32 way, __u64 delta_ns)
{
	__u32 number = set->watches[way] - 1;
	struct watch *watch;

	if (!set->watches[way])
		return;
	watch = bpf_map_lookup_elem(&flow_watches, &number);
	if (!watch || watch->tag != set->tags[way] || watch->mark != set->marks[way]) {
		set->watches[way] = 0;
		return;
	}
	watch->deltas_ns[watch->recorded & (WATCH_DELTAS - 1)] = delta_ns;
	store_in_order(&watch->recorded, watch->recorded + 1);
}

/* Whether a packet is sampled. It depends on its time to the nanosecond, so that no rhythm of a flow keeps it out. */
static __always_inline bool is_sampled(__u64 now_ns)
{
	return !(now_ns * 0x9e3779b97f4a7c15ULL >> SAMPLED_SHIFT);
}

static __always_inline void watch_sample(const struct flow_set *set, __u32 place)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct flow_samples *samples = bpf_map_lookup_elem(&sampled_flows, &cpu);
	struct flow_sample *sample;

	if (!samples)
		return;
	sample = &samples->samples[samples->taken & (FLOW_SAMPLES - 1)];
	sample->place = place;
	sample->tag = set->tags[place & (FLOW_WAYS - 1)];
	store_in_order(&samples->taken, samples->taken + 1);
}

/* What there is to do for a delta of the flow at that place. */
static __always_inline void watch_observe(struct flow_set *set, __u32 place, __u64 delta_ns, __u64 now_ns)
{
	watch_record(set, place & (FLOW_WAYS - 1), delta_ns);
	if (is_sampled(now_ns))
		watch_sample(set, place);
}

#endif
