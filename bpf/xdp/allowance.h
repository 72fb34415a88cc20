/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The rate limit of a CPU's events. */

#ifndef XDP_AUDIT_ALLOWANCE_H
#define XDP_AUDIT_ALLOWANCE_H

#include "maps.h"

/* The generic cell rate algorithm: the time until which all events are paid for, after one more
 * that costs interval_ns. Returns 0 if that is later than by burst_ns.
 */
static __always_inline __u64 paid_until(__u64 until_ns, __u64 now_ns, __u64 interval_ns,
					__u64 burst_ns)
{
	if (until_ns < now_ns)
		until_ns = now_ns;
	until_ns += interval_ns;
	return until_ns - now_ns > burst_ns ? 0 : until_ns;
}

/* Takes an event from the allowance of a CPU: at most event_burst_ns / event_interval_ns at once,
 * and one per event_interval_ns in the long run. Unearned events may use half of that. Returns
 * false, and takes nothing, if the allowance is spent.
 */
static __always_inline bool allowance_take(struct event_allowance *allowance, __u64 now_ns,
					   bool is_unearned)
{
	__u64 interval_ns = config.event_interval_ns, until_ns;

	if (interval_ns > config.event_burst_ns)
		return false;
	until_ns =
		paid_until(allowance->spent_until_ns, now_ns, interval_ns, config.event_burst_ns);
	if (!until_ns)
		return false;
	if (is_unearned) {
		__u64 unearned_ns = paid_until(allowance->unearned_until_ns, now_ns,
					       2 * interval_ns, config.unearned_burst_ns);

		if (!unearned_ns)
			return false;
		allowance->unearned_until_ns = unearned_ns;
	}
	allowance->spent_until_ns = until_ns;
	return true;
}

#endif
