/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The audit clock: where a packet's time comes from. */

#ifndef XDP_AUDIT_CLOCK_H
#define XDP_AUDIT_CLOCK_H

#include "maps.h"

/* Reads the audit clock, in ns. Returns whether it has a time for this packet: of a metadata clock, whether there are 8 bytes of
 * nanoseconds in front of it, which are not all ones.
 */
static __always_inline bool clock_read(struct visit *visit, __u64 *now_ns)
{
	const struct xdp_md *ctx;
	const __u64 *metadata;

	if (config.clock_source != CLOCK_SOURCE_METADATA) {
		*now_ns = bpf_ktime_get_ns();
		return true;
	}
	ctx = visit->ctx;
	metadata = (void *)(long)ctx->data_meta;
	if ((void *)(metadata + 1) > (void *)(long)ctx->data)
		return false;
	*now_ns = *metadata;
	return *now_ns != ~0ULL;
}

/* CLOCK_MONOTONIC for a packet that the audit clock put at audit_ns. */
static __always_inline __u64 clock_ktime(__u64 audit_ns)
{
	return config.clock_source == CLOCK_SOURCE_KTIME ? audit_ns : bpf_ktime_get_ns();
}

#endif
