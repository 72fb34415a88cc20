/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The values of the maps, the configuration, and the structs that headers pass to each other.
 *
 * Renaming or moving a member of a map's value makes maps that an earlier version pinned unusable:
 * pins are compared by the names and offsets in BTF.
 */

#ifndef XDP_AUDIT_LAYOUT_H
#define XDP_AUDIT_LAYOUT_H

#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>

#define FLOW_WAYS 8
#define HISTOGRAM_LINEAR_CELLS 512
#define HISTOGRAM_CELLS (2 * HISTOGRAM_LINEAR_CELLS)
#define LOG2_TABLE_BITS 14
#define LOG2_TABLE_SIZE (1 << LOG2_TABLE_BITS)
#define LOG2_FRACTIONS 128
#define WATCH_DELTAS 4096
#define FLOW_SAMPLES 1024
#define HASH_WORDS 10 /* 32-bit words of an IPv6 flow key that are hashed */

/* The enumerations number the cells of the counters. values.go has the same numbers. */

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

/* The number of the cell of a family and a protocol, below PROTOCOL_CELLS. */
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
	FATE_NO_TOKEN,	 /* as FATE_SUPPRESSED, for a flag that is rare for its flow */
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

/* What the frames of a device begin with. */
enum link_layer {
	LINK_LAYER_ETHERNET,
	LINK_LAYER_NONE,     /* the header of IP, as on tunnel devices */
	LINK_LAYER_STRIPPED, /* Ethernet, from which the driver may have removed the outer tag */
};

/* Deviations from the default mode, in which a delta in ns is judged against the baseline of its
 * flow. They are bits of config.modes, so that a packet in the default mode tests one word.
 */
enum judging_mode {
	MODE_LOG2 = 1,	 /* samples are logarithms of deltas, in 2⁻²⁰ octaves */
	MODE_DEVICE = 2, /* one baseline per device and CPU instead of one per flow */
	MODE_FROZEN = 4, /* the baseline is config.frozen and does not learn */
	MODE_WATCH = 8,	 /* deltas of watched flows are recorded, and packets are sampled */
};

/* A summary of samples, in their unit: ns, or 2⁻²⁰ octaves with MODE_LOG2. */
struct baseline {
	__u64 mean_q16; /* unit · 2¹⁶ */
	__u64 m2_low;	/* sum of squared deviations from the mean, unit² */
	/* 23 bits of m2: n ≤ 2²⁵ samples of at most (2³¹ units)² each. HAS_RECORD is 1 if the
	 * flow's record belongs to this baseline. The highest 8 bits count how often n was halved
	 * since the flow's last flagged packet, up to MOST_HALVINGS.
	 */
	__u32 m2_high;
	__u32 n;
};

#define M2_HIGH_MASK ((1U << 23) - 1)
#define HAS_RECORD_SHIFT 23
#define HAS_RECORD (1U << HAS_RECORD_SHIFT)
#define HALVINGS_SHIFT 24
#define MOST_HALVINGS 253U /* 253 windows and a baseline are below 2³² samples */

/* The configuration of the program of one device. User space sets it before load. */
struct audit_config {
	__u64 idle_timeout_ns;
	__u64 event_interval_ns; /* price of one perf event in a CPU's allowance */
	__u64 event_burst_ns;	 /* upper bound on the overdraft of the allowance */
	__u32 first_block; /* index of the device's first block of counters; one block per CPU */
	__u32 owner;	   /* device index; upper half: number of earlier devices with this index */
	__u32 has_frags;   /* frames may span buffers; only the first can be accessed directly */
	__u32 link_layer;  /* enum link_layer */
	__u32 set_mask;	   /* number of sets of the flow table − 1 */
	__u32 clock_source;
	__u32 min_samples;
	__u32 baseline_halved_at;  /* number of samples at which a baseline is halved */
	__u32 threshold2_mantissa; /* threshold² = mantissa · 2^exponent; 0: flag every packet */
	__s32 threshold2_exponent;
	/* 4 · deviation² · (n − 1) < M2 · factor implies that a sample is not clipped; neither
	 * clipped nor flagged; not flagged and at most √5 times the clip.
	 */
	__u32 clip_factor_q2;
	__u32 shortcut_factor_q2;
	__u32 near_factor_q2;
	__u32 near_scale_q16;	   /* clip · √k over the root of shortcut_factor_q2 / 4 */
	__u32 clip_q16;		   /* in standard deviations; 0: samples are not clipped */
	__u32 variance_factor_q16; /* 12 · k, see clip.go */
	__u32 learnt_factor_q16;   /* 1/k */
	/* A baseline restarts after more than that many flagged packets in a row on one side. 0:
	 * never.
	 */
	__u32 restart_run;
	__u32 hash_keys[HASH_WORDS];
	__u32 stores_are_ordered; /* the CPUs keep stores in order, as x86 does */
	__u32 modes;		  /* bits of enum judging_mode */
	__u32 share_q32; /* tokens that a flow earns per judged packet, in 2⁻³²; 0: no tokens */
	__u32 young_samples;	 /* a flag against fewer samples raises no cut */
	__u64 threshold2_q32;	 /* log2 of threshold² in 2⁻³² octaves */
	__u64 unearned_burst_ns; /* as event_burst_ns, for unearned events */
	struct baseline frozen;
};

