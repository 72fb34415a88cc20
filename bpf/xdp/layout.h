/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* What the parts of the program hand to each other, and what the maps hold. */

#ifndef XDP_AUDIT_LAYOUT_H
#define XDP_AUDIT_LAYOUT_H

#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

/* Where the compiler shall put what seldom happens: out of the way, and without registers of its own. */
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

#define FLOW_WAYS 8
#define HISTOGRAM_LINEAR_CELLS 512
#define HISTOGRAM_CELLS (2 * HISTOGRAM_LINEAR_CELLS)
#define LOG2_TABLE_BITS 14
#define LOG2_TABLE_SIZE (1 << LOG2_TABLE_BITS)
#define LOG2_FRACTIONS 128
#define SCORE_BINS 512
#define WATCH_DELTAS 4096
#define FLOW_SAMPLES 1024
#define HASH_WORDS 10 /* 32-bit words of an IPv6 flow key that are hashed */

/* The enumerations number the cells of the counters; their twins are in values.go. */

enum family {
	FAMILY_OTHER,
	FAMILY_IPV4,
	FAMILY_IPV6,
	FAMILIES,
};

enum protocol {
	PROTOCOL_OTHER,
	PROTOCOL_TCP,
	PROTOCOL_UDP,
	PROTOCOL_SCTP,
	PROTOCOL_ICMP,
	PROTOCOLS,
};

/* The number of the cells of a family and a protocol, below PROTOCOL_CELLS. */
#define PROTOCOL_CELLS 32

static __always_inline __u8 protocol_cell(enum family family, __u8 protocol)
{
	return family << 3 | protocol;
}

enum outcome {
	OUTCOME_JUDGED,
	OUTCOME_MIN_SAMPLES,
	OUTCOME_NEW_FLOW,
	OUTCOME_FLAGGED_EARLY,
	OUTCOME_FLAGGED_LATE,
	OUTCOME_IDLE_GAP,
	OUTCOME_REORDERED,
	OUTCOME_CONTENDED,
	OUTCOME_FRAGMENT,
	OUTCOME_UNTIMED,
	OUTCOME_UNPARSED,
	OUTCOMES,
};

enum fate {
	FATE_SENT,
	FATE_RATE_LIMIT,
	FATE_RING_FULL,
	FATE_NO_READER,
	FATE_SUPPRESSED,
	FATE_OTHER,
	FATE_READER_GAP, /* counted by user space */
	FATES,
};

enum eviction {
	EVICTION_EXPIRED,
	EVICTION_LIVE,
	EVICTIONS,
};

enum clock_source {
	CLOCK_SOURCE_KTIME,
	CLOCK_SOURCE_METADATA,
};

/* What is done besides, or in another way than, judging a delta, in ns, against the baseline of its flow. Bits of
 * config.variants, one word so that a packet pays for two looks, whatever there is.
 */
enum variant {
	VARIANT_LOG2 = 1,   /* a sample is the logarithm of a delta, in 2⁻²⁰ octaves */
	VARIANT_DEVICE = 2, /* the baseline is that of the device on this CPU */
	VARIANT_FROZEN = 4, /* the baseline is config.frozen, whatever comes */
	VARIANT_WATCH = 8,  /* deltas of watched flows are recorded, and packets are sampled to tell which flows are busy */
};

/* What the samples so far say, in their unit: ns, or 2⁻²⁰ octaves. */
struct baseline {
	__u64 mean_q16; /* unit · 2¹⁶ */
	__u64 m2_low;	/* unit² */
	__u32 m2_high;	/* 96 bits are enough: n ≤ 2²⁵ samples of at most (2³¹ units)² each */
	__u32 n;
};

