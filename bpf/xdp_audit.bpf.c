// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* Audits the timing of the packets of one network device. Counts and scores them, and lets all of them pass. */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "clock.h"
#include "counters.h"
#include "events.h"
#include "flow.h"
#include "parse.h"

/* A driver that spreads a frame over several buffers puts as much into the first, unless it splits the headers off. */
#define LEAST_FIRST_BUFFER 1024

/* The length of a whole frame whose headers agree with what is in its first buffer, as do those of a small packet that is
 * padded to a jumbo frame. Short frames, of which there are many, are not asked about.
 */
static __always_inline void add_other_buffers(struct xdp_md *ctx, struct packet *packet)
{
	if (packet->len_bytes >= LEAST_FIRST_BUFFER && config.has_frags)
		packet->len_bytes = bpf_xdp_get_buff_len(ctx);
}

/* Parses again what could not be parsed as a frame in one buffer: the lengths in the headers go beyond the first buffer of
 * a frame in several. All headers are in it. Returns whether that was it.
 */
static __always_inline bool parse_frame_in_buffers(struct xdp_md *ctx, struct frame *frame, struct packet *packet)
{
	__u32 first_bytes = frame_len(frame), len_bytes;

	if (!config.has_frags)
		return false;
	len_bytes = bpf_xdp_get_buff_len(ctx);
	if (len_bytes <= first_bytes)
		return false;
	frame->beyond_bytes = len_bytes - first_bytes;
	__builtin_memset(packet, 0, sizeof(*packet));
	return !parse_frame(frame, packet);
}

/* Everything between the clock and the counters. */
static __always_inline enum outcome audit_packet(struct xdp_md *ctx, __u64 now_ns, struct device_counters *counters,
						 struct packet *packet)
{
	struct frame frame = { .data = (void *)(long)ctx->data, .data_end = (void *)(long)ctx->data_end };
	enum outcome outcome;

	if (parse_frame(&frame, packet) && !parse_frame_in_buffers(ctx, &frame, packet))
		return OUTCOME_UNPARSED;
	add_other_buffers(ctx, packet);
	if (packet->is_fragment)
		return OUTCOME_FRAGMENT;
	if (now_ns == CLOCK_NONE)
		return OUTCOME_UNTIMED;
	outcome = flow_observe(&packet->key, now_ns, counters);
	if (is_flagged(outcome))
		report_flag(ctx, counters, now_ns, packet);
	return outcome;
}

static __always_inline int xdp_audit_body(struct xdp_md *ctx)
{
	__u64 now_ns = clock_read(ctx);
	struct device_counters *counters = counters_of_cpu(bpf_get_smp_processor_id());
	struct packet packet = {};

	if (counters)
		count_packet(counters, &packet, audit_packet(ctx, now_ns, counters, &packet));
	return XDP_PASS;
}

SEC("xdp.frags")
int xdp_audit(struct xdp_md *ctx)
{
	return xdp_audit_body(ctx);
}

char _license[] SEC("license") = "GPL";
