/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The judging modes other than the default. The baseline of a device is kept per CPU: no other
 * program runs there at the same time, so that it needs no lock. User space merges the baselines of
 * all CPUs.
 */

#ifndef XDP_AUDIT_MODES_H
#define XDP_AUDIT_MODES_H

#include "baseline.h"
#include "log2.h"
#include "maps.h"
#include "publish.h"
#include "record.h"
#include "watch.h"

/* baseline_observe() in the modes of the configuration. A function of its own, so that the program
 * in the default mode does not pay for them.
 */
static __noinline enum outcome observe_in_modes(struct packet_state *state)
{
	struct flow_slot *slot = state->slot;
	struct device_counters *counters = state->counters;
	__u64 delta_ns = state->delta_ns;
	__u64 sample = config.modes & MODE_LOG2 ? log2_of_delta(delta_ns) : delta_ns;
	struct device_baseline *device = &counters->device;
	enum outcome outcome;

	if (config.modes & MODE_WATCH)
		watch_observe(state->set, state->set_index * FLOW_WAYS + way_of(state->set, slot),
			      delta_ns, state->now_ns);
	if (config.modes & MODE_FROZEN) {
		/* A copy, which is discarded with what it learns. */
		struct baseline as_saved = {
			.mean_q16 = config.frozen.mean_q16,
			.m2_low = config.frozen.m2_low,
			.m2_high = config.frozen.m2_high,
			.n = config.frozen.n,
		};

		slot->baseline.n++; /* the flow's deltas; it has no baseline of its own */
		return baseline_observe(&as_saved, sample, delta_ns, &counters->last_flag, state);
	}
	if (!(config.modes & MODE_DEVICE))
		return baseline_observe(&slot->baseline, sample, delta_ns, &counters->last_flag,
					state);
	slot->baseline.n++;
	store_in_order(&device->sequence, device->sequence + 1);
	outcome =
		baseline_observe(&device->baseline, sample, delta_ns, &counters->last_flag, state);
	if (is_flagged(outcome))
		count_device_run(counters, outcome == OUTCOME_FLAGGED_LATE, state->now_ns,
				 delta_ns);
	store_in_order(&device->sequence, device->sequence + 1);
	return outcome;
}

#endif
