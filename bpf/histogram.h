/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The histogram of deltas: 16 linear cells in an octave, each cut in two where a boundary of the exported histograms
 * falls inside it.
 */

#ifndef XDP_AUDIT_HISTOGRAM_H
#define XDP_AUDIT_HISTOGRAM_H

#include "maps.h"
#include "math.h"

#define HISTOGRAM_CELL_BITS 4

/* ⌊log2 v⌋ for 0 < v < 2³³. Without branches: deltas that lie around a boundary would be mispredicted. */
static __always_inline __u32 log2_delta(__u64 v)
{
	__u64 one = (LOG2_TABLE_SIZE - 1 - v) >> 63, two = (LOG2_TABLE_SIZE * LOG2_TABLE_SIZE - 1 - v) >> 63, shift;

	barrier_var(one);
	barrier_var(two);
	shift = LOG2_TABLE_BITS * (one + two);
	return shift + log2_table[v >> shift & (LOG2_TABLE_SIZE - 1)];
}

/* The cell of a delta below 2³² ns. */
static __always_inline __u32 histogram_cell(__u64 delta_ns)
{
	__u32 linear = delta_ns, above, cell;

	if (delta_ns >> HISTOGRAM_CELL_BITS) {
		__u32 octave = log2_delta(delta_ns) - HISTOGRAM_CELL_BITS;

		linear = (octave << HISTOGRAM_CELL_BITS) + (__u32)(delta_ns >> octave);
	}
	linear &= HISTOGRAM_LINEAR_CELLS - 1;
	above = (histogram_cuts[linear] - delta_ns) >> 63; /* no branch: 1 if above the cut */
	cell = 2 * linear;
	barrier_var(cell); /* else the sum becomes an OR, whose bounds Linux 6.1 does not know */
	return cell + above;
}

#endif
