/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Reports a flagged packet: as the CPU's last flag, and as a perf event if it is rare and the CPU's
 * allowance is not spent.
 */

#ifndef XDP_AUDIT_EVENTS_H
#define XDP_AUDIT_EVENTS_H

#include "baseline.h"
#include "calibration.h"
#include "clock.h"
#include "counters.h"
#include "maps.h"
#include "parse_fast.h"
#include "publish.h"
#include "record.h"

#define ENOENT 2
#define ENOSPC 28

/* The generic cell rate algorithm: at most event_burst_ns / event_interval_ns events at once, and
 * one per event_interval_ns in the long run.
 */
static __always_inline bool allowance_take(struct event_allowance *allowance, __u64 now_ns)
{
	__u64 spent_until_ns = allowance->spent_until_ns;

	if (config.event_interval_ns > config.event_burst_ns)
		return false;
	if (spent_until_ns < now_ns)
		spent_until_ns = now_ns;
	spent_until_ns += config.event_interval_ns;
	if (spent_until_ns - now_ns > config.event_burst_ns)
		return false;
	allowance->spent_until_ns = spent_until_ns;
	return true;
}

static __always_inline enum fate fate_of(long error)
{
	if (!error)
		return FATE_SENT;
	if (error == -ENOSPC)
		return FATE_RING_FULL;
	if (error == -ENOENT)
		return FATE_NO_READER;
	return FATE_OTHER;
}

static __noinline int send_event(struct xdp_md *ctx, const struct event_allowance *allowance,
				 const struct audit_event *event)
{
	return fate_of(bpf_perf_event_output(ctx, &audit_events, allowance->ring, (void *)event,
					     sizeof(*event)));
}

/* Sends a flag with the key of its flow, for which it parses the frame again. A function of its
 * own, because the event does not fit on the stack of its caller.
 */
static __noinline int send_flag(struct xdp_md *ctx, const struct event_allowance *allowance,
				const struct flag_state *flag)
{
	struct audit_event event = { .flag = *flag };
	struct packet packet;

	parse_packet(ctx, &packet);
	read_key(ctx, &packet, &event.key);
	event.key.owner = config.owner;
	return send_event(ctx, allowance, &event);
}

/* Makes the next state the last one, after all stores to it. */
static __always_inline void publish_flag(struct last_flag *last)
{
	store_in_order(&last->sequence, last->sequence + 1);
}

/* Sends a flag if the allowance is not spent. Returns its fate. */
static __always_inline __u32 try_send_flag(struct xdp_md *ctx, const struct flag_state *flag)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct event_allowance *allowance = bpf_map_lookup_elem(&event_allowances, &cpu);

	if (!allowance || !allowance_take(allowance, flag->ktime_ns))
		return FATE_RATE_LIMIT;
	return send_flag(ctx, allowance, flag);
}

/* Completes and publishes the state that baseline_judge() wrote, and sends it if it is rare. */
static __always_inline void report_flag(struct xdp_md *ctx, struct device_counters *counters,
					__u64 now_ns, __u32 len_bytes)
{
	struct flag_state *flag = next_flag(&counters->last_flag);
	__u32 fate = FATE_SUPPRESSED;

	flag->audit_ns = now_ns;
	flag->ktime_ns = clock_ktime(now_ns);
	flag->len_bytes = len_bytes;
	if (!config.tail_q32 || is_rare(counters, now_ns, flag))
		fate = try_send_flag(ctx, flag);
	publish_flag(&counters->last_flag);
	if (fate < FATES)
		counters->fates[fate]++;
}

#endif
