// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* The audit with the kernel's LRU hash as its flow table, to compare. Nothing guards a slot: two CPUs would tear it. Only with the
 * kernel's clock, which always has a time.
 */

#include "flow.h"

/* Key: the flow. Value: its baseline. Writer: any CPU. When it is full, one of the flows not seen for long goes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct flow_slot);
} bench_lru_flows SEC(".maps");

static __always_inline enum outcome lru_observe(struct xdp_md *ctx, const struct packet *packet, __u64 *now,
						struct device_counters *counters)
{
	struct flow_slot *slot, first = {};
	struct flow_key key;
	__u64 now_ns;

	read_key(ctx, packet, &key);
	now_ns = *now = first.last_ns = clock_read(ctx);
	slot = bpf_map_lookup_elem(&bench_lru_flows, &key);
	if (slot)
		return slot_observe(slot, NULL, 0, now_ns, counters);
	if (!bpf_map_update_elem(&bench_lru_flows, &key, &first, BPF_ANY))
		counters->flow_inserts++;
	return OUTCOME_NEW_FLOW;
}

/* flow.h is behind us: what follows calls this one instead. */
#define flow_observe lru_observe

#include "xdp_audit.bpf.c"

#include "bench_flows.h"

SEC("xdp")
int bench_audit_many(struct xdp_md *ctx)
{
	next_flow(ctx);
	return xdp_audit_body(ctx);
}
