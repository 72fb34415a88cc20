/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The hash of a flow: a function of the NH family of universal hash functions (Black et al., UMAC,
 * 1999) over its words, a sum of products of pairs. Two flows collide with probability 2⁻³² for any
 * choice of flows that does not depend on the keys. Each device has its own secret keys.
 */

#ifndef XDP_AUDIT_HASH_H
#define XDP_AUDIT_HASH_H

#include "maps.h"

/* The first key of a pair of words. */
#define HASH_KEY_PORTS 0     /* ports and kind, as in struct packet */
#define HASH_KEY_ADDRESSES 2 /* source and destination; IPv6 has three pairs more */

/* The operands are sums modulo 2³². */
static __always_inline __u64 hash_product(__u32 a, __u32 b)
{
	return (__u64)a * b;
}

static __always_inline __u64 hash_pair(__u32 a, __u32 b, __u32 key)
{
	return hash_product(a + config.hash_keys[key], b + config.hash_keys[key + 1]);
}

/* Makes every bit depend on all bits: a bit of a product depends only on lower bits. A permutation,
 * except that the lowest bit of the result is set so that no tag is 0.
 */
static __always_inline __u64 hash_mix(__u64 v)
{
	v = (v ^ v >> 32) * 0x9e3779b97f4a7c15ULL;
	return (v ^ v >> 32) * 0xbf58476d1ce4e5b9ULL | 1;
}

static __always_inline __u64 hash_packet(const struct packet *packet)
{
	return hash_mix(packet->addresses + hash_pair(packet->ports, packet->kind, HASH_KEY_PORTS));
}

#endif
