/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Turns one test frame into frames of many flows. */

#ifndef XDP_AUDIT_BENCH_FLOWS_H
#define XDP_AUDIT_BENCH_FLOWS_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* The number of flows, a power of two, − 1. */
const volatile __u32 bench_flow_mask;
/* Offset in the frame of the word of the address that is rewritten, in bytes. */
const volatile __u32 bench_address_offset;

__u64 bench_sequence;

/* Makes the packet one of the next flow. */
static __always_inline void next_flow(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	__u32 *address = (__u32 *)(data + (bench_address_offset & 0xff));

	if ((void *)(address + 1) > (void *)(long)ctx->data_end)
		return;
	*address = bench_sequence++ & bench_flow_mask;
}

#endif
