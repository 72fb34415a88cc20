/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The audit clock, which gives a packet its time. */

#ifndef XDP_AUDIT_CLOCK_H
#define XDP_AUDIT_CLOCK_H

#include "maps.h"

/* Reads the audit clock, in ns. Returns false if it has no time for this packet: the metadata clock
 * needs 8 bytes of metadata that are not all ones.
 */
static __always_inline bool clock_read(struct packet_state *state, __u64 *now_ns)
{
	const struct xdp_md *ctx;
	const __u64 *metadata;

	if (config.clock_source != CLOCK_SOURCE_METADATA) {
		*now_ns = bpf_ktime_get_ns();
		return true;
	}
	ctx = state->ctx;
	metadata = (void *)(long)ctx->data_meta;
	if ((void *)(metadata + 1) > (void *)(long)ctx->data)
		return false;
	*now_ns = *metadata;
	return *now_ns != ~0ULL;
}

/* CLOCK_MONOTONIC, for a packet with the time audit_ns on the audit clock. */
static __always_inline __u64 clock_ktime(__u64 audit_ns)
{
	return config.clock_source == CLOCK_SOURCE_KTIME ? audit_ns : bpf_ktime_get_ns();
}

#endif
