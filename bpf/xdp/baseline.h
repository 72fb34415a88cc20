/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* A timing baseline: tests a sample against the earlier samples, then adds it. Equal to the bit to
 * internal/timing/baseline.go and clip.go, which give the formulas.
 */

#ifndef XDP_AUDIT_BASELINE_H
#define XDP_AUDIT_BASELINE_H

#include "compiler.h"
#include "find_record.h"
#include "log2.h"
#include "maps.h"
#include "math.h"

#define MEAN_SHIFT 16
#define HALVES_SHIFT (MEAN_SHIFT - 1)

/* mantissa · 2^exponent units², with an even exponent. */
struct variance {
	__u64 mantissa;
	__u64 mantissa_log2; /* rounded down */
	__s64 exponent;
};

/* Whether 4 · deviation² · (n − 1) ≥ M2 · factor, exactly, for the deviation rounded up to whole
 * units.
 */
static __always_inline bool is_outside(__u64 deviation_q16, __u64 n, struct u128 m2,
				       __u32 factor_q2)
{
	__u64 d = (deviation_q16 + (1 << MEAN_SHIFT) - 1) >> MEAN_SHIFT;

	return !is_below(multiply_u32(d * d, (n - 1) * 4), multiply_u128(m2, factor_q2));
}

/* ⌊log2 v⌋ for 0 < v < 2²⁸. */
static __always_inline __u32 log2_of_count(__u64 v)
{
	__u32 shift = sign_of((1 << LOG2_TABLE_BITS) - 1 - v) & LOG2_TABLE_BITS;

	return shift + log2_table[v >> shift & (LOG2_TABLE_SIZE - 1)];
}

/* max(k · M2 / (n − 1), min / 12) as 12·k·M2 / 12·(n − 1), where min is 1 on the linear scale. */
static __always_inline struct variance variance_of(__u64 n, struct u128 m2, __u64 mean_q16)
{
	struct u128 m = multiply_u128(m2, config.variance_factor_q16);
	struct u128 min = { .low = (n - 1) << 16 };
	struct variance variance;
	__u64 thrice = 3 * (n - 1);
	__u32 bits;

	if (config.modes & MODE_LOG2)
		min = shift_left(multiply_u32(log2_min_squared(mean_q16), n - 1), 16);
	if (is_below(m, min))
		m = min;
	bits = bits_of(m);
	variance.exponent = ((__s64)bits - 62) & ~1; /* for a mantissa of 62 or 63 bits */
	if (variance.exponent >= 0)
		variance.mantissa = shift_right(m, variance.exponent & 127);
	else
		variance.mantissa = m.low << (-variance.exponent & 63);
	variance.mantissa /= 4 * thrice;
	/* The logarithm of a quotient is that of the dividend, here 61 or 62, less that of the
	 * divisor, or one less than that. It is known before the quotient.
	 */
	variance.mantissa_log2 = 60 + (bits & 1) - (2 + log2_of_count(thrice));
	variance.mantissa_log2 += variance.mantissa >> (variance.mantissa_log2 + 1);
	variance.exponent -= 16;
	return variance;
}

/* Whether |t| ≥ threshold: d² ≥ threshold² · s² · (1 + 1/n), in products of 32-bit mantissas.
 * Leaves both sides in *score.
 */
static __always_inline bool reaches_threshold(__u64 deviation_q16, struct variance variance,
					      __u64 n, struct flag_score *score)
{
	__u64 squared = variance.mantissa + variance.mantissa / n;
	__u32 deviation_log2 = log2_u64(deviation_q16), squared_log2 = log2_u64(squared);
	__u64 d = top_32(deviation_q16, deviation_log2), left = d * d;
	__u64 right = top_32(squared, squared_log2) * config.threshold2_mantissa;
	__s64 shift = squared_log2 - 31 + variance.exponent + config.threshold2_exponent;

	if (!config.threshold2_mantissa)
		return true;
	if (!deviation_q16)
		return false;
	shift -= 2 * ((__s64)deviation_log2 - 31 - MEAN_SHIFT);
	score->left = left;
	score->right = right;
	score->octaves = -shift;
	if (shift == 0)
		return left >= right;
	if (shift == 1)
		return left >> 1 >= right;
	if (shift == -1)
		return left >= (right >> 1) + (right & 1);
	return shift < 0;
}

/* Limits a deviation to the clip. */
static __always_inline __u64 clip(__u64 deviation_q16, struct variance variance)
{
	__u64 limit = square_root(variance.mantissa, variance.mantissa_log2) * config.clip_q16;
	__s64 shift = variance.exponent >> 1;

	limit = shift < 0 ? limit >> (-shift & 63) : limit << (shift & 63);
	return config.clip_q16 && deviation_q16 > limit ? limit : deviation_q16;
}

