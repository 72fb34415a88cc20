/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The audit clock: where a packet's time comes from. */

#ifndef XDP_AUDIT_CLOCK_H
#define XDP_AUDIT_CLOCK_H

#include "maps.h"

#define CLOCK_NONE (~0ULL)

/* Reads 8 bytes of nanoseconds in front of the packet. */
static __always_inline __u64 clock_read_metadata(const struct xdp_md *ctx)
{
	const __u64 *metadata = (void *)(long)ctx->data_meta;

	if ((void *)(metadata + 1) > (void *)(long)ctx->data)
		return CLOCK_NONE;
	return *metadata;
}

/* The audit clock, in ns, or CLOCK_NONE if it has no time for this packet. */
static __always_inline __u64 clock_read(const struct xdp_md *ctx)
{
	if (constant(clock_source) == CLOCK_SOURCE_METADATA)
		return clock_read_metadata(ctx);
	return bpf_ktime_get_ns();
}

/* CLOCK_MONOTONIC for a packet that the audit clock put at audit_ns. */
static __always_inline __u64 clock_ktime(__u64 audit_ns)
{
	return constant(clock_source) == CLOCK_SOURCE_KTIME ? audit_ns : bpf_ktime_get_ns();
}

#endif