/* The identity of a flow. Addresses and ports are in network order. IPv4 uses word 0. */
struct flow_key {
	__be32 source[4];
	__be32 destination[4];
	__be16 source_port;
	__be16 destination_port;
	__u32 owner;   /* as in struct audit_config */
	__u16 vlan_id; /* of the outer tag, host order; 0 without a tag */
	__u8 ip_protocol;
	__u8 family;
	__u32 reserved;
};

/* A parsed frame, in few words, so that those of most packets fit into registers. Addresses stay in
 * the frame. read_key() reads them for the few packets that need them.
 */
struct packet {
	__u64 addresses; /* the part of the flow's hash that covers the addresses */
	__u32 ports;	 /* as in a UDP header, the source in the lower half */
	__u32 kind;	 /* VLAN id of the outer tag or 0, family, IP protocol: 16, 8 and 8 bits */
	__u32 len_bytes;
	__u8 cell;	  /* see protocol_cell() */
	bool is_fragment; /* and not the first one of its packet */
	__u16 ip_offset;  /* of the header of IP in the frame */
};

/* What the program knows of the current packet. It lives on the stack: most packets store members
 * here and never read them.
 */
struct packet_state {
	struct xdp_md *ctx;
	struct device_counters *counters;
	struct protocol_counters *cells;
	struct flow_set *set; /* locked */
	struct flow_slot *slot;
	struct flow_record *record; /* of a flagged packet */
	__u64 now_ns;
	__u64 delta_ns;
	__u32 set_index;
	__u32 len_bytes;
};

/* The last packet time and the baseline of a flow. Half a cache line. */
struct flow_slot {
	__u64 last_ns;
	struct baseline baseline;
};

/* A set of the flow table: four cache lines of slots, and one line to find a slot by. Mark and tag
 * are 47 bits of the flow's hash. Tag 0 marks a free slot. A watch is the index of a struct watch
 * plus 1. Watch 0 says that the flow is not watched.
 */
struct flow_set {
	struct flow_slot slots[FLOW_WAYS];
	__u64 lock; /* 1 while it is held */
	__u16 marks[FLOW_WAYS];
	__u32 tags[FLOW_WAYS];
	__u8 watches[FLOW_WAYS];
};

/* Flagged packets in a row on one side. */
struct flagged_run {
	__u32 packets; /* less a penalty for gaps */
	__u8 is_late;  /* the side */
	__u8 patience; /* log2 of the factor by which a run has to be longer */
	__u16 reserved;
};

/* The level of a run, from its second packet on. */
struct run_level {
	__u64 since_ns; /* time of the second packet */
	struct baseline baseline;
};

/* What only flagged packets need of a flow. Mark and tag tell whose record it is: a slot without a
 * flagged packet keeps that of an earlier flow. In two cache lines.
 */
struct flow_record {
	__u32 tag;
	__u16 mark;
	__u16 reserved;
	__u32 n; /* of the flow's baseline after the last flagged packet */
	__u32 reserved2;
	__u64 earned_q32;     /* tokens */
	__u64 unearned_at_ns; /* time after which an unearned token is left */
	__u64 drift_q32;      /* octaves by which judged packets have lowered the cuts since ever */
	/* Score from which a flag is rare for the flow, by side: log2 of t², in 2⁻³² octaves, plus
	 * the drift by packets and by time when it was raised.
	 */
	__u64 cuts_q32[2];
	struct flagged_run run;
	struct run_level level;
};