static __always_inline __u64 round_q16(__u64 v)
{
	return (v + (1 << (MEAN_SHIFT - 1))) >> MEAN_SHIFT;
}

/* A deviation rounded up to half units, or one more. Half of it is the deviation rounded to whole
 * units.
 */
static __always_inline __u64 halves_of(__u64 deviation_q16)
{
	return (deviation_q16 >> HALVES_SHIFT) + 1;
}

/* The deviation of a sample from the mean: absolute value in 2⁻¹⁶ units, and sign. */
struct deviation {
	__u64 q16;
	__s64 sign;
};

static __always_inline struct deviation deviation_of(const struct baseline *baseline, __u64 sample)
{
	__s64 difference = (sample << MEAN_SHIFT) - baseline->mean_q16;
	struct deviation deviation = { .sign = sign_of(difference) };

	KEEP_IN_REGISTER(deviation.sign); /* 2: clang would derive it from the difference again */
	deviation.q16 = with_sign(difference, deviation.sign);
	return deviation;
}

/* Adds a sample after n samples by Welford's method. Halves the baseline at twice the window. */
static __always_inline void baseline_update(struct baseline *baseline, __u64 n,
					    struct deviation deviation)
{
	__u64 step, product, m2_low, all = n + 1;

	step = ((all >> 1) + deviation.q16) / all;
	product = (halves_of(deviation.q16) >> 1) * round_q16(deviation.q16 - step);
	baseline->mean_q16 += with_sign(step, deviation.sign);
	m2_low = baseline->m2_low + product;
	KEEP_IN_REGISTER(m2_low); /* 4: as in add_to_sum() */
	baseline->m2_low = m2_low;
	if (m2_low < product)
		baseline->m2_high++;
	if (all == config.baseline_halved_at) {
		__u32 high = baseline->m2_high;

		all >>= 1;
		baseline->m2_low = baseline->m2_low >> 1 | (__u64)high << 63;
		baseline->m2_high = (high & ~M2_HIGH_MASK) | (high & M2_HIGH_MASK) >> 1;
		if (high >> HALVINGS_SHIFT < MOST_HALVINGS)
			baseline->m2_high += 1U << HALVINGS_SHIFT;
	}
	baseline->n = all;
}

/* The event for the next flagged packet of this CPU. */
static __always_inline struct audit_event *next_event(struct last_flag *last)
{
	/* Saves 12 for a flagged packet: clang would compute the address of an array element for
	 * each of its members.
	 */
	void *at = (void *)last + (last->sequence & 1) * sizeof(last->events[0]);

	return at + offsetof(struct last_flag, events);
}

/* A fast test that implies 4 · deviation² · (n − 1) < M2 · factor. It uses n instead of n − 1, and
 * a deviation that is rounded up. With deviations below 2¹⁸ units and n below 2²⁵ the left side
 * fits into 64 bits. Bits of the right side above 64 are lost, which makes it smaller.
 */
static __always_inline bool is_surely_inside(__u64 deviation_q16, __u64 n, __u64 m2_low,
					     __u64 factor_q2)
{
	__u64 d = halves_of(deviation_q16), right = m2_low * factor_q2;

	KEEP_IN_REGISTER(d); /* 1: clang would compute it again for baseline_update() */
	if (d >> 19)
		return false;
	d *= d;
	KEEP_IN_REGISTER(d); /* 5: clang would compute (d · n) · d, which needs a copy of d */
	return d * n < right;
}

/* Whether the products of the fast tests are exact, except for a deviation that is rounded up. */
static __always_inline bool is_small(__u64 deviation_q16, struct u128 m2)
{
	return !(halves_of(deviation_q16) >> 19 | m2.low >> 57 | m2.high);
}

/* Limits a deviation to the clip if baseline_try_fast() left it, and if a fast test implies that it
 * is not flagged and at most √5 times the clip. Otherwise returns false. One in fifteen samples
 * gets here. The clip follows from the ratio of the squares, 1/5 to 1, without a logarithm. A line
 * approximates its root to within 4 %, and a step of Newton's method to within 0.1 %.
 */
static __always_inline bool try_clip_near(__u64 *deviation_q16, __u64 n, __u64 m2_low)
{
	__u64 d = halves_of(*deviation_q16), squares = d * d * (n - 1), limit, ratio_q16, root_q16;

	if (squares >= m2_low * config.near_factor_q2)
		return false;
	m2_low *= config.shortcut_factor_q2;
	if (squares >> 47)
		ratio_q16 = m2_low / (squares >> 16);
	else
		ratio_q16 = (m2_low << 16) / squares;
	root_q16 = (ratio_q16 * 184 >> 8) + 21020;
	root_q16 = (root_q16 + (ratio_q16 << 16) / root_q16) >> 1;
	limit = d * root_q16 * config.near_scale_q16 >> 17;
	if (*deviation_q16 > limit)
		*deviation_q16 = limit;
	return true;
}

