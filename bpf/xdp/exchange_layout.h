/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The maps of response times, and their values. */

#ifndef XDP_AUDIT_EXCHANGE_LAYOUT_H
#define XDP_AUDIT_EXCHANGE_LAYOUT_H

#include "maps.h"

#define EXCHANGE_WAYS 8
#define ASSESSMENT_SLOTS 64
#define CLASSES 2
#define PORTS (1 << 16)

/* Why a request is excluded from the measurement. internal/exchange has the same numbers. */
enum exclusion {
	EXCLUSION_NONE,
	EXCLUSION_PIPELINED,
	EXCLUSION_RETRANSMITTED,
	EXCLUSION_UNCLASSIFIED,
	EXCLUSION_MIXED,
	EXCLUSION_UNANSWERED,
	EXCLUSION_EVICTED,
	EXCLUSION_RING_FULL,
	EXCLUSIONS,
};

/* The configuration of the programs of one device. User space sets it before load. */
struct exchange_sizes {
	__u32 set_mask;	   /* number of sets of the table − 1 */
	__u32 record_mask; /* number of records of a CPU − 1 */
};

/* The packets of a class. Port and VLAN id are in host order, addresses in network order. */
struct exchange_class {
	__be32 source[4];
	__be32 source_mask[4];
	__u32 kind;	 /* VLAN id, family, DSCP: 16, 8 and 8 bits */
	__u32 kind_mask; /* bits of kind that matter */
	__u16 port_low;	 /* of the source */
	__u16 port_span; /* highest port less the lowest */
	__u32 has_source;
};

/* User space writes an assessment while no port has its slot. */
struct exchange_assessment {
	__u32 generation; /* 7 bits; of the assessments that had the slot */
	__u32 reserved;
	struct exchange_class classes[CLASSES];
};

/* A connection of a service. One cache line. The request is exchanged as a whole; see
 * exchange_request.h. The other members have one writer each: server_next and is_known the
 * program of outgoing packets, and all others that of incoming packets, except for a new
 * connection.
 */
struct exchange_connection {
	__u64 request; /* 0: none is outstanding */
	__u64 last_ns; /* orders the connections of a set by the time at which they are evicted */
	__u32 client_next; /* sequence number after the last byte of the client */
	__u32 server_next; /* after the last byte of the server; UDP: unanswered datagrams */
	__u32 is_known;	   /* server_next is known */
	__u32 has_start;   /* the connection was seen from its start */
	__u32 position;	   /* number of requests so far */
	__u32 generation;  /* number of connections that had the place */
	__u64 reserved[3];
};

/* A set of the table of connections. A tag is 32 bits of the hash of a connection. Tag 0 marks a
 * free place.
 */
struct exchange_set {
	struct exchange_connection connections[EXCHANGE_WAYS];
	__u64 lock; /* 1 while a connection is inserted */
	__u32 tags[EXCHANGE_WAYS];
	__u64 reserved[3];
};

/* A request that has ended: with a response, or excluded. */
struct exchange_record {
	__u64 time_ns;	  /* CLOCK_MONOTONIC at the end */
	__u64 elapsed_ns; /* since the last byte of the request */
	__u64 connection;
	__u32 position; /* number of the request in its connection, from 0 */
	__u8 slot;	/* of the assessment */
	__u8 has_start;
	__u8 class; /* CLASSES: none */
	__u8 exclusion;
};

struct exchange_counts {
	__u64 requests;
	__u64 responses[CLASSES];
	__u64 excluded[EXCLUSIONS];
	__u64 reserved[5];
};

/* The counters of a CPU, and where its records begin and end. Written by that CPU, except for
 * `read`, which user space writes.
 */
struct exchange_cpu {
	__u64 written;	  /* number of records so far */
	__u64 is_writing; /* the time of the next record may have been read */
	__u64 lost;	  /* excluded requests without a record */
	__u64 reserved[5];
	__u64 read; /* number of records that user space has read */
	__u64 reserved2[7];
	struct exchange_counts counts[ASSESSMENT_SLOTS];
};

const volatile struct exchange_sizes exchange_config;

/* For each port of TCP and of UDP, in network order, the slot of its assessment plus 1; 0 for none.
 * A section of its own is an array with one element, which the programs access without a call. The
 * programs of all devices share it. Writer: user space.
 */
__u8 exchange_ports[2][PORTS] SEC(".data.ports");

/* Key: slot. Value: the assessment. Writer: user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, ASSESSMENT_SLOTS);
	__type(key, __u32);
	__type(value, struct exchange_assessment);
} exchange_assessments SEC(".maps");

/* Key: index of a device. Value: a bit for each slot whose assessment is of that device. Writer:
 * user space.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} exchange_devices SEC(".maps");

/* Key: hash & exchange_config.set_mask. Value: a set. Writers: see struct exchange_connection; tags
 * and new connections, the holder of the set's lock. In a full set, a new connection replaces the
 * one with the oldest request, or one without a request. Its request is counted as evicted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exchange_set);
} exchange_sets SEC(".maps");

/* Key: CPU. Value: its counters. Writers: see struct exchange_cpu. Cannot be full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exchange_cpu);
} exchange_cpus SEC(".maps");

/* Key: CPU · records of a CPU + number of the record & exchange_config.record_mask. Value: a
 * record. Writer: that CPU. While user space has not read the oldest record, responses are counted
 * as excluded, by ring_full.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exchange_record);
} exchange_records SEC(".maps");

#endif
