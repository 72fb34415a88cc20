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

/* Set in the high word of a sum while the low word wraps around. No addend exceeds 2⁶², so the
 * highest bit of the low word is set before that and clear after it. Therefore a reader that finds
 * the same high word before and after the low word knows the sum: wordsToSum() in counter_block.go.
 */
#define SUM_CARRIES (1ULL << 63)

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

/* Adds to the sum at an offset in the counters. Branches on the carry, which is rare: most calls
 * leave the high word alone. The stores of a carry are exchanges, because readers must see them in
 * this order. The offset is an argument of its own, or clang would compute the address of the sum
 * for all packets (1).
 */
static __always_inline void add_to_sum(void *counters, __u32 offset, __u64 v)
{
	__u64 *sum = counters + offset;
	__u64 low = sum[0] + v, high;

	KEEP_IN_REGISTER(low); /* 10: clang would compute the carry first and keep it */
	if (likely(low >= v)) {
		sum[0] = low;
		return;
	}
	high = sum[1] + 1;
	__sync_lock_test_and_set(&sum[1], high | SUM_CARRIES);
	__sync_lock_test_and_set(&sum[0], low);
	__sync_lock_test_and_set(&sum[1], high);
}

/* Counts a delta in the histogram and in the sums. */
static __always_inline void count_delta(struct device_counters *counters, __u64 delta_ns)
{
	__u64 reference = counters->sums.reference_ns;
	__s64 difference, sign;
	__u64 distance, side;

	if (unlikely(!reference))
		reference = choose_reference(counters, delta_ns);
	counters->histogram[histogram_cell(delta_ns)]++;
	difference = delta_ns - reference;
	sign = sign_of(difference);
	distance = with_sign(difference, sign);
	side = sign & sizeof(counters->sums.deviation[0]);
	add_to_sum((void *)counters + side, offsetof(struct device_counters, sums.deviation),
		   distance);
	add_to_sum(counters, offsetof(struct device_counters, sums.squared), distance * distance);
}

#endif
