/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Judging on a logarithmic scale, against a baseline of the whole device, one that was saved, or several of these; and
 * recording the deltas of watched flows. The baseline of a device is kept for each CPU by itself: no other program runs there
 * at the same time, so that it needs no lock, and user space merges them.
 */

#ifndef XDP_AUDIT_MODES_H
#define XDP_AUDIT_MODES_H

#include "baseline.h"
#include "log2.h"
#include "maps.h"
#include "publish.h"
#include "watch.h"

/* baseline_observe() and more, for what config.variants says. Apart from the rest, so that a program without variants is as it
 * would be if there were none.
 */
static __noinline enum outcome variant_observe(struct flow_slot *slot, struct flow_set *set, __u32 place,
					       __u64 delta_ns, struct device_counters *counters)
{
	__u64 sample = config.variants & VARIANT_LOG2 ? log2_of_delta(delta_ns) : delta_ns;
	struct device_baseline *device = &counters->device;
	enum outcome outcome;

	if (config.variants & VARIANT_WATCH)
		watch_observe(set, place, delta_ns, slot->last_ns);
	if (config.variants & VARIANT_FROZEN) {
		struct baseline as_saved = { /* what it is taught is gone with it */
			.mean_q16 = config.frozen.mean_q16,
			.m2_low = config.frozen.m2_low,
			.m2_high = config.frozen.m2_high,
			.n = config.frozen.n,
		};

		return baseline_observe(&as_saved, sample, delta_ns, &counters->last_flag);
	}
	if (!(config.variants & VARIANT_DEVICE))
		return baseline_observe(&slot->baseline, sample, delta_ns, &counters->last_flag);
	store_in_order(&device->sequence, device->sequence + 1);
	outcome = baseline_observe(&device->baseline, sample, delta_ns, &counters->last_flag);
	store_in_order(&device->sequence, device->sequence + 1);
	return outcome;
}

#endif
