// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* The audit with the kernel's LRU hash as its flow table, for comparison. Slots have no lock: two
 * CPUs would corrupt one. Works only with the kernel's clock, which has a time for every packet.
 */

#include "../flow.h"

/* Key: a flow. Value: its baseline. Writer: any CPU. When it is full, the kernel evicts a flow
 * that was not used recently.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct flow_slot);
} bench_lru_flows SEC(".maps");

/* slot_observe() without a record, which belongs to a slot of the audit's own table. */
static __always_inline enum outcome lru_slot_observe(struct packet_state *state,
						     struct flow_slot *slot, __u64 now_ns)
{
	struct device_counters *counters = state->counters;
	__u64 delta_ns = now_ns - slot->last_ns;
	enum outcome outcome;

	if (unlikely(delta_ns > config.idle_timeout_ns))
		return slot_resume(slot, now_ns);
	slot->last_ns = now_ns;
	outcome = baseline_observe(&slot->baseline, delta_ns, delta_ns, &counters->last_flag, NULL);
	counters->last_flag.is_sent = false;
	count_delta(counters, delta_ns);
	return outcome;
}

static __always_inline enum outcome lru_observe(struct packet_state *state,
						const struct packet *packet)
{
	struct flow_slot *slot, first = {};
	struct flow_key key;
	__u64 now_ns = 0;

	read_key(state->ctx, packet, &key);
	clock_read(state, &now_ns);
	state->now_ns = first.last_ns = now_ns;
	slot = bpf_map_lookup_elem(&bench_lru_flows, &key);
	if (slot)
		return lru_slot_observe(state, slot, now_ns);
	if (!bpf_map_update_elem(&bench_lru_flows, &key, &first, BPF_ANY))
		state->counters->flow_inserts++;
	return OUTCOME_NEW_FLOW;
}

/* flow.h is included already. The program below calls this function instead of its own. */
#define flow_observe lru_observe

#include "../xdp_audit.bpf.c"

#include "bench_flows.h"

SEC("xdp")
int bench_audit_many(struct xdp_md *ctx)
{
	next_flow(ctx);
	return xdp_audit_body(ctx);
}
