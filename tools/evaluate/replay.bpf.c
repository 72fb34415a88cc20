// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* Replays packets of one flow: writes the time of the next packet into the metadata of the frame
 * and tail-calls the program that audits the device, which is the shipped one, unchanged. Runs
 * once per packet in BPF_PROG_TEST_RUN.
 */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "layout.h"

/* The slot of the flow table that is recorded. */
__u32 set, way;

__u32 next; /* number of the next packet */
__u32 packets;

/* The state of the audit before a packet. */
struct record {
	struct baseline baseline;
	__u64 flags;	  /* number of flagged packets */
	__u64 suppressed; /* number of flagged packets without an event because of calibration */
};

/* Key: number of a packet. Value: its time in ns. Writer: user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} times SEC(".maps");

/* Key: number of a packet. Value: the state before it. Writer: replay. As large as times. */
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

/* Maps of that program. */
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

/* The device has index 0, so that its block of counters has the number of the CPU. */
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
	packets = 0; /* the tail call failed, so stop */
	return XDP_ABORTED;
}

char _license[] SEC("license") = "GPL";
