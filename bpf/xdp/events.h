/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Reports a flagged packet: as the CPU's last flag, and as a perf event if the flow is entitled to
 * one and the CPU's allowance is not spent.
 */

#ifndef XDP_AUDIT_EVENTS_H
#define XDP_AUDIT_EVENTS_H

#include "baseline.h"
#include "clock.h"
#include "counters.h"
#include "maps.h"
#include "publish.h"
#include "record.h"

#define ENOENT 2
#define ENOSPC 28

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

static __always_inline enum fate send_event(struct xdp_md *ctx, __u32 ring,
					    struct audit_event *event)
{
	return fate_of(bpf_perf_event_output(ctx, &audit_events, ring, event, sizeof(*event)));
}

/* Makes the next state the last one, after all stores to it. */
static __always_inline void publish_flag(struct last_flag *last)
{
	store_in_order(&last->sequence, last->sequence + 1);
}

/* Completes and publishes the state that baseline_judge() wrote, and sends it if record_flag() said
 * so.
 */
static __always_inline void report_flag(struct xdp_md *ctx, struct device_counters *counters,
					__u64 now_ns, __u32 len_bytes)
{
	struct last_flag *last = &counters->last_flag;
	struct audit_event *event = next_event(last);

	event->flag.audit_ns = now_ns;
	event->flag.ktime_ns = clock_ktime(now_ns);
	event->flag.len_bytes = len_bytes;
	if (last->is_sent)
		counters->fates[send_event(ctx, last->ring, event)]++;
	KEEP_IN_REGISTER(counters); /* 2: clang would save the address of its last flag */
	publish_flag(&counters->last_flag);
}

#endif
