/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The records of flows, which only flagged packets touch, under the lock of the flow's set. */

#ifndef XDP_AUDIT_RECORD_H
#define XDP_AUDIT_RECORD_H

#include "maps.h"

#define LONGEST_RUN 255

static __always_inline bool is_flagged(enum outcome outcome)
{
	return (__u32)outcome - OUTCOME_FLAGGED_EARLY <=
	       OUTCOME_FLAGGED_LATE - OUTCOME_FLAGGED_EARLY;
}

/* The way of a slot in its set. A difference of pointers, so that most packets need not keep it. */
static __always_inline __u32 way_of(const struct flow_set *set, const struct flow_slot *slot)
{
	return (__u32)((void *)slot - (void *)set) / sizeof(*slot) & (FLOW_WAYS - 1);
}

/* Returns the record of the packet's flow, cleared if it was that of another flow. Returns NULL
 * only if the map is smaller than the configuration says.
 */
static __always_inline struct flow_record *record_of(const struct packet_state *state)
{
	const struct flow_set *set = state->set;
	__u32 way = way_of(set, state->slot);
	__u32 index = state->set_index * FLOW_WAYS + way;
	struct flow_record *record = bpf_map_lookup_elem(&flow_records, &index);

	if (!record)
		return NULL;
	if (record->tag != set->tags[way] || record->mark != set->marks[way]) {
		__builtin_memset(record, 0, sizeof(*record));
		record->tag = set->tags[way];
		record->mark = set->marks[way];
	}
	return record;
}

/* The number of samples that the baseline of the flow has got since the flow's last flagged packet,
 * or since it began. Too low after 255 halvings of the baseline.
 */
static __always_inline __u64 samples_since(const struct flow_record *record,
					   const struct baseline *baseline)
{
	__u64 halvings = baseline->m2_high >> HALVINGS_SHIFT;
	__u64 samples = halvings * (config.baseline_halved_at >> 1) + baseline->n;

	return baseline->m2_high & HAS_RECORD ? samples - record->n : samples;
}

/* Counts a flagged packet in the run of flagged packets in a row. Returns the length of the run. */
static __always_inline __u32 count_run(struct flow_record *record, __u64 samples, bool is_late)
{
	if (samples != 1 || record->run_is_late != is_late)
		record->run = 0;
	record->run_is_late = is_late;
	if (record->run < LONGEST_RUN)
		record->run++;
	return record->run;
}

/* Empties a baseline, which learns the new level of its traffic from the next packet on. With
 * m2_high of 0, it also begins a new run and a new count of samples.
 */
static __always_inline void restart_baseline(struct baseline *baseline,
					     struct device_counters *counters)
{
	__builtin_memset(baseline, 0, sizeof(*baseline));
	counters->baseline_restarts++;
}

/* Counts a flagged packet, which was added to the device's baseline, in the run of flagged packets
 * in a row. See samples_since(). A run that is shorter than two of its deltas may have one packet
 * of each flow, all of them late because the host paused once.
 */
static __always_inline void count_device_run(struct device_counters *counters, bool is_late,
					     __u64 now_ns, __u64 delta_ns)
{
	struct device_baseline *device = &counters->device;
	struct baseline *baseline = &device->baseline;
	__u64 halvings = baseline->m2_high >> HALVINGS_SHIFT;
	__u64 samples =
		halvings * (config.baseline_halved_at >> 1) + baseline->n - device->flagged_n;

	if (samples != 1 || device->run_is_late != is_late || !(baseline->m2_high & HAS_RECORD)) {
		device->run = 0;
		device->run_since_ns = now_ns;
	}
	device->run_is_late = is_late;
	if (device->run < LONGEST_RUN)
		device->run++;
	if (device->run >= config.restart_run && now_ns - device->run_since_ns >= 2 * delta_ns) {
		restart_baseline(baseline, counters);
		return;
	}
	baseline->m2_high = (baseline->m2_high & M2_HIGH_MASK) | HAS_RECORD;
	device->flagged_n = baseline->n;
}

/* Records a flagged packet, which was added to the flow's baseline. */
static __always_inline void record_flag(const struct packet_state *state, enum outcome outcome)
{
	struct flow_record *record = record_of(state);
	struct baseline *baseline = &state->slot->baseline;
	__u32 run;

	if (!record || config.modes & (MODE_DEVICE | MODE_FROZEN))
		return;
	run = count_run(record, samples_since(record, baseline), outcome == OUTCOME_FLAGGED_LATE);
	if (run >= config.restart_run) {
		restart_baseline(baseline, state->counters);
		return;
	}
	baseline->m2_high = (baseline->m2_high & M2_HIGH_MASK) | HAS_RECORD;
	record->n = baseline->n;
}

#endif
