/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* MODE_LOG2, in which a sample is the logarithm of a delta. Equal to the bit to
 * internal/timing/log2.go, which gives the formulas.
 */

#ifndef XDP_AUDIT_LOG2_H
#define XDP_AUDIT_LOG2_H

#include "maps.h"
#include "math.h"

#define LOG2_SHIFT 20	  /* fraction bits of a logarithm */
#define LOG2_REST_BITS 24 /* bits of a fraction below those that select its interval */
#define LOG2_NANOSECOND2 2288489396308ULL /* (2²⁰/ln 2)² */
#define LOG2_ROUNDING2 3

/* log2(1 + i/128) in 2⁻³² octaves. */
const volatile __u32 log2_fractions[LOG2_FRACTIONS];

/* log2 of a delta of at most 2³¹ ns in 2⁻²⁰ octaves. 0 ns counts as 1 ns. */
static __always_inline __u64 log2_of_delta(__u64 delta_ns)
{
	__u64 delta = delta_ns | !delta_ns;
	__u32 octave = log2_u64(delta) & 31;
	__u32 fraction = delta << (31 - octave); /* at least 2³¹ */
	__u32 index = fraction >> LOG2_REST_BITS & (LOG2_FRACTIONS - 1);
	__u64 rest = fraction & ((1 << LOG2_REST_BITS) - 1);
	__u32 first = log2_fractions[index];
	/* After the last fraction comes 2³², which is 0 modulo 2³². */
	__u32 step = log2_fractions[(index + 1) & (LOG2_FRACTIONS - 1)] - first;
	__u64 q32 = first + (step * rest >> LOG2_REST_BITS);

	return ((__u64)octave << LOG2_SHIFT) +
	       ((q32 + (1 << (31 - LOG2_SHIFT))) >> (32 - LOG2_SHIFT));
}

/* Twelve times the lower bound on the variance at a mean in 2⁻¹⁶ of the unit. */
static __always_inline __u64 log2_min_squared(__u64 mean_q16)
{
	return (LOG2_NANOSECOND2 >> (mean_q16 >> (16 + LOG2_SHIFT - 1) & 63)) + LOG2_ROUNDING2;
}

#endif