/* The records of the flows of a set. */
struct set_records {
	struct flow_record records[FLOW_WAYS];
};

/* The last deltas of a watched flow. User space writes mark and tag before it assigns the watch.
 * Delta number i is in deltas_ns[i % WATCH_DELTAS].
 */
struct watch {
	__u64 recorded; /* number of deltas recorded, of all flows that had the watch */
	__u32 tag;
	__u16 mark;
	__u16 reserved;
	__u64 reserved2[6];
	__u32 deltas_ns[WATCH_DELTAS];
};

/* The flow of a sampled packet. */
struct flow_sample {
	__u32 slot_index; /* set · FLOW_WAYS + way */
	__u32 tag;
};

/* The flows of the last packets that were sampled on a CPU. Sample number i is in
 * samples[i % FLOW_SAMPLES].
 */
struct flow_samples {
	__u64 taken;
	__u64 reserved[7];
	struct flow_sample samples[FLOW_SAMPLES];
};

/* A flagged packet and the baseline that it was judged against, before the packet entered it. */
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
	__u64 deviation_q16; /* distance of the sample from the mean */
};

/* A record of audit_events. */
struct audit_event {
	struct flag_state flag;
	struct flow_key key;
};

/* t² / threshold² as left / right · 2^octaves, where both have 63 or 64 bits. */
struct flag_score {
	__u64 left;
	__u64 right;
	__s64 octaves;
};

/* A flagged packet in the place of an event. The key is set only if it is sent. */
struct flag_event {
	struct audit_event event;
	__u64 reserved[2];
};

/* The last flagged packet of a CPU: events[(sequence + 1) & 1]. A reader that finds the same
 * sequence before and after has read one event. Sequence 0: no packet was flagged.
 */
struct last_flag {
	__u64 sequence;
	struct flag_score score; /* of the packet that is being judged */
	__u32 is_sent;		 /* whether that packet is to be sent */
	__u32 ring;		 /* that it is to be sent to */
	__u64 reserved[3];
	struct flag_event events[2];
};

/* Sums over the deltas around reference_ns (0: no delta yet), in ns and ns². Each sum has 128 bits:
 * low, high; see add_to_sum(). Deviations above the reference are in deviation[0], those below in
 * deviation[1].
 */
struct delta_sums {
	__u64 reference_ns;
	__u64 deviation[2][2];
	__u64 squared[2];
	__u64 reserved;
};

/* The baseline of a device on one CPU. The sequence is odd during a write. A reader that finds the
 * same even sequence before and after has read one baseline.
 */
struct device_baseline {
	__u64 sequence;
	struct baseline baseline;
	__u32 flagged_n; /* n after the last flagged packet */
	__u32 reserved;
	struct flagged_run run;
	struct run_level level;
	__u64 reserved2[6];
};

struct protocol_counters {
	__u64 bytes;
	__u64 packets[15]; /* by outcome, one for each packet; padded to two cache lines */
};

/* All counters of one device on one CPU. Whole cache lines, written by that CPU only, except for
 * reference_ns of the device's first block. User space reads them through mapped memory. There are
 * more cells than families and protocols, so that a cell is found with shifts.
 */
struct device_counters {
	struct protocol_counters protocols[PROTOCOL_CELLS / 8][8]; /* by family and protocol */
	struct delta_sums sums;
	__u64 fates[8];
	__u64 flow_inserts;
	__u64 flow_evictions[EVICTIONS];
	__u64 baseline_restarts;
	__u64 earned_events; /* flags that were to be sent, by the kind of their token */
	__u64 unearned_events;
	__u64 reserved[2];
	struct device_baseline device;
	struct last_flag last_flag;
	__u64 histogram[HISTOGRAM_CELLS];
};

/* The allowance of a CPU for perf events, shared by all devices, and its ring. One cache line. */
struct event_allowance {
	__u64 spent_until_ns; /* time at which all events sent so far are paid for */
	__u32 ring;	      /* index in audit_events; rings have no gaps, CPU numbers may */
	__u32 reserved;
	__u64 unearned_until_ns; /* as spent_until_ns, for half the rate and unearned events only */
	__u64 reserved2[5];
};

#endif
