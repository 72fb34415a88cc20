// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* Audits the timing of the packets of one network device: counts and judges each packet, and passes
 * all of them.
 */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "compiler.h"
#include "counters.h"
#include "events.h"
#include "flow.h"
#include "parse.h"
#include "parse_fast.h"

/* A driver that spreads a frame over several buffers fills the first with at least this many bytes,
 * unless it splits headers from data.
 */
#define MIN_FIRST_BUFFER 1024

/* The length of a packet whose headers fit the bytes in its first buffer. A short packet that is
 * padded to a jumbo frame has further buffers. The kernel is not asked for short frames, which are
 * frequent.
 */
static __always_inline __u32 packet_len(struct packet_state *state, const struct packet *packet)
{
	if (unlikely(packet->len_bytes >= MIN_FIRST_BUFFER))
		return len_of_buffers(state->ctx);
	return packet->len_bytes;
}

/* Counts a packet that has no flow. */
static __always_inline void count_without_flow(struct packet_state *state,
					       const struct packet *packet, __u64 len_bytes,
					       enum outcome outcome)
{
	struct protocol_counters *cells = cells_of(state->counters, packet->cell);

	cells->bytes += len_bytes;
	cells->packets[outcome]++;
}

/* Parses a frame that parse_fast() left with an error. Returns 0, or -1 if the packet has no flow.
 * Then it is counted.
 */
static __always_inline int parse_uncommon(struct packet_state *state, const struct frame *frame,
					  struct packet *packet, int error)
{
	if (error == ENCAPSULATED && config.link_layer == LINK_LAYER_STRIPPED) {
		error = parse_fast_ethernet(frame, stripped_vlan_id(state->ctx), packet);
		if (likely(!error))
			return 0;
		if (error != NOT_IP)
			error = ENCAPSULATED; /* find_ip() knows of the stripped tag */
	}
	if (error == NOT_IP) {
		packet->cell = protocol_cell(FAMILY_OTHER, PROTOCOL_OTHER);
		count_without_flow(state, packet, len_of_buffers(state->ctx), OUTCOME_UNPARSED);
		return -1;
	}
	if (parse_slow(state->ctx, packet, error)) {
		count_without_flow(state, packet, packet->len_bytes, OUTCOME_UNPARSED);
		return -1;
	}
	if (packet->is_fragment) {
		count_without_flow(state, packet, packet_len(state, packet), OUTCOME_FRAGMENT);
		return -1;
	}
	return 0;
}

/* Counts and parses a frame. Returns 0, or -1 if the packet has no flow and is counted. */
static __always_inline int audit_parse(struct xdp_md *ctx, struct packet_state *state,
				       struct packet *packet)
{
	struct device_counters *counters = counters_of_cpu(bpf_get_smp_processor_id());
	struct frame frame;
	int error;

	if (unlikely(!counters))
		return -1;
	state->ctx = ctx;
	state->counters = counters;
	frame = frame_of(ctx);
	error = parse_fast(&frame, packet);
	if (unlikely(error) && parse_uncommon(state, &frame, packet, error))
		return -1;
	state->len_bytes = packet_len(state, packet);
	state->cells = cells_of(state->counters, packet->cell);
	state->cells->bytes += state->len_bytes;
	return 0;
}

/* Judges and counts a packet that has a flow. */
static __always_inline int audit_flow(struct packet_state *state, const struct packet *packet)
{
	enum outcome outcome = flow_observe(state, packet);
	struct protocol_counters *cells = state->cells;

	if (likely(outcome == OUTCOME_JUDGED)) {
		cells->packets[OUTCOME_JUDGED]++;
		return XDP_PASS;
	}
	if (is_flagged(outcome))
		report_flag(state->ctx, state->counters, state->now_ns, state->len_bytes);
	/* Clang would remove the test for flagged packets. The verifier of Linux 6.1 does not know
	 * the bounds of their outcomes. Costs 1 for a flagged packet.
	 */
	VERIFIER_KNOWS(outcome);
	if (outcome < OUTCOMES) { /* always true, but the verifier does not know it */
		cells->packets[outcome]++;
		KEEP_BRANCH(); /* 1: clang would merge it with the increment above */
	}
	return XDP_PASS;
}

static __always_inline int xdp_audit_body(struct xdp_md *ctx)
{
	struct packet_state state; /* not zeroed: few packets need all members */
	struct packet packet;

	if (audit_parse(ctx, &state, &packet))
		return XDP_PASS;
	return audit_flow(&state, &packet);
}

SEC("xdp.frags")
int xdp_audit(struct xdp_md *ctx)
{
	return xdp_audit_body(ctx);
}

char _license[] SEC("license") = "GPL";
