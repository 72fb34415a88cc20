/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The counters of this device on this CPU. No other program writes them, so that plain increments
 * are exact.
 */

#ifndef XDP_AUDIT_COUNTERS_H
#define XDP_AUDIT_COUNTERS_H

#include "compiler.h"
#include "histogram.h"
#include "maps.h"
#include "math.h"

/* Returns NULL only if the map is smaller than the configuration says. */
static __always_inline struct device_counters *counters_of_cpu(__u32 cpu)
{
	__u32 key = config.first_block + cpu;

	return bpf_map_lookup_elem(&audit_counters, &key);
}

/* The counters of a family and a protocol. Parsers set a cell below PROTOCOL_CELLS. */
static __always_inline struct protocol_counters *cells_of(struct device_counters *counters,
							  __u8 cell)
{
	return &counters->protocols[0][0] + cell;
}

/* The first delta on any CPU of the device becomes the reference on all of them. A delta of 0
 * becomes 1, because 0 means that there is no reference.
 */
static __noinline __u64 choose_reference(struct device_counters *counters, __u64 delta_ns)
{
	struct device_counters *first = counters_of_cpu(0);
	__u64 proposed = delta_ns ? delta_ns : 1, chosen;

	if (!first)
		return proposed;
	chosen = __sync_val_compare_and_swap(&first->sums.reference_ns, 0, proposed);
	if (!chosen)
		chosen = proposed;
	counters->sums.reference_ns = chosen;
	return chosen;
}

/* Counts a delta in the histogram and in the sums. */
static __always_inline void count_delta(struct device_counters *counters, __u64 delta_ns)
{
	struct delta_sums *sums = &counters->sums;
	__u64 reference = sums->reference_ns;
	__s64 difference, sign;
	__u64 distance, side;

	if (unlikely(!reference))
		reference = choose_reference(counters, delta_ns);
	counters->histogram[histogram_cell(delta_ns)]++;
	difference = delta_ns - reference;
	sign = sign_of(difference);
	distance = with_sign(difference, sign);
	side = sign & sizeof(sums->deviation[0]);
	add_u128((void *)sums->deviation + side, distance);
	add_u128(sums->squared, distance * distance);
}

#endif
