/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The timing baseline of a flow: test a delta against the samples so far, then let it in. The arithmetic is the same to
 * the bit as that of internal/timing/baseline.go, which also gives the formulas.
 */

#ifndef XDP_AUDIT_BASELINE_H
#define XDP_AUDIT_BASELINE_H

#include "maps.h"
#include "math.h"

#define MEAN_SHIFT 16
#define CLIP_SHIFT 4

/* max(12·M2, n − 1): the variance is at least 1/12 ns². */
static __always_inline struct u128 floored_12_m2(__u64 n, struct u128 m2)
{
	struct u128 eight = shift_left(m2, 3), sum = shift_left(m2, 2), least = { .low = n - 1 };

	sum.low += eight.low;
	sum.high += eight.high + (sum.low < eight.low);
	return is_below(sum, least) ? least : sum;
}

/* Whether deviation² · (n − 1) ≥ M2 · 2^shift, exactly, the deviation rounded up to whole nanoseconds. */
static __always_inline bool is_outside(__u64 deviation_q16, __u64 n, struct u128 m2, __u32 shift)
{
	__u64 d = (deviation_q16 + (1 << MEAN_SHIFT) - 1) >> MEAN_SHIFT;

	return !is_below(multiply_u32(d * d, n - 1), shift_left(m2, shift));
}

/* Whether |t| reaches the threshold. A global function: verified once, by itself. */
__noinline int baseline_exceeds(__u64 deviation_q16, __u64 n, __u64 m2_low, __u64 m2_high)
{
	struct u128 m2 = { .low = m2_low, .high = m2_high };
	struct scaled threshold2 = { .mantissa = config.threshold2_mantissa, .exponent = config.threshold2_exponent };
	struct scaled d = scaled_from_u64(deviation_q16);
	struct scaled left = scaled_multiply(d, d);
	struct scaled right = scaled_from_u128(floored_12_m2(n, m2));

	left = scaled_multiply(left, scaled_from_u64(n));
	left = scaled_multiply(left, scaled_from_u64(12 * (n - 1)));
	right = scaled_multiply(right, scaled_from_u64(n + 1));
	right = scaled_multiply(right, threshold2);
	right.exponent += 2 * MEAN_SHIFT;
	return !scaled_is_below(left, right);
}

/* Four standard deviations in 2⁻¹⁶ ns. A global function: verified once, by itself. */
__noinline __u64 baseline_clip_limit(__u64 n, __u64 m2_low, __u64 m2_high)
{
	struct u128 m2 = { .low = m2_low, .high = m2_high };
	struct u128 m = floored_12_m2(n, m2);
	__s32 shift = ((__s32)bits_of(m) - 62) & ~1; /* even, and leaves 62 or 63 bits */
	__u64 significant = shift >= 0 ? shift_right(m, shift & 127) : m.low << (-shift & 63);
	__u64 root = square_root(significant / (12 * (n - 1)));

	shift = (shift >> 1) + MEAN_SHIFT + CLIP_SHIFT / 2;
	return shift < 0 ? root >> (-shift & 63) : root << (shift & 63);
}

/* One step of Welford's method; halves the baseline when it has twice the window. */
static __always_inline void baseline_update(struct flow_slot *slot, __u64 deviation_q16, __s64 sign)
{
	const __u64 half = 1 << (MEAN_SHIFT - 1);
	__u64 n = (__u64)slot->n + 1;
	__u64 step = (deviation_q16 + n / 2) / n;
	__u64 product = ((deviation_q16 + half) >> MEAN_SHIFT) * ((deviation_q16 - step + half) >> MEAN_SHIFT);

	slot->mean_q16 += with_sign(step, sign);
	slot->m2_low += product;
	slot->m2_high += slot->m2_low < product;
	if (n == config.window_twice) {
		n >>= 1;
		slot->m2_low = slot->m2_low >> 1 | (__u64)slot->m2_high << 63;
		slot->m2_high >>= 1;
	}
	slot->n = n;
}

/* The state that the next flagged packet of this CPU leaves. */
static __always_inline struct flag_state *next_flag(struct last_flag *last)
{
	return &last->states[(last->sequence + 1) & 1];
}

/* Judges a deviation that may be worth flagging or clipping, and clips it. A flagged one leaves what it was judged by in
 * the next state of *last. Apart from the rest, because few packets get here.
 */
static __noinline bool baseline_judge(const struct flow_slot *slot, __u64 *deviation_q16, bool is_early,
				      struct last_flag *last)
{
	struct u128 m2 = { .low = slot->m2_low, .high = slot->m2_high };
	__u64 n = slot->n, deviation = *deviation_q16;
	bool is_flagged = !config.threshold2_mantissa || baseline_exceeds(deviation, n, m2.low, m2.high);

	if (is_flagged) {
		struct flag_state *flag = next_flag(last);

		flag->mean_q16 = slot->mean_q16;
		flag->m2_low = m2.low;
		flag->m2_high = m2.high;
		flag->n = n;
		flag->is_late = !is_early;
	}
	if (is_outside(deviation, n, m2, CLIP_SHIFT)) {
		__u64 limit = baseline_clip_limit(n, m2.low, m2.high);

		if (deviation > limit)
			*deviation_q16 = limit;
	}
	return is_flagged;
}

/* Whether a deviation is so small that it is neither flagged nor clipped. */
static __always_inline bool is_ordinary(const struct flow_slot *slot, __u64 deviation_q16)
{
	struct u128 m2 = { .low = slot->m2_low, .high = slot->m2_high };
	__s32 shift = config.shortcut_shift;

	return shift >= 0 && !is_outside(deviation_q16, slot->n, m2, shift & 63);
}

/* Judges a delta, of at most 2³¹ ns, against the samples before it, then updates the baseline with it: from min_samples
 * on no further than four standard deviations from the mean.
 */
static __always_inline enum outcome baseline_observe(struct flow_slot *slot, __u64 delta_ns, struct last_flag *last)
{
	enum outcome outcome = OUTCOME_MIN_SAMPLES;
	__s64 difference = (delta_ns << MEAN_SHIFT) - slot->mean_q16;
	__s64 sign = sign_of(difference);
	__u64 deviation = with_sign(difference, sign);

	if (slot->n >= config.min_samples) {
		outcome = OUTCOME_JUDGED;
		if (!is_ordinary(slot, deviation) && baseline_judge(slot, &deviation, sign < 0, last)) {
			next_flag(last)->delta_ns = delta_ns;
			outcome = sign < 0 ? OUTCOME_FLAGGED_EARLY : OUTCOME_FLAGGED_LATE;
		}
	}
	baseline_update(slot, deviation, sign);
	return outcome;
}

#endif