/* Constant from load on; one program per device has its own. */
struct audit_config {
	__u64 idle_timeout_ns;
	__u64 event_interval_ns; /* what one perf event costs of a CPU's allowance */
	__u64 event_burst_ns;	 /* how far the allowance may be overdrawn */
	__u32 first_block;	 /* of the device's counters, one for each CPU */
	__u32 owner;		 /* index of the device, and in the upper half how many devices had it before */
	__u32 has_frags;	 /* frames may be in several buffers, of which only the first can be accessed directly */
	__u32 set_mask;		 /* sets of the flow table − 1 */
	__u32 clock_source;
	__u32 min_samples;
	__u32 window_twice;	    /* samples at which a baseline is halved */
	__u32 threshold2_mantissa;  /* threshold² = mantissa · 2^exponent; mantissa 0: everything is flagged */
	__s32 threshold2_exponent;
	__s32 shortcut_shift;	    /* a deviation² below M2 << shift, over n − 1, needs no test; < 0: every one does */
	__u32 shortcut_factor;	    /* 1 << shift, or 0 */
	__u32 hash_keys[HASH_WORDS];
	__u32 stores_are_ordered; /* the machine keeps stores in order, as x86 does: a plain one can release a lock */
	__u32 variants;		  /* enum variant */
	__u32 tail_q32;		  /* share of the judged packets that may become events, early or late, in 2⁻³²; 0: all that are flagged */
	__u32 calibration_twice;  /* judged packets at which a calibration is halved */
	__s32 score_offset;	  /* of the first bin of a calibration, in 2⁻¹⁶ octaves */
	struct baseline frozen;
	__u32 frozen_cuts[2]; /* as in struct calibration */
};

/* Addresses and ports in network order. IPv4 addresses stand in the first word. */
struct flow_key {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u32 owner; /* as in the configuration */
	__u16 vlan_id; /* of the outer tag, host order; 0 without */
	__u8 ip_protocol;
	__u8 family;
	__u32 reserved;
};

/* A frame after parsing, few words, so that those of a common packet are in registers. The addresses are still in the frame,
 * where read_key() gets them for the few packets that need them.
 */
struct packet {
	__u64 addresses;  /* their part of the flow's hash */
	__u32 ports;	  /* as in a UDP header, the source in the lower half */
	__u32 kind;	  /* VLAN id of the outer tag or 0, family, IP protocol: 16, 8 and 8 bits */
	__u32 len_bytes;
	__u8 cell;	  /* of the counters: see protocol_cell() */
	bool is_fragment; /* and not the first of its packet */
	__u16 reserved;
};

/* What is known of a packet on its way. Most packets need little of it after it was stored: of those members  and
 * store_aside() see to it that the compiler gives them no registers on the common way.
 */
struct visit {
	struct xdp_md *ctx;
	struct device_counters *counters;
	struct protocol_counters *cells;
	struct flow_set *set; /* which is locked */
	struct flow_slot *slot;
	__u64 now_ns;
	__u64 delta_ns;
	__u32 place; /* of the slot: see struct flow_sample */
	__u32 len_bytes;
};

/* A flow: when it was last seen, and its baseline. Half a cache line. */
struct flow_slot {
	__u64 last_ns;
	struct baseline baseline;
};

/* A set of the flow table: four lines of slots, and one line that finds the slot. Mark and tag are 47 bits of the flow's
 * hash; tag 0 marks a free slot. A watch is its number + 1; 0: the flow is not watched, or the one before was.
 */
struct flow_set {
	struct flow_slot slots[FLOW_WAYS];
	__u64 lock; /* 1 while it is held */
	__u16 marks[FLOW_WAYS];
	__u32 tags[FLOW_WAYS];
	__u8 watches[FLOW_WAYS];
};

/* The last deltas of a watched flow. User space says whose they are, before the flow has the watch; the delta numbered i is in
 * deltas_ns[i % WATCH_DELTAS].
 */
struct watch {
	__u64 recorded; /* deltas, of all flows that have had the watch */
	__u32 tag;
	__u16 mark;
	__u16 reserved;
	__u64 reserved2[6];
	__u32 deltas_ns[WATCH_DELTAS];
};

