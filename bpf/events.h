/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* What happens to a flagged packet: it becomes the CPU's last flag, and a perf event if the CPU's allowance has room. */

#ifndef XDP_AUDIT_EVENTS_H
#define XDP_AUDIT_EVENTS_H

#include "clock.h"
#include "counters.h"
#include "maps.h"

#define ENOENT 2
#define ENOSPC 28

/* The generic cell rate algorithm: event_burst_ns / event_interval_ns events at once, one per event_interval_ns in the
 * long run.
 */
static __always_inline bool allowance_take(struct event_allowance *allowance, __u64 now_ns)
{
	__u64 spent_until = allowance->spent_until_ns > now_ns ? allowance->spent_until_ns : now_ns;

	if (config.event_interval_ns > config.event_burst_ns)
		return false;
	spent_until += config.event_interval_ns;
	if (spent_until - now_ns > config.event_burst_ns)
		return false;
	allowance->spent_until_ns = spent_until;
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

/* The exchange publishes the state after it is written. */
static __always_inline void keep_last_flag(struct last_flag *last, const struct flag_state *flag)
{
	__u64 sequence = last->sequence + 1;

	last->states[sequence & 1] = *flag;
	__sync_lock_test_and_set(&last->sequence, sequence);
}

/* event->flag holds what the packet was judged by. */
static __noinline void report_flag(struct xdp_md *ctx, struct device_counters *counters, __u32 cpu,
					const struct packet *packet, struct audit_event *event)
{
	struct event_allowance *allowance = bpf_map_lookup_elem(&event_allowances, &cpu);
	enum fate fate = FATE_RATE_LIMIT;

	event->flag.ktime_ns = clock_ktime(event->flag.audit_ns);
	event->flag.len_bytes = packet->len_bytes;
	event->key = packet->key;
	keep_last_flag(&counters->last_flag, &event->flag);
	if (allowance && allowance_take(allowance, event->flag.ktime_ns))
		fate = fate_of(bpf_perf_event_output(ctx, &audit_events, allowance->ring, event, sizeof(*event)));
	counters->fates[fate]++;
}

#endif
