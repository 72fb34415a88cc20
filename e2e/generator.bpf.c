// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* Generates frames: runs on live frames of BPF_PROG_TEST_RUN and sends each of them out of a
 * device. Can turn one frame into frames of many flows, and write times into their metadata.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define CLOCK_EVERY 1024	/* frames */
#define SOURCES 0x0a000000	/* 10.0.0.0/8 */
#define DESTINATIONS 0xc6120000 /* 198.18.0.0/15, for benchmarks: RFC 2544 */
#define DESTINATION_MASK 0x0001ffff
#define SOURCE_MASK 0x00ffffff

const volatile __u32 output_ifindex; /* 0: none, to measure the cost of making the frames */
const volatile __u32 has_times;
const volatile __u32 flow_bits; /* frames cycle through 2^flow_bits source addresses */
const volatile __u32 is_random; /* each frame has random addresses and ports instead */

/* Set by user space between runs. */
__u64 number;  /* of the next frame */
__u64 base_ns; /* added to every time */

__u64 sent;
__u64 first_ns; /* time at which frame 0 was sent */
__u64 last_ns;	/* time of the last frame whose number is a multiple of CLOCK_EVERY */
__u64 random_state = 0x9e3779b97f4a7c15ULL;

/* Key: number of a frame >> flow_bits. Value: its time in nanoseconds. Writer: user space. Frames
 * without a time are not sent.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} times SEC(".maps");

/* Writes the frame's time into its metadata. Returns 0, or -1 if no time is left. */
static __always_inline int stamp(struct xdp_md *ctx, __u32 round)
{
	__u64 *metadata = (void *)(long)ctx->data_meta;
	__u64 *time = bpf_map_lookup_elem(&times, &round);

	if (!time || (void *)(metadata + 1) > (void *)(long)ctx->data)
		return -1;
	*metadata = base_ns + *time;
	return 0;
}

/* The xorshift generator of Marsaglia (2003). */
static __always_inline __u64 next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* The checksum of a header in which one word changes: RFC 1624, equation 3. */
static __always_inline __sum16 checksum_after(__sum16 checksum, __be32 before, __be32 after)
{
	__u32 sum = (__u16)~checksum;

	sum += (__u16)~before + (__u16)(~before >> 16) + (__u16)after + (__u16)(after >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline void set_source(struct iphdr *ip, __u32 host)
{
	__be32 source = bpf_htonl(SOURCES | (host & SOURCE_MASK));

	ip->check = checksum_after(ip->check, ip->saddr, source);
	ip->saddr = source;
}

static __always_inline void set_destination(struct iphdr *ip, __u32 host)
{
	__be32 destination = bpf_htonl(DESTINATIONS | (host & DESTINATION_MASK));

	ip->check = checksum_after(ip->check, ip->daddr, destination);
	ip->daddr = destination;
}

/* Rewrites the addresses for the frame's flow. Returns 0, or -1 if the headers are truncated. */
static __always_inline int choose_flow(struct xdp_md *ctx)
{
	struct iphdr *ip = (void *)(long)ctx->data + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);

	if ((void *)(udp + 1) > (void *)(long)ctx->data_end)
		return -1;
	if (is_random) {
		__u64 hosts = next_random(), ports = next_random();

		set_source(ip, hosts >> 32);
		set_destination(ip, hosts);
		udp->source = ports >> 48;
		udp->dest = ports >> 32;
	} else if (flow_bits) {
		set_source(ip, number & ((1 << (flow_bits & 31)) - 1));
	}
	return 0;
}

/* Reads the clock for few frames, because it costs as much as the rest of the program. */
static __always_inline void note_time(void)
{
	if (number % CLOCK_EVERY)
		return;
	last_ns = bpf_ktime_get_ns();
	if (!number)
		first_ns = last_ns;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	if (has_times && stamp(ctx, number >> (flow_bits & 31)))
		return XDP_DROP;
	if (choose_flow(ctx))
		return XDP_DROP;
	note_time();
	number++;
	sent++;
	if (!output_ifindex)
		return XDP_DROP;
	return bpf_redirect(output_ifindex, 0);
}

char _license[] SEC("license") = "GPL";
