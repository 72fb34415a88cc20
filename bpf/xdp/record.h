/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The records of flows, which only flagged packets touch, under the lock of the flow's set. They
 * tell which flagged packets may become events: no flow can use up what another one is entitled to.
 * Equal to the bit to internal/timing/record.go, which says why.
 */

#ifndef XDP_AUDIT_RECORD_H
#define XDP_AUDIT_RECORD_H

#include "allowance.h"
#include "baseline.h"
#include "clock.h"
#include "compiler.h"
#include "maps.h"

#define LONGEST_RUN (1U << 30)
#define MOST_PATIENCE 4
#define GAP_PENALTY 8
/* A run that is shorter is a burst, such as packets that an interrupt slowed down. */
#define SHORTEST_RUN_NS 50000
#define TOKEN_SHIFT 32 /* fraction bits of tokens, cuts and shares */
#define ONE_TOKEN (1ULL << TOKEN_SHIFT)
#define MOST_TOKENS (8 * ONE_TOKEN)
#define SURPLUS_TOKENS (7 * ONE_TOKEN)
#define UNEARNED_INTERVAL_NS 450000000000ULL
#define UNEARNED_BURST_NS (8 * UNEARNED_INTERVAL_NS)
#define CUT_STEP_SHIFT 3 /* an eighth of an octave */
#define TIME_SHIFT 11	 /* time lowers a cut by 2⁻⁴³ octaves per ns, three steps an hour */

static __always_inline bool is_flagged(enum outcome outcome)
{
	return (__u32)outcome - OUTCOME_FLAGGED_EARLY <=
	       OUTCOME_FLAGGED_LATE - OUTCOME_FLAGGED_EARLY;
}

/* Whether each flow is judged against a baseline of its own. */
static __always_inline bool has_own_baseline(void)
{
	return !(config.modes & (MODE_DEVICE | MODE_FROZEN));
}

/* Begins the record of a flow whose baseline has none. The record may be that of the same flow,
 * which was evicted and came back, or that of another flow in the same slot.
 */
static __always_inline void record_begin(struct flow_record *record,
					 const struct packet_state *state)
{
	const struct flow_set *set = state->set;
	__u32 way = way_of(set, state->slot);

	if (record->tag != set->tags[way] || record->mark != set->marks[way]) {
		__builtin_memset(record, 0, sizeof(*record));
		record->tag = set->tags[way];
		record->mark = set->marks[way];
		record->unearned_at_ns = state->now_ns - UNEARNED_BURST_NS;
	}
	record->run.packets = 0;
	/* The samples before the first judged one do not count. */
	record->n = has_own_baseline() ? config.min_samples : 0;
}

/* The run after an unflagged packet or several. */
static __always_inline __u32 run_after(__u32 run, __u64 unflagged)
{
	__u64 penalty = unflagged * GAP_PENALTY;

	return penalty < run ? run - penalty : 0;
}

/* Adds the sample of a flagged packet to the level of its run. */
static __noinline int learn_level(struct device_counters *counters, struct baseline *level)
{
	const struct flag_state *flag = &next_event(&counters->last_flag)->flag;
	__s64 sign = flag->is_late ? 0 : -1;
	__u64 sample_q16 = flag->mean_q16 + with_sign(flag->deviation_q16, sign);

	baseline_update(level, level->n, deviation_of(level, sample_q16 >> MEAN_SHIFT));
	return 0;
}

/* Counts a flagged packet in a run, of which `packets` are left after the penalty for the gap
 * before it. Returns whether the run is long enough for the baseline to restart.
 */
static __always_inline bool count_run(struct flagged_run *run, struct run_level *level,
				      __u32 packets, __u32 is_late, __u64 now_ns,
				      struct device_counters *counters)
{
	if (!packets || run->is_late != is_late) {
		run->is_late = is_late;
		run->packets = 1;
		return false;
	}
	if (packets == 1) {
		level->since_ns = now_ns;
		__builtin_memset(&level->baseline, 0, sizeof(level->baseline));
	}
	learn_level(counters, &level->baseline);
	if (packets < LONGEST_RUN)
		packets++;
	run->packets = packets;
	return packets > config.restart_run << (run->patience & 7) &&
	       now_ns - level->since_ns >= SHORTEST_RUN_NS;
}

/* Makes the level of a run the baseline. */
static __noinline int restart_baseline(struct baseline *baseline, struct flagged_run *run,
				       const struct baseline *level,
				       struct device_counters *counters)
{
	if (baseline->n - run->packets >= config.restart_run << MOST_PATIENCE)
		run->patience = 0;
	else
		run->patience = run->patience < MOST_PATIENCE ? run->patience + 1 : MOST_PATIENCE;
	baseline->mean_q16 = level->mean_q16;
	baseline->m2_low = level->m2_low;
	baseline->m2_high = HAS_RECORD | (level->m2_high & M2_HIGH_MASK);
	baseline->n = level->n;
	baseline_learnt(baseline);
	run->packets = 0;
	counters->baseline_restarts++;
	return 0;
}

