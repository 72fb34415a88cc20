/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The histogram of deltas: 16 linear cells per octave, each split in two where a boundary of the
 * exported histograms is inside it.
 */

#ifndef XDP_AUDIT_HISTOGRAM_H
#define XDP_AUDIT_HISTOGRAM_H

#include "compiler.h"
#include "maps.h"
#include "math.h"

#define HISTOGRAM_CELL_BITS 4

/* The cell of a delta below 2³² ns. Has no branches: the CPU would mispredict them for deltas
 * around a boundary.
 */
static __always_inline __u32 histogram_cell(__u64 delta_ns)
{
	__s64 below_table_end = (1 << (LOG2_TABLE_BITS + HISTOGRAM_CELL_BITS)) - 1 - delta_ns;
	__u64 octaves = delta_ns >> HISTOGRAM_CELL_BITS;
	__u32 shift, octave, linear, above, cell;

	shift = sign_of(below_table_end) & LOG2_TABLE_BITS;
	octave = shift + log2_table[octaves >> shift & (LOG2_TABLE_SIZE - 1)];
	linear = (octave << HISTOGRAM_CELL_BITS) + (__u32)(delta_ns >> octave);
	linear &= HISTOGRAM_LINEAR_CELLS - 1;
	above = (histogram_cuts[linear] - delta_ns) >> 63; /* 1 if the delta is above the cut */
	cell = 2 * linear;
	/* Clang would use OR instead of +, after which Linux 6.1 knows no bounds. */
	VERIFIER_KNOWS(cell);
	return cell + above;
}

#endif
