/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The hash of a flow: of the NH family of universal hash functions (Black et al., UMAC, 1999) over its words, a sum of
 * products of pairs. For keys that an attacker does not know, two flows agree with probability 2⁻³², whatever they are. Each
 * device has keys of its own.
 */

#ifndef XDP_AUDIT_HASH_H
#define XDP_AUDIT_HASH_H

#include "maps.h"

/* The first key of a pair of words. */
#define HASH_KEY_PORTS 0     /* and kind, as in struct packet */
#define HASH_KEY_ADDRESSES 2 /* source and destination, and for IPv6 three pairs more */

/* Of sums that have lost what is above 32 bits. */
static __always_inline __u64 hash_product(__u32 a, __u32 b)
{
	return (__u64)a * b;
}

/* A macro, since the number of a key has to be a constant. */
#define hash_pair(a, b, key) hash_product((a) + config.hash_keys[key], (b) + config.hash_keys[(key) + 1])

/* Lets every bit depend on all: a product's bits depend on the lower ones alone. A permutation, of which the lowest bit is set, so
 * that no tag is 0.
 */
static __always_inline __u64 hash_mix(__u64 v)
{
	v = (v ^ v >> 32) * 0x9e3779b97f4a7c15ULL;
	v = (v ^ v >> 32) * 0xbf58476d1ce4e5b9ULL | 1;
	return v;
}

static __always_inline __u64 hash_packet(const struct packet *packet)
{
	return hash_mix(packet->addresses + hash_pair(packet->ports, packet->kind, HASH_KEY_PORTS));
}

#endif
