/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Which flagged packets are rare for their device: the scores of those before tell. Nothing of this is done for a packet
 * that is not flagged. Bit-equal to internal/timing/calibration.go.
 */

#ifndef XDP_AUDIT_CALIBRATION_H
#define XDP_AUDIT_CALIBRATION_H

#include "baseline.h"
#include "log2.h"
#include "maps.h"
#include "math.h"

#define SCORE_SHIFT 16	       /* fraction bits of a score, in octaves of t² */
#define SCORE_BIN_SHIFT 12     /* 16 bins in an octave */
#define TWELFTH_Q16 5461       /* 1/12 in 2⁻¹⁶ */
#define REFRESH_NS 1000000ULL
#define SAMPLE_WEIGHT 8		   /* packets far below the tail that one stands for */
#define SAMPLE_STEP 0x9e3779b1U    /* 2³² over the golden ratio: its multiples are spread evenly, and have no period */
#define SAMPLE_BELOW (1U << 29)    /* an eighth of them */

/* log2 of v > 0 in 2⁻¹⁶ octaves, too small by up to 0.0113 octaves. */
static __always_inline __s64 log2_q16(__u64 v)
{
	__u32 octave = log2_u64(v);
	__u32 index = v << (63 - (octave & 63)) >> 56 & (LOG2_FRACTIONS - 1);

	return ((__u64)octave << SCORE_SHIFT) + (log2_fractions[index] >> (32 - SCORE_SHIFT));
}

/* The least M2 of n samples. */
static __always_inline __u64 least_m2(__u64 n, __u64 mean_q16)
{
	if (config.variants & VARIANT_LOG2)
		return shift_right(multiply_u32(log2_least_squared(mean_q16) * TWELFTH_Q16, n - 1), 16);
	return (n - 1) * TWELFTH_Q16 >> 16;
}

/* A score t²·(1 + 1/n) = d²·(n − 1)/M2, as left / right · 2^base with a base in 2⁻¹⁶ octaves, over that of the first bin. */
struct score {
	__u64 left;
	__u64 right;
	__s64 base;
};

static __always_inline struct score score_of(const struct flag_state *flag)
{
	__u64 d = (flag->deviation_q16 + (1 << MEAN_SHIFT) - 1) >> MEAN_SHIFT;
	struct score score = { .left = d * d, .right = flag->m2_low, .base = -config.score_offset };

	if (d >> 19) { /* the product has 64 bits */
		score.left >>= 25;
		score.base += 25 << SCORE_SHIFT;
	}
	if (flag->m2_high) {
		score.right = (__u64)flag->m2_high << 32 | score.right >> 32;
		score.base -= 32 << SCORE_SHIFT;
	} else {
		__u64 least = least_m2(flag->n, flag->mean_q16);

		if (score.right < least)
			score.right = least;
	}
	score.left *= flag->n - 1;
	return score;
}

/* The bin of a score, by its logarithm: a look-up for each side in the place of a division. */
static __always_inline __u32 score_bin(const struct score *score)
{
	__s64 octaves = score->base + log2_q16(score->left | 1) - log2_q16(score->right | 1);

	if (octaves < 0)
		return 0;
	octaves >>= SCORE_BIN_SHIFT;
	return octaves < SCORE_BINS ? octaves : SCORE_BINS - 1;
}

/* Whether a score is below the bin before the cut by its whole octaves, which is told without its logarithm. The bin between
 * is wider than what the logarithms err by. False if it takes another shift than one of 64 bits to the right to tell. The bins
 * have no end below: at cut 0 no score is below the tail.
 */
static __always_inline bool is_far_below(const struct score *score, __u32 cut)
{
	__u64 shift = ((((__s64)cut - 1) << SCORE_BIN_SHIFT) - score->base) >> SCORE_SHIFT;

	return cut && shift < 64 && score->left >> (shift & 63) < score->right;
}

/* Halves the scores, or with a mask of 0 makes them zero. The half that a bin cannot keep goes to the next one below, so that
 * of no tail more than one half is lost.
 */
static __always_inline void forget_scores(struct calibration *calibration, __u32 mask)
{
	barrier_var(mask); /* else there is a loop for either mask, of which one becomes a call of memset */
	for (__u32 side = 0; side < 2; side++) {
		__u32 *scores = calibration->scores[side];
		__u32 cut = calibration->cuts[side] & mask, carry = 0, tail = 0;

		for (__u32 i = 0; i < SCORE_BINS; i++) {
			__u32 bin = SCORE_BINS - 1 - i, count = (scores[bin] & mask) + carry;

			carry = count & 1;
			count >>= 1;
			scores[bin] = count;
			tail += count & sign_of((__s64)cut - 1 - bin); /* no branch: it would double the verifier's paths in each turn */
		}
		calibration->cuts[side] = cut;
		calibration->tails[side] = tail;
	}
}

