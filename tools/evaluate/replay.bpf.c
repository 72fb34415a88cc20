// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* Replays packets: writes the source address of the next packet into the frame, its time into the
 * metadata, and tail-calls the program that audits the device, which is the shipped one, unchanged.
 * Runs once per packet in BPF_PROG_TEST_RUN.
 */

#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"

#define SOURCE_OFFSET 26 /* of the address in a frame of IPv4 */

__u32 next; /* number of the next packet */
__u32 packets;
__u32 source; /* address of flow 0; the others follow */

/* The slot of a flow in the flow table. */
struct place {
	__u32 set;
	__u32 way;
};

/* The baseline of a packet's flow, and the counters of the device, before the packet. */
struct record {
	struct baseline baseline;
	__u64 flags;	/* number of flagged packets */
	__u32 fates[8]; /* lower halves of the counters */
};

/* Key: number of a packet. Value: its time in ns. Writer: user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} times SEC(".maps");

/* Key: number of a packet. Value: number of its flow. Writer: user space. As large as times. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} flows SEC(".maps");

/* Key: number of a flow. Value: its slot. Writer: user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct place);
} places SEC(".maps");

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
static __always_inline int take_record(__u32 number, __u32 flow)
{
	struct record *record = bpf_map_lookup_elem(&records, &number);
	struct place *place = bpf_map_lookup_elem(&places, &flow);
	__u32 cpu = bpf_get_smp_processor_id();
	struct device_counters *counters = bpf_map_lookup_elem(&audit_counters, &cpu);
	struct flow_set *set;

	if (!record || !place || !counters)
		return -1;
	set = bpf_map_lookup_elem(&flow_sets, &place->set);
	if (!set)
		return -1;
	record->baseline = set->slots[place->way & (FLOW_WAYS - 1)].baseline;
	record->flags = counters->last_flag.sequence;
	for (int i = 0; i < 8; i++)
		record->fates[i] = counters->fates[i];
	record->fates[FATE_SUPPRESSED] += counters->fates[FATE_NO_TOKEN];
	record->fates[FATE_NO_TOKEN] = 0;
	return 0;
}

static __always_inline int prepare(struct xdp_md *ctx, __u32 number)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__u64 *metadata = (void *)(long)ctx->data_meta;
	__be32 *address = data + SOURCE_OFFSET;
	__u64 *time = bpf_map_lookup_elem(&times, &number);
	__u64 *flow = bpf_map_lookup_elem(&flows, &number);

	if (number >= packets || !time || !flow || (void *)(metadata + 1) > data ||
	    (void *)(address + 1) > data_end)
		return -1;
	*metadata = *time;
	*address = bpf_htonl(source + *flow);
	return take_record(number, *flow);
}

SEC("xdp.frags")
int replay(struct xdp_md *ctx)
{
	__u32 number = next;

	if (prepare(ctx, number))
		return XDP_ABORTED;
	next = number + 1;
	bpf_tail_call(ctx, &audits, 0);
	packets = 0; /* the tail call failed, so stop */
	return XDP_ABORTED;
}

char _license[] SEC("license") = "GPL";
