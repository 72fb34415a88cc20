// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* The programs that the audit is compared with. Most have a second version, which first makes the
 * packet one of the next flow.
 */

#include "../xdp_audit.bpf.c"

#include "bench_flows.h"

#define LINE_WORDS 8

struct line {
	__u64 words[LINE_WORDS];
};

/* The number of lines of bench_table. */
const volatile __u32 bench_lines;

__u64 bench_random = 1;

/* Key: 0. Value: the last time. Writer: bench_floor. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} bench_times SEC(".maps");

/* Key: number of a line. Value: a cache line. Writer: bench_floor_table. Has the size of
 * flow_sets.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct line);
} bench_table SEC(".maps");

/* Key: number of a packet. Value: its time. Writer: user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} bench_injected SEC(".maps");

/* The number of the next packet. */
__u64 bench_packet;

static __always_inline int floor_body(void)
{
	__u64 now_ns = bpf_ktime_get_ns();
	__u32 key = 0;
	__u64 *time = bpf_map_lookup_elem(&bench_times, &key);

	if (time)
		*time = now_ns;
	return XDP_PASS;
}

static __always_inline int floor_table_body(void)
{
	struct line *line;
	__u32 key;

	bench_random ^= bench_random << 13;
	bench_random ^= bench_random >> 7;
	bench_random ^= bench_random << 17;
	key = (bench_random >> 32) * bench_lines >> 32;
	line = bpf_map_lookup_elem(&bench_table, &key);
	if (line)
		line->words[0]++;
	return floor_body();
}

SEC("xdp")
int bench_null(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int bench_null_many(struct xdp_md *ctx)
{
	next_flow(ctx);
	return XDP_PASS;
}

SEC("xdp")
int bench_floor(struct xdp_md *ctx)
{
	return floor_body();
}

SEC("xdp")
int bench_floor_many(struct xdp_md *ctx)
{
	next_flow(ctx);
	return floor_body();
}

SEC("xdp")
int bench_floor_table_many(struct xdp_md *ctx)
{
	next_flow(ctx);
	return floor_table_body();
}

SEC("xdp")
int bench_audit_many(struct xdp_md *ctx)
{
	next_flow(ctx);
	return xdp_audit_body(ctx);
}

/* The audit with the times of bench_injected in the packets' metadata, as if an earlier program had
 * written them.
 */
SEC("xdp")
int bench_audit_injected(struct xdp_md *ctx)
{
	__u64 *metadata = (void *)(long)ctx->data_meta;
	__u32 key = bench_packet;
	__u64 *time = bpf_map_lookup_elem(&bench_injected, &key);

	if (!time || (void *)(metadata + 1) > (void *)(long)ctx->data)
		return XDP_ABORTED;
	*metadata = *time;
	bench_packet++;
	return xdp_audit_body(ctx);
}