/* Lets the tail of a side begin as far below as it may, and no further. A global function, which the verifier follows once
 * and not for each way that leads to it.
 */
__noinline int settle_cut(struct calibration *calibration, __u32 side)
{
	__u32 cut, tail;

	side &= 1;
	if (!calibration)
		return -1;
	cut = calibration->cuts[side];
	tail = calibration->tails[side];
	for (__u32 i = 0; i < SCORE_BINS && tail > calibration->allowed; i++) {
		tail -= calibration->scores[side][cut & (SCORE_BINS - 1)];
		cut++;
	}
	for (__u32 i = 0; i < SCORE_BINS && cut; i++) {
		__u32 with_next = tail + calibration->scores[side][(cut - 1) & (SCORE_BINS - 1)];

		if (with_next > calibration->allowed)
			break;
		tail = with_next;
		cut--;
	}
	calibration->cuts[side] = cut;
	calibration->tails[side] = tail;
	return 0;
}

/* Computes the allowed tail anew, from the judged packets in the cells. If others were flagged than those that were given a
 * score, by a program without calibration, or if the bins are those of another threshold, the scores begin anew. A global
 * function as well.
 */
__noinline int refresh_calibration(struct device_counters *counters, __u64 now_ns)
{
	struct calibration *calibration;
	__u64 judged = 0, flagged = 0;
	bool is_other;

	if (!counters)
		return -1;
	calibration = &counters->calibration;
	for (__u32 i = 0; i < PROTOCOL_CELLS; i++) {
		const __u64 *packets = (&counters->protocols[0][0])[i].packets;

		judged += packets[OUTCOME_JUDGED];
		flagged += packets[OUTCOME_FLAGGED_EARLY] + packets[OUTCOME_FLAGGED_LATE];
	}
	judged += flagged;
	is_other = calibration->flagged != flagged || (calibration->refreshed_ns && calibration->offset != config.score_offset);
	if (is_other) {
		calibration->flagged = flagged;
		calibration->forgotten = judged;
	}
	if (is_other || judged - calibration->forgotten >= config.calibration_twice) {
		forget_scores(calibration, is_other ? 0 : ~0U);
		if (!is_other) /* half of them, or more where flags are rare */
			calibration->forgotten = judged - (config.calibration_twice >> 1);
	}
	calibration->allowed = (judged - calibration->forgotten) * config.tail_q32 >> 32;
	calibration->offset = config.score_offset;
	calibration->refreshed_ns = now_ns;
	settle_cut(calibration, 0);
	settle_cut(calibration, 1);
	return 0;
}

/* Whether a flagged packet is rare: with those that had as high a score or a higher one on its side, it is no more than the
 * allowed tail. As long as that is less than one packet, all are. A tail that has become too large loses its lowest bin at
 * once, and as many as it takes with the next look at the judged packets. Of the packets that are far below the tail one in
 * eight is counted for all of them: in a storm of flags most are, and their logarithms would be the most of what they cost.
 */
static __always_inline bool is_rare(struct device_counters *counters, __u64 now_ns, const struct flag_state *flag)
{
	struct calibration *calibration = &counters->calibration;
	struct score score = score_of(flag);
	__u32 side = flag->is_late & 1, bin, cut, tail;
	__u32 *scores = calibration->scores[side];

	if (config.variants & VARIANT_FROZEN)
		return score_bin(&score) >= (side ? config.frozen_cuts[1] : config.frozen_cuts[0]);
	if (now_ns - calibration->refreshed_ns >= REFRESH_NS)
		refresh_calibration(counters, now_ns);
	calibration->flagged++;
	cut = calibration->cuts[side];
	if (calibration->allowed && is_far_below(&score, cut)) {
		if ((__u32)calibration->flagged * SAMPLE_STEP < SAMPLE_BELOW)
			scores[score_bin(&score) & (SCORE_BINS - 1)] += SAMPLE_WEIGHT;
		return false;
	}
	bin = score_bin(&score);
	scores[bin & (SCORE_BINS - 1)]++;
	if (bin < cut)
		return !calibration->allowed;
	tail = calibration->tails[side] + 1;
	if (tail > calibration->allowed) {
		tail -= scores[cut & (SCORE_BINS - 1)];
		cut++;
		calibration->cuts[side] = cut;
	}
	calibration->tails[side] = tail;
	return bin >= cut || !calibration->allowed;
}

#endif
