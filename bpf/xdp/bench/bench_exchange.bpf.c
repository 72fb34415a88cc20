// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* The measurement of response times under load. The frame is TCP over IPv4, without options. Each
 * run changes the numbers in it: a segment that comes again is not a request.
 */

#include "../exchange.bpf.c"

#define IP_OFFSET sizeof(struct ethhdr)
#define FRAME_HEADERS (IP_OFFSET + sizeof(struct iphdr) + sizeof(struct tcphdr))

/* Key: 0. Value: the last time. Writer: bench_sent_floor. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} bench_sent_times SEC(".maps");

/* The headers of the frame, or NULL. */
static __always_inline struct iphdr *bench_ip(__u64 data, __u64 data_end)
{
	void *frame = (void *)(long)data;

	return frame + FRAME_HEADERS <= (void *)(long)data_end ? frame + IP_OFFSET : NULL;
}

static __always_inline void add_to(__be32 *number, __u32 n)
{
	*number = bpf_htonl(bpf_ntohl(*number) + n);
}

static __always_inline __u32 payload_of(const struct iphdr *ip)
{
	return bpf_ntohs(ip->tot_len) - sizeof(struct iphdr) - sizeof(struct tcphdr);
}

/* Makes the packet one of the other direction. */
static __always_inline void turn_around(struct iphdr *ip)
{
	struct tcphdr *tcp = (void *)(ip + 1);
	__be32 address = ip->saddr, seq = tcp->seq;
	__be16 port = tcp->source;

	ip->saddr = ip->daddr;
	ip->daddr = address;
	tcp->source = tcp->dest;
	tcp->dest = port;
	tcp->seq = tcp->ack_seq;
	tcp->ack_seq = seq;
}

/* The next segment of one request after the other. */
SEC("xdp")
int bench_exchange_data(struct xdp_md *ctx)
{
	struct iphdr *ip = bench_ip(ctx->data, ctx->data_end);

	if (!ip)
		return XDP_ABORTED;
	add_to(&((struct tcphdr *)(ip + 1))->seq, payload_of(ip));
	return xdp_exchange_body(ctx);
}

/* A request of a client and its response. */
SEC("xdp")
int bench_exchange_both(struct xdp_md *ctx)
{
	struct iphdr *ip = bench_ip(ctx->data, ctx->data_end);
	struct segment segment;
	struct frame frame;

	if (!ip)
		return XDP_ABORTED;
	xdp_exchange_body(ctx);
	add_to(&((struct tcphdr *)(ip + 1))->seq, payload_of(ip));
	turn_around(ip);
	frame = frame_of(ctx);
	if (!read_segment(&frame, IP_OFFSET, frame.len_bytes, FAMILY_IPV4, &segment))
		exchange_send(&frame, IP_OFFSET, &segment, 0);
	add_to(&((struct tcphdr *)(ip + 1))->seq, payload_of(ip));
	turn_around(ip);
	return XDP_PASS;
}

SEC("tc")
int bench_sent_null(struct __sk_buff *skb)
{
	return TCX_NEXT;
}

SEC("tc")
int bench_sent_floor(struct __sk_buff *skb)
{
	__u64 now_ns = bpf_ktime_get_ns();
	__u32 key = 0;
	__u64 *time = bpf_map_lookup_elem(&bench_sent_times, &key);

	if (time)
		*time = now_ns;
	return TCX_NEXT;
}

/* The next segment of one response after the other. */
SEC("tc")
int bench_sent_data(struct __sk_buff *skb)
{
	struct iphdr *ip = bench_ip(skb->data, skb->data_end);

	if (!ip)
		return TCX_NEXT;
	add_to(&((struct tcphdr *)(ip + 1))->seq, payload_of(ip));
	exchange_observe_sent(skb);
	return TCX_NEXT;
}
