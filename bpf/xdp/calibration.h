/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Decides which flagged packets are rare for their device, by the scores of earlier flagged
 * packets. Runs for flagged packets only. Equal to the bit to internal/timing/calibration.go.
 */

#ifndef XDP_AUDIT_CALIBRATION_H
#define XDP_AUDIT_CALIBRATION_H

#include "baseline.h"
#include "compiler.h"
#include "log2.h"
#include "maps.h"
#include "math.h"

#define SCORE_SHIFT 16	   /* fraction bits of a score, in octaves of t² */
#define SCORE_BIN_SHIFT 12 /* 16 bins per octave */
#define REFRESH_NS 1000000ULL
/* One in SAMPLE_WEIGHT packets far below the tail is counted: those whose number times
 * SAMPLE_STEP is below SAMPLE_BELOW. The step is 2³² over the golden ratio, whose multiples are
 * spread evenly and have no period.
 */
#define SAMPLE_WEIGHT 8
#define SAMPLE_STEP 0x9e3779b1U
#define SAMPLE_BELOW (1U << 29)

/* log2 of v > 0 in 2⁻¹⁶ octaves, low by up to 0.0113 octaves. */
static __always_inline __s64 log2_q16(__u64 v)
{
	__u32 octave = log2_u64(v);
	__u32 index = v << (63 - (octave & 63)) >> 56 & (LOG2_FRACTIONS - 1);

	return ((__u64)octave << SCORE_SHIFT) + (log2_fractions[index] >> (32 - SCORE_SHIFT));
}

/* The lower bound on the M2 of n samples. */
static __always_inline __u64 min_m2(__u64 n, __u64 mean_q16)
{
	__u64 twelfth_q16 = (1ULL << 32) / config.variance_factor_q16; /* 1/12k */

	if (config.modes & MODE_LOG2)
		return shift_right(multiply_u32(log2_min_squared(mean_q16) * twelfth_q16, n - 1),
				   16);
	return (n - 1) * twelfth_q16 >> 16;
}

/* A score t²·(1 + 1/n) = d²·(n − 1)/M2, as left / right · 2^base, relative to the score of the
 * lowest bin. The base is in 2⁻¹⁶ octaves.
 */
struct score {
	__u64 left;
	__u64 right;
	__s64 base;
};

static __always_inline struct score score_of(const struct flag_state *flag)
{
	__u64 d = (flag->deviation_q16 + (1 << MEAN_SHIFT) - 1) >> MEAN_SHIFT;
	struct score score = { .left = d * d, .right = flag->m2_low, .base = -config.score_offset };

	if (d >> 19) { /* left times n − 1 must fit into 64 bits */
		score.left >>= 25;
		score.base += 25 << SCORE_SHIFT;
	}
	if (flag->m2_high) {
		score.right = (__u64)flag->m2_high << 32 | score.right >> 32;
		score.base -= 32 << SCORE_SHIFT;
	} else {
		__u64 min = min_m2(flag->n, flag->mean_q16);

		if (score.right < min)
			score.right = min;
	}
	score.left *= flag->n - 1;
	return score;
}

/* The bin of a score, by its logarithm: two table look-ups are cheaper than a division. */
static __always_inline __u32 score_bin(const struct score *score)
{
	__s64 octaves = score->base + log2_q16(score->left | 1) - log2_q16(score->right | 1);

	if (octaves < 0)
		return 0;
	octaves >>= SCORE_BIN_SHIFT;
	return octaves < SCORE_BINS ? octaves : SCORE_BINS - 1;
}

/* A fast test, without logarithms, that implies that a score is below the cut. It compares with the
 * lower end of the bin below the cut: that bin is wider than the error of the logarithms. Returns
 * false where a right shift by less than 64 cannot tell, and at cut 0, where all scores are in the
 * tail.
 */
static __always_inline bool is_far_below(const struct score *score, __u32 cut)
{
	__u64 shift = ((((__s64)cut - 1) << SCORE_BIN_SHIFT) - score->base) >> SCORE_SHIFT;

	return cut && shift < 64 && score->left >> (shift & 63) < score->right;
}

/* Halves the scores, or clears them if the mask is 0. The odd score of a bin carries over into the
 * next lower bin, so that every tail loses at most half a score to rounding.
 */
static __always_inline void forget_scores(struct calibration *calibration, __u32 mask)
{
	/* Clang would make a loop per mask, one of which becomes a call of memset. BPF has none. */
	NO_BRANCH(mask);
	for (__u32 side = 0; side < 2; side++) {
		__u32 *scores = calibration->scores[side];
		__u32 cut = calibration->cuts[side] & mask, carry = 0, tail = 0;

		for (__u32 i = 0; i < SCORE_BINS; i++) {
			__u32 bin = SCORE_BINS - 1 - i, count = (scores[bin] & mask) + carry;

			carry = count & 1;
			count >>= 1;
			scores[bin] = count;
			/* A branch would double the verifier's paths in each step. */
			tail += count & sign_of((__s64)cut - 1 - bin);
		}
		calibration->cuts[side] = cut;
		calibration->tails[side] = tail;
	}
}

/* Moves the cut of a side to the lowest bin at which the tail is allowed. A global function, so
 * that the verifier follows it once and not once per path to it.
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

/* Computes the allowed tail from the number of judged packets in the counters. Clears the scores if
 * another program flagged packets without scoring them, or scored them for another threshold. A
 * global function, as settle_cut() is.
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
	is_other = calibration->flagged != flagged ||
		   (calibration->refreshed_ns && calibration->offset != config.score_offset);
	if (is_other) {
		calibration->flagged = flagged;
		calibration->forgotten = judged;
	}
	if (is_other || judged - calibration->forgotten >= config.calibration_halved_at) {
		forget_scores(calibration, is_other ? 0 : ~0U);
		/* Forgets half of the packets, or more if few packets are flagged. */
		if (!is_other)
			calibration->forgotten = judged - (config.calibration_halved_at >> 1);
	}
	calibration->allowed = (judged - calibration->forgotten) * config.tail_q32 >> 32;
	calibration->offset = config.score_offset;
	calibration->refreshed_ns = now_ns;
	settle_cut(calibration, 0);
	settle_cut(calibration, 1);
	return 0;
}

/* Whether a flagged packet is rare: it and the packets with a score at least as high on its side
 * are not more than the allowed tail. While less than one packet is allowed, all packets are
 * rare. A tail that becomes too large loses its lowest bin at once, and more bins at the next
 * refresh. Of the packets far below the tail, one in eight is counted, with the weight of eight:
 * in a storm of flags they are the majority, and their logarithms would be the largest part of
 * their cost.
 */
static __always_inline bool is_rare(struct device_counters *counters, __u64 now_ns,
				    const struct flag_state *flag)
{
	struct calibration *calibration = &counters->calibration;
	struct score score = score_of(flag);
	__u32 side = flag->is_late & 1, bin, cut, tail;
	__u32 *scores = calibration->scores[side];

	if (config.modes & MODE_FROZEN)
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