/* The number of samples of a baseline since the last flagged packet, after which it had n. */
static __always_inline __u32 samples_since(const struct baseline *baseline, __u32 n)
{
	__u32 halvings = baseline->m2_high >> HALVINGS_SHIFT;

	return halvings * (config.baseline_halved_at >> 1) + baseline->n - n;
}

/* Counts a flagged packet, the judged one of its flow with that number since the last flagged one.
 * The baseline of the flow restarts at the end of a long run.
 */
static __always_inline void count_flow_run(struct flow_record *record, __u32 judged, __u32 is_late,
					   const struct packet_state *state)
{
	struct baseline *baseline = &state->slot->baseline;
	__u32 packets = record->run.packets;

	if (judged != 1)
		packets = run_after(packets, judged - 1);
	if (!count_run(&record->run, &record->level, packets, is_late, state->now_ns,
		       state->counters))
		return;
	restart_baseline(baseline, &record->run, &record->level.baseline, state->counters);
	record->n = baseline->n;
}

/* Counts a flagged packet, which was added to the device's baseline. A run that is shorter than two
 * of its deltas may have one packet of each flow: all of them are late because the host paused
 * once.
 */
static __always_inline void count_device_run(struct device_counters *counters, bool is_late,
					     __u64 now_ns, __u64 delta_ns)
{
	struct device_baseline *device = &counters->device;
	struct baseline *baseline = &device->baseline;
	struct flagged_run *run = &device->run;
	struct run_level *level = &device->level;
	__u32 judged = samples_since(baseline, device->flagged_n);
	__u32 packets = run_after(run->packets, judged - 1);

	baseline->m2_high &= M2_HIGH_MASK;
	if (config.restart_run && count_run(run, level, packets, is_late, now_ns, counters) &&
	    now_ns - level->since_ns >= 2 * delta_ns)
		restart_baseline(baseline, run, &level->baseline, counters);
	device->flagged_n = baseline->n;
}

/* Whether t² is at least threshold² · 2^cut, with 2^cut as (1 + fraction) · 2^whole. */
static __always_inline bool is_at_least(const struct flag_score *score, __u64 cut_q32)
{
	__s64 octaves = score->octaves - (__s64)(cut_q32 >> TOKEN_SHIFT);
	__u64 left, right;

	if (likely(octaves < -1))
		return false;
	if (octaves > 2)
		return true;
	left = score->left >> 32 << 31;
	right = (score->right >> 32) * ((1ULL << 31) + ((__u32)cut_q32 >> 1));
	return octaves < 0 ? left >> 1 >= right : left >= right >> (octaves & 3);
}

/* Whether the flag is rare for its flow. If it is, raises the cut of its side, unless the baseline
 * is young.
 */
static __always_inline bool is_rare(const struct packet_state *state, struct flow_record *record,
				    __u32 is_late)
{
	__u64 *cut = (void *)record->cuts_q32 + (is_late & 1) * sizeof(*cut);
	__u64 level = record->drift_q32 + (state->now_ns >> TIME_SHIFT) + config.threshold2_q32;
	__s64 height = *cut - level;

	if (height < 0)
		height = 0;
	if (!is_at_least(&state->counters->last_flag.score, height))
		return false;
	if (next_event(&state->counters->last_flag)->flag.n >= config.young_samples)
		*cut = level + height + (ONE_TOKEN >> CUT_STEP_SHIFT);
	return true;
}

/* Whether a flow has no unearned token left: it gets one within the time of one. A clock that was
 * set back gives it all of them.
 */
static __always_inline bool is_unearned_spent(const struct flow_record *record, __u64 now_ns)
{
	return record->unearned_at_ns - now_ns <= UNEARNED_INTERVAL_NS; /* wraps if in the past */
}

static __always_inline void spend_unearned(struct flow_record *record, __u64 now_ns)
{
	__u64 all_ns = now_ns - UNEARNED_BURST_NS + UNEARNED_INTERVAL_NS - 1;

	if (record->unearned_at_ns - all_ns > UNEARNED_BURST_NS)
		record->unearned_at_ns = all_ns;
	record->unearned_at_ns += UNEARNED_INTERVAL_NS;
}

static __always_inline void copy_key(struct flow_key *to, const struct flow_key *from)
{
	/* As words: clang would copy the key by its members, which takes 12 more. */
	for (__u32 i = 0; i < sizeof(*to) / sizeof(__u64); i++)
		((__u64 *)to)[i] = ((const __u64 *)from)[i];
}

