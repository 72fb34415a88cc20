// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* Audits the timing of the packets of one network device. Counts and scores them, and lets all of them pass. */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "parse_fast.h"
#include "counters.h"
#include "events.h"
#include "flow.h"
#include "parse.h"

/* A driver that spreads a frame over several buffers puts as much into the first, unless it splits the headers off. */
#define LEAST_FIRST_BUFFER 1024

/* The length of a packet whose headers agree with what is in its first buffer, as do those of a small one that is padded to a
 * jumbo frame. Short frames, of which there are many, are not asked about.
 */
static __always_inline __u32 packet_len(struct visit *visit, const struct packet *packet)
{
	return unlikely(packet->len_bytes >= LEAST_FIRST_BUFFER) ? whole_len(visit->ctx) : packet->len_bytes;
}

/* Counts a packet that is not audited. */
static __always_inline void count_uncommon(struct device_counters *counters, const struct packet *packet, __u32 len_bytes,
					   enum outcome outcome)
{
	struct protocol_counters *cells = cells_of(counters, packet->cell);

	cells->bytes += len_bytes;
	cells->packets[outcome]++;
}

static __always_inline int xdp_audit_body(struct xdp_md *ctx)
{
	struct device_counters *counters = counters_of_cpu(bpf_get_smp_processor_id());
	struct frame frame = frame_of(ctx);
	struct protocol_counters *cells;
	enum outcome outcome;
	struct packet packet;
	struct visit visit;
	__u64 len_bytes;

	if (unlikely(!counters))
		return XDP_PASS;
	visit.ctx = ctx;
	visit.counters = counters;
	if (unlikely(parse_common(&frame, &packet))) {
		if (parse_uncommon(visit.ctx, &packet)) {
			count_uncommon(visit.counters, &packet, packet.len_bytes, OUTCOME_UNPARSED);
			return XDP_PASS;
		}
		if (packet.is_fragment) {
			count_uncommon(visit.counters, &packet, packet_len(&visit, &packet), OUTCOME_FRAGMENT);
			return XDP_PASS;
		}
	}
	len_bytes = packet_len(&visit, &packet);
	cells = cells_of(visit.counters, packet.cell);
	visit.len_bytes = len_bytes;
	visit.cells = cells;
	cells->bytes += len_bytes;
	outcome = flow_observe(&visit, &packet);
	cells = visit.cells;
	if (likely(outcome == OUTCOME_JUDGED)) {
		cells->packets[OUTCOME_JUDGED]++;
		return XDP_PASS;
	}
	if (is_flagged(outcome))
		report_flag(visit.ctx, visit.counters, visit.now_ns, visit.len_bytes);
	if (outcome < OUTCOMES) /* as all are; for the verifier */
		cells->packets[outcome]++;
	return XDP_PASS;
}

SEC("xdp.frags")
int xdp_audit(struct xdp_md *ctx)
{
	return xdp_audit_body(ctx);
}

char _license[] SEC("license") = "GPL";
