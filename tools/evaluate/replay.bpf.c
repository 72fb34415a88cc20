// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* Replays packets of one flow: puts the time of the next one in front of the frame and goes over to the program that audits
 * the device, which is the shipped one and knows nothing of this. Runs as often as there are packets in BPF_PROG_TEST_RUN.
 */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "layout.h"

/* Which slot of the flow table is recorded. */
__u32 set, way;

__u32 next; /* packet */
__u32 packets;

/* What the audit knew before a packet. */
struct record {
	struct baseline baseline;
	__u64 flags;	  /* packets that were flagged so far */
	__u64 suppressed; /* those of which calibration made no event */
};

/* Key: number of a packet. Value: its time in ns. Writer: user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} times SEC(".maps");

/* Key: number of a packet. Value: what was known before it. Writer: replay. Never full: as many as times. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct record);
} records SEC(".maps");

/* Key: 0. Value: the program that audits the device. Writer: user space. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} audits SEC(".maps");

/* The maps of that program. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_set);
} flow_sets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct device_counters);
} audit_counters SEC(".maps");

/* The device is the first one, whose blocks of counters begin at 0. */
static __always_inline int take_record(__u32 number)
{
	__u32 set_key = set, cpu = bpf_get_smp_processor_id();
	struct record *record = bpf_map_lookup_elem(&records, &number);
	struct flow_set *flows = bpf_map_lookup_elem(&flow_sets, &set_key);
	struct device_counters *counters = bpf_map_lookup_elem(&audit_counters, &cpu);

	if (!record || !flows || !counters)
		return -1;
	record->baseline = flows->slots[way & (FLOW_WAYS - 1)].baseline;
	record->flags = counters->last_flag.sequence;
	record->suppressed = counters->fates[FATE_SUPPRESSED];
	return 0;
}

SEC("xdp.frags")
int replay(struct xdp_md *ctx)
{
	__u64 *metadata = (void *)(long)ctx->data_meta;
	__u32 number = next;
	__u64 *time = bpf_map_lookup_elem(&times, &number);

	if (number >= packets || !time || (void *)(metadata + 1) > (void *)(long)ctx->data)
		return XDP_ABORTED;
	if (take_record(number))
		return XDP_ABORTED;
	*metadata = *time;
	next = number + 1;
	bpf_tail_call(ctx, &audits, 0);
	packets = 0; /* there is no such program: nothing more is sent */
	return XDP_ABORTED;
}

char _license[] SEC("license") = "GPL";