/* Tests without a division by n − 1. Returns true if a sample is not flagged, with its deviation
 * limited to the clip.
 */
static __always_inline bool try_unflagged(__u64 *deviation_q16, __u64 n, struct u128 m2)
{
	if (is_small(*deviation_q16, m2))
		return try_clip_near(deviation_q16, n, m2.low);
	return !is_outside(*deviation_q16, n, m2, config.shortcut_factor_q2);
}

/* Judges a sample with the exact test, clips it, and adds it to the baseline. Writes the arguments
 * of the test into the next state of the last flag, which readers see only after publish_flag().
 */
static __always_inline enum outcome baseline_judge(struct baseline *baseline, __u64 sample,
						   __u64 delta_ns, struct last_flag *last,
						   struct packet_state *state)
{
	struct deviation deviation = deviation_of(baseline, sample);
	struct flag_state *flag;
	bool is_flagged = true;
	__u64 n = baseline->n;
	struct u128 m2 = { .low = baseline->m2_low, .high = baseline->m2_high & M2_HIGH_MASK };

	/* With a threshold of 0 all packets are flagged. */
	if (config.threshold2_mantissa && try_unflagged(&deviation.q16, n, m2)) {
		baseline_update(baseline, n, deviation);
		return OUTCOME_JUDGED;
	}
	if (state && unlikely(!find_record(state))) {
		KEEP_BRANCH(); /* 1: as in cold_outcome() */
		return OUTCOME_CONTENDED;
	}
	flag = &next_event(last)->flag;
	flag->delta_ns = delta_ns;
	flag->mean_q16 = baseline->mean_q16;
	flag->deviation_q16 = deviation.q16;
	flag->m2_low = m2.low;
	flag->m2_high = m2.high;
	flag->n = n;
	flag->is_late = deviation.sign + 1;
	if (config.threshold2_mantissa ||
	    !is_surely_inside(deviation.q16, n, m2.low, config.clip_factor_q2)) {
		struct variance variance = variance_of(n, m2, baseline->mean_q16);

		is_flagged = reaches_threshold(deviation.q16, variance, n, &last->score);
		deviation.q16 = clip(deviation.q16, variance);
	}
	baseline_update(baseline, n, deviation);
	if (!is_flagged)
		return OUTCOME_JUDGED;
	return OUTCOME_FLAGGED_LATE + deviation.sign; /* OUTCOME_FLAGGED_EARLY is one less */
}

/* Judges a sample of at most 2³¹ units and adds it to the baseline if it is so near to the mean
 * that it is neither flagged nor clipped, as most are. Otherwise changes nothing and returns
 * false.
 */
static __always_inline bool baseline_try_fast(struct baseline *baseline, __u64 sample)
{
	struct deviation deviation;
	__u64 n = baseline->n;

	if (unlikely(n < config.min_samples))
		return false;
	deviation = deviation_of(baseline, sample);
	if (unlikely(!is_surely_inside(deviation.q16, n, baseline->m2_low,
				       config.shortcut_factor_q2)))
		return false;
	baseline_update(baseline, n, deviation);
	return true;
}

/* Ends the learning of a baseline. Samples so far were not clipped. Later ones are, and M2 is
 * multiplied by k for it.
 */
static __always_inline void baseline_learnt(struct baseline *baseline)
{
	struct u128 m2 = { .low = baseline->m2_low, .high = baseline->m2_high & M2_HIGH_MASK };

	m2 = multiply_u128(m2, config.learnt_factor_q16);
	baseline->m2_low = m2.low >> 16 | m2.high << 48;
	baseline->m2_high = (baseline->m2_high & ~M2_HIGH_MASK) | m2.high >> 16;
}

/* Judges a sample that baseline_try_fast() left and adds it to the baseline. From min_samples on,
 * the added sample is clipped.
 */
static __always_inline enum outcome baseline_observe_slow(struct baseline *baseline, __u64 sample,
							  __u64 delta_ns, struct last_flag *last,
							  struct packet_state *state)
{
	__u64 n = baseline->n;

	if (n >= config.min_samples)
		return baseline_judge(baseline, sample, delta_ns, last, state);
	baseline_update(baseline, n, deviation_of(baseline, sample));
	if (baseline->n == config.min_samples)
		baseline_learnt(baseline);
	return OUTCOME_MIN_SAMPLES;
}

/* Judges any sample and adds it to the baseline. */
static __always_inline enum outcome baseline_observe(struct baseline *baseline, __u64 sample,
						     __u64 delta_ns, struct last_flag *last,
						     struct packet_state *state)
{
	if (likely(baseline_try_fast(baseline, sample)))
		return OUTCOME_JUDGED;
	return baseline_observe_slow(baseline, sample, delta_ns, last, state);
}

#endif
