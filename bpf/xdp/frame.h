/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Access to the bytes of a frame. All parsers use frame_at() and frame_has(), so that a program
 * without direct packet access needs only other versions of these two.
 */

#ifndef XDP_AUDIT_FRAME_H
#define XDP_AUDIT_FRAME_H

#include <linux/if_ether.h>

#include <bpf/bpf_endian.h>

#include "compiler.h"
#include "maps.h"

#define VLAN_TAGS 2
#define VLAN_ID_MASK 0x0fff

/* The first buffer of a frame, which is all of it on most devices. */
struct frame {
	const void *data;
	const void *data_end;
	__u32 len_bytes; /* with those in further buffers, which cannot be accessed directly */
	__u32 reserved;
};

struct vlan_tag {
	__be16 control;
	__be16 next_protocol;
};

/* The first buffer of a frame. */
static __always_inline struct frame frame_of(const struct xdp_md *ctx)
{
	struct frame frame = { .data = (void *)(long)ctx->data,
			       .data_end = (void *)(long)ctx->data_end };
	__u64 len = frame.data_end - frame.data;

	/* Without this, clang 14 subtracts the lower halves of the pointers. The verifier of Linux
	 * 6.1 and later takes these for numbers of any value and accepts that. Saves 1; costs 2
	 * or 3 for a frame that is not IP.
	 */
	VERIFIER_KNOWS(len);
	frame.len_bytes = len;
	return frame;
}

static __always_inline const void *frame_at(const struct frame *frame, __u32 offset)
{
	return frame->data + offset;
}

/* Whether `size` bytes from `bytes` on are in the first buffer. */
static __always_inline bool frame_has(const struct frame *frame, const void *bytes, __u32 size)
{
	return bytes + size <= frame->data_end;
}

/* The bytes of a frame in all of its buffers. */
static __always_inline __u64 len_of_buffers(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);

	return config.has_frags ? bpf_xdp_get_buff_len(ctx) : frame.len_bytes;
}

/* Clang assumes that the members of a header on a packet are not aligned. They are aligned to two
 * bytes.
 */
static __always_inline __be16 load_be16(const void *bytes)
{
	return *(const __be16 *)bytes;
}

static __always_inline bool is_vlan_tag(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

/* Returns the offset of the payload of Ethernet and its tags, or -1 if the tags are truncated. The
 * frame has an Ethernet header. Sets *ethertype to the payload's type and *vlan_id to the id of the
 * outer tag, or 0.
 */
static __always_inline int parse_tags(const struct frame *frame, __be16 *ethertype, __u32 *vlan_id)
{
	const struct ethhdr *eth = frame_at(frame, 0);
	__u32 offset = sizeof(*eth);

	*vlan_id = 0;
	*ethertype = load_be16(&eth->h_proto);
	for (int i = 0; i < VLAN_TAGS && unlikely(is_vlan_tag(*ethertype)); i++) {
		const struct vlan_tag *tag = frame_at(frame, offset);

		if (!frame_has(frame, tag, sizeof(*tag)))
			return -1;
		if (i == 0)
			*vlan_id = bpf_ntohs(tag->control) & VLAN_ID_MASK;
		*ethertype = tag->next_protocol;
		offset += sizeof(*tag);
	}
	return offset;
}

#endif
