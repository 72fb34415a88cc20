// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* A generator of frames: runs on live frames of BPF_PROG_TEST_RUN and sends each of them out of a device, with the next
 * of a list of times in front of it and, if asked, a source address of its own.
 */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define SOURCE_OFFSET 26 /* of the IPv4 source address behind Ethernet */

const volatile __u32 output_ifindex;
const volatile __u32 has_times;
/* Source addresses to go through in turn, a power of two, − 1. */
const volatile __u32 flow_mask;

__u64 sent;

/* Key: number of a frame. Value: its time in nanoseconds. Writer: user space. Frames beyond the last are not sent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} times SEC(".maps");

/* Writes the frame's time in front of it. Returns 0, or -1 if there is none left. */
static __always_inline int stamp(struct xdp_md *ctx, __u32 number)
{
	__u64 *metadata = (void *)(long)ctx->data_meta;
	__u64 *time = bpf_map_lookup_elem(&times, &number);

	if (!time || (void *)(metadata + 1) > (void *)(long)ctx->data)
		return -1;
	*metadata = *time;
	return 0;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 *source = (void *)(long)ctx->data + SOURCE_OFFSET;
	__u32 number = sent;

	if (has_times && stamp(ctx, number))
		return XDP_DROP;
	if (flow_mask) {
		if ((void *)(source + 1) > (void *)(long)ctx->data_end)
			return XDP_DROP;
		*source = number & flow_mask;
	}
	sent++;
	return bpf_redirect(output_ifindex, 0);
}

char _license[] SEC("license") = "GPL";
