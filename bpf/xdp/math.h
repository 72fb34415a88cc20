/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Integer arithmetic that BPF has no instructions for. */

#ifndef XDP_AUDIT_MATH_H
#define XDP_AUDIT_MATH_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "compiler.h"

struct u128 {
	__u64 low;
	__u64 high;
};

static const __u8 debruijn_log2[64] = {
	/* clang-format off */
	63, 0, 58, 1, 59, 47, 53, 2, 60, 39, 48, 27, 54, 33, 42, 3,
	61, 51, 37, 40, 49, 18, 28, 20, 55, 30, 34, 11, 43, 14, 22, 4,
	62, 57, 46, 52, 38, 26, 32, 41, 50, 36, 17, 19, 29, 10, 13, 21,
	56, 45, 25, 31, 35, 16, 9, 12, 44, 24, 15, 8, 23, 7, 6, 5,
	/* clang-format on */
};

/* ⌊log2 v⌋ for v > 0, by table: each branch of a search would double the verifier's paths. */
static __always_inline __u32 log2_u64(__u64 v)
{
	v |= v >> 1;
	v |= v >> 2;
	v |= v >> 4;
	v |= v >> 8;
	v |= v >> 16;
	v |= v >> 32;
	return debruijn_log2[((v - (v >> 1)) * 0x07edd5e59a4e28c2ULL) >> 58];
}

/* −1 for a negative difference, otherwise 0. Without a branch: the signs of deviations are random,
 * so the CPU would mispredict it for every second packet.
 */
static __always_inline __s64 sign_of(__s64 difference)
{
	return difference >> 63;
}

/* Negates v if the sign is −1. With the sign of v itself, returns the absolute value. */
static __always_inline __s64 with_sign(__s64 v, __s64 sign)
{
	return (v ^ sign) - sign;
}

/* Shifts by 0 to 63. */
static __always_inline struct u128 shift_left(struct u128 v, __u32 by)
{
	if (by) {
		v.high = v.high << by | v.low >> (64 - by);
		v.low <<= by;
	}
	return v;
}

/* The low 64 bits of v >> by, for by from 0 to 127. */
static __always_inline __u64 shift_right(struct u128 v, __u32 by)
{
	if (by >= 64)
		return v.high >> (by - 64);
	if (by)
		return v.high << (64 - by) | v.low >> by;
	return v.low;
}

/* a · b for b < 2³². */
static __always_inline struct u128 multiply_u32(__u64 a, __u64 b)
{
	__u64 low = (a & 0xffffffff) * b;
	__u64 high = (a >> 32) * b + (low >> 32);
	struct u128 product = { .low = high << 32 | (low & 0xffffffff), .high = high >> 32 };

	return product;
}

/* v · by modulo 2¹²⁸. */
static __always_inline struct u128 multiply_u128(struct u128 v, __u32 by)
{
	struct u128 product = multiply_u32(v.low, by);

	product.high += v.high * by;
	return product;
}

static __always_inline bool is_below(struct u128 a, struct u128 b)
{
	return a.high < b.high || (a.high == b.high && a.low < b.low);
}

static __always_inline __u32 bits_of(struct u128 v)
{
	if (v.high)
		return 65 + log2_u64(v.high);
	return v.low ? 1 + log2_u64(v.low) : 0;
}

/* The 32-bit mantissa of v > 0: v = mantissa · 2^(log2_v − 31), rounded down. */
static __always_inline __u64 top_32(__u64 v, __u32 log2_v)
{
	return v << (63 - log2_v) >> 32;
}

/* √v for 2³² ≤ v < 2⁶³ and its ⌊log2 v⌋, to within 0.05 %. A line through the roots of an octave of
 * √v approximates it to within 3.2 %. One step of Newton's method halves the square of that.
 */
static __always_inline __u64 square_root(__u64 v, __u32 log2_v)
{
	__u32 half = log2_v >> 1;
	__u64 root = ((2ULL << half) + (v >> half)) * 88 >> 8;

	return (root + v / root) >> 1;
}

#endif