/* A packet's flow: its place in the flow table is set · FLOW_WAYS + way. */
struct flow_sample {
	__u32 place;
	__u32 tag;
};

/* The flows of the last packets that were sampled on a CPU; the sample numbered i is in samples[i % FLOW_SAMPLES]. */
struct flow_samples {
	__u64 taken;
	__u64 reserved[7];
	struct flow_sample samples[FLOW_SAMPLES];
};

/* The arguments of the score of a flagged packet: the baseline as it was before the packet entered it. */
struct flag_state {
	__u64 audit_ns; /* on the audit clock */
	__u64 ktime_ns; /* CLOCK_MONOTONIC */
	__u64 delta_ns;
	__u64 mean_q16;
	__u64 m2_low;
	__u32 m2_high;
	__u32 n;
	__u32 len_bytes;
	__u32 is_late;
	__u64 deviation_q16; /* of the sample from the mean, its absolute value */
};

/* What goes through audit_events. */
struct audit_event {
	struct flag_state flag;
	struct flow_key key;
};

/* The last flagged packet of a CPU. The state numbered `sequence` is in states[sequence & 1]; a reader that finds the
 * same sequence before and after has read it whole. 0: none yet.
 */
struct last_flag {
	__u64 sequence;
	__u64 reserved[7];
	struct flag_state states[2];
};

/* Sums over the deltas around reference_ns (0: no delta yet), in ns and ns², each of 128 bits: low, high. Deviations are
 * summed up by side: those above the reference, those below.
 */
struct delta_sums {
	__u64 reference_ns;
	__u64 deviation[2][2];
	__u64 squared[2];
	__u64 reserved;
};

/* The baseline of a device on one CPU. While it is written, the sequence is odd; a reader that finds the same even one
 * before and after has read it whole.
 */
struct device_baseline {
	__u64 sequence;
	struct baseline baseline;
	__u64 reserved[4];
};

/* The scores of the flagged packets of a device on one CPU, early ones and late ones, and from which on they are rare. */
struct calibration {
	__u64 forgotten;    /* judged packets that the scores are not a part of any more */
	__u64 flagged;	    /* packets that were given a score, ever */
	__u64 refreshed_ns; /* when the allowed tail was computed, on the audit clock; 0: never */
	__u32 allowed;	    /* scores that a tail may have; 0: too little is known to tell */
	__s32 offset;	    /* config.score_offset of the program that counted the scores */
	__u32 cuts[2];	    /* the first bin that is rare, SCORE_BINS if none is */
	__u32 tails[2];	    /* scores in this bin and those above */
	__u64 reserved[2];
	__u32 scores[2][SCORE_BINS];
};

struct protocol_counters {
	__u64 bytes;
	__u64 packets[15]; /* by outcome, one of them for each packet; padded to two cache lines */
};

/* All counters of one device on one CPU. Whole cache lines, written by that CPU only (reference_ns of a device's first
 * block excepted), read by user space through mapped memory.
 */
struct device_counters {
	struct protocol_counters protocols[PROTOCOL_CELLS / 8][8]; /* by family and protocol: more than there are, which makes shifts of products */
	struct delta_sums sums;
	__u64 fates[8];
	__u64 flow_inserts;
	__u64 flow_evictions[EVICTIONS];
	__u64 reserved[5];
	struct device_baseline device;
	struct last_flag last_flag;
	__u64 histogram[HISTOGRAM_CELLS];
	struct calibration calibration;
};

/* What a CPU may still send through audit_events, shared by all devices, and where to. One cache line. */
struct event_allowance {
	__u64 spent_until_ns; /* the time at which everything sent so far is paid for */
	__u32 ring;	      /* index in audit_events; user space numbers rings without a gap, CPUs may have some */
	__u32 reserved[13];
};

#endif