/* Takes an event from the allowance of the CPU, and the key of the flow for it. */
static __always_inline bool take_event(struct packet_state *state, bool is_unearned)
{
	struct last_flag *last = &state->counters->last_flag;
	__u32 cpu = bpf_get_smp_processor_id(), slot_index;
	struct event_allowance *allowance = bpf_map_lookup_elem(&event_allowances, &cpu);
	const struct flow_key *key;

	if (!allowance || !allowance_take(allowance, clock_ktime(state->now_ns), is_unearned))
		return false;
	last->ring = allowance->ring;
	last->is_sent = true;
	slot_index = state->set_index * FLOW_WAYS + way_of(state->set, state->slot);
	key = bpf_map_lookup_elem(&flow_keys, &slot_index);
	if (key)
		copy_key(&next_event(last)->key, key);
	return true;
}

/* Sends no event for a flagged packet. */
static __always_inline void withhold(struct device_counters *counters, enum fate fate)
{
	counters->last_flag.is_sent = false;
	counters->fates[fate]++;
}

/* Sends an event for a token of the flow. It is spent only if the rate limit of the CPU allows the
 * event, except for the surplus one of a common flag: in a storm of flags the bucket would stay
 * full, and each flag would get here.
 */
static __always_inline void spend_token(struct packet_state *state, struct flow_record *record,
					bool is_unearned, bool is_rare)
{
	if (!take_event(state, is_unearned)) {
		withhold(state->counters, FATE_RATE_LIMIT);
		if (!is_unearned && !is_rare)
			record->earned_q32 -= ONE_TOKEN;
		return;
	}
	if (is_unearned) {
		spend_unearned(record, state->now_ns);
		state->counters->unearned_events++;
	} else if (config.share_q32) {
		record->earned_q32 -= ONE_TOKEN;
		state->counters->earned_events++;
	}
}

/* spend_token() for a flow that earns tokens, of whose flagged packets few get here. */
static __noinline int call_spend_token(struct packet_state *state, struct flow_record *record,
				       bool is_unearned, bool is_rare)
{
	if (record)
		spend_token(state, record, is_unearned, is_rare);
	return 0;
}

/* Decides whether a flagged packet is to be sent, after so many judged packets of its flow since
 * the last flagged one.
 */
static __always_inline void decide(struct packet_state *state, struct flow_record *record,
				   __u32 judged, __u32 is_late)
{
	__u64 share = config.share_q32, earned = judged * share;
	bool is_left;

	if (!share) {
		spend_token(state, record, false, true);
		return;
	}
	record->drift_q32 += earned >> (CUT_STEP_SHIFT + 1); /* the step times half of the share */
	earned += record->earned_q32;
	if (earned > MOST_TOKENS)
		earned = MOST_TOKENS;
	record->earned_q32 = earned;
	if (likely(!is_rare(state, record, is_late))) {
		is_left = record->earned_q32 >= SURPLUS_TOKENS;
		if (likely(!is_left && is_unearned_spent(record, state->now_ns))) {
			withhold(state->counters, FATE_SUPPRESSED);
			return;
		}
		call_spend_token(state, record, !is_left, false);
	} else {
		is_left = record->earned_q32 >= ONE_TOKEN;
		if (!is_left && is_unearned_spent(record, state->now_ns)) {
			withhold(state->counters, FATE_NO_TOKEN);
			return;
		}
		call_spend_token(state, record, !is_left, true);
	}
}

/* The number of judged packets of a flow since its last flagged one, if it has none or if its
 * baseline was halved since then.
 */
static __always_inline __u32 count_judged(struct flow_record *record,
					  const struct packet_state *state)
{
	struct baseline *baseline = &state->slot->baseline;
	__u32 judged;

	if (!(baseline->m2_high & HAS_RECORD))
		record_begin(record, state);
	judged = samples_since(baseline, record->n);
	baseline->m2_high = (baseline->m2_high & M2_HIGH_MASK) | HAS_RECORD;
	return judged;
}

/* Records a flagged packet, which was added to its baseline, and decides whether it is to be sent.
 */
static __always_inline void record_flag(struct packet_state *state, __u32 is_late)
{
	struct flow_slot *slot = state->slot;
	struct flow_record *record = state->record;
	__u32 judged, n = slot->baseline.n;

	if (likely(slot->baseline.m2_high >> HAS_RECORD_SHIFT == 1)) /* no halvings */
		judged = n - record->n;
	else
		judged = count_judged(record, state);
	record->n = n;
	if (config.restart_run && has_own_baseline())
		count_flow_run(record, judged, is_late, state);
	decide(state, record, judged, is_late);
}

#endif
