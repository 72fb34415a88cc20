/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The outstanding request of a connection is one word, from the highest bit on: 1, exclusion,
 * class, generation and slot of the assessment, and the time of its last byte. Both programs change
 * the word by exchange or compare-and-swap. Who takes it out counts the request, so that each is
 * counted once, whatever else happens at that time.
 */

#ifndef XDP_AUDIT_EXCHANGE_REQUEST_H
#define XDP_AUDIT_EXCHANGE_REQUEST_H

#include "exchange_layout.h"
#include "publish.h"

#define REQUEST_TIME_BITS 46
#define REQUEST_TIME_MASK ((1ULL << REQUEST_TIME_BITS) - 1)
#define REQUEST_SLOT_SHIFT 46
#define REQUEST_GENERATION_SHIFT 52
#define REQUEST_GENERATION_MASK 0x7f
#define REQUEST_CLASS_SHIFT 59
#define REQUEST_EXCLUSION_SHIFT 60
#define REQUEST_EXCLUSION_MASK 7
#define REQUEST_IS_OUTSTANDING (1ULL << 63)

static __always_inline __u32 request_slot(__u64 request)
{
	return request >> REQUEST_SLOT_SHIFT & (ASSESSMENT_SLOTS - 1);
}

static __always_inline __u32 request_class(__u64 request)
{
	return request >> REQUEST_CLASS_SHIFT & 1;
}

static __always_inline __u32 request_exclusion(__u64 request)
{
	return request >> REQUEST_EXCLUSION_SHIFT & REQUEST_EXCLUSION_MASK;
}

static __always_inline __u64 request_elapsed(__u64 request, __u64 now_ns)
{
	return (now_ns - request) & REQUEST_TIME_MASK;
}

/* Excludes a request, unless it is excluded already: the first reason counts. */
static __always_inline __u64 request_spoil(__u64 request, enum exclusion exclusion)
{
	if (request_exclusion(request))
		return request;
	return request | (__u64)exclusion << REQUEST_EXCLUSION_SHIFT;
}

/* Excludes the outstanding request, if there is one. A request that is taken out at the same time
 * was complete before.
 */
static __always_inline void exchange_spoil(struct exchange_connection *connection,
					   enum exclusion exclusion)
{
	__u64 request = *(volatile __u64 *)&connection->request;

	if (request)
		__sync_val_compare_and_swap(&connection->request, request,
					    request_spoil(request, exclusion));
}

/* The counters of this CPU. Returns NULL only if the map is smaller than it should be. */
static __always_inline struct exchange_cpu *exchange_cpu(__u32 *cpu)
{
	*cpu = bpf_get_smp_processor_id();
	return bpf_map_lookup_elem(&exchange_cpus, cpu);
}

/* Returns the place of the next record of the CPU, or NULL if user space has not read what is
 * there.
 */
static __always_inline struct exchange_record *next_record(struct exchange_cpu *own, __u32 cpu)
{
	__u32 key = own->written & exchange_config.record_mask;

	if (own->written - *(volatile __u64 *)&own->read > exchange_config.record_mask)
		return NULL;
	key += cpu * (exchange_config.record_mask + 1);
	return bpf_map_lookup_elem(&exchange_records, &key);
}

/* Counts a request that was taken out, and records it. `id` is the number of its connection. */
static __always_inline void exchange_count(struct exchange_cpu *own, __u32 cpu, __u64 request,
					   __u64 now_ns, __u64 id, __u32 position, __u32 has_start,
					   __u32 exclusion)
{
	__u32 slot = request_slot(request), class = request_class(request), key = slot;
	struct exchange_assessment *assessment = bpf_map_lookup_elem(&exchange_assessments, &key);
	struct exchange_counts *counts;
	struct exchange_record *record;

	if (!assessment || ((request >> REQUEST_GENERATION_SHIFT ^ assessment->generation) &
			    REQUEST_GENERATION_MASK))
		return; /* the request of an assessment that has ended */
	if (request_exclusion(request))
		exclusion = request_exclusion(request);
	record = next_record(own, cpu);
	/* Without this, Linux 6.12 does not know the range of what clang keeps on the stack: "R1
	 * unbounded memory access".
	 */
	VERIFIER_KNOWS(slot);
	VERIFIER_KNOWS(class);
	slot &= ASSESSMENT_SLOTS - 1;
	class &= 1;
	counts = &own->counts[slot];
	if (exclusion)
		counts->excluded[exclusion & REQUEST_EXCLUSION_MASK]++;
	else if (record)
		counts->responses[class]++;
	else
		counts->excluded[EXCLUSION_RING_FULL]++;
	if (!record) {
		own->lost += !!exclusion;
		return;
	}
	if (exclusion == EXCLUSION_MIXED || exclusion == EXCLUSION_UNCLASSIFIED)
		class = CLASSES;
	record->time_ns = now_ns;
	record->elapsed_ns = request_elapsed(request, now_ns);
	record->connection = id;
	record->position = position - 1;
	record->slot = slot;
	record->has_start = has_start;
	record->class = class;
	record->exclusion = exclusion;
	store_in_order(&own->written, own->written + 1);
}

/* Takes the outstanding request of a connection out, if there is one. The exclusion counts unless
 * the request has one already. The clock is read after is_writing is set, so that user space knows
 * which records may be missing. now_ns is the time on the metadata clock.
 */
static __noinline int exchange_end(struct exchange_connection *connection, __u64 id, __u64 now_ns,
				   __u32 exclusion)
{
	__u32 cpu, position = connection->position, has_start = connection->has_start;
	struct exchange_cpu *own = exchange_cpu(&cpu);
	__u64 request;

	if (!own)
		return 0;
	__sync_lock_test_and_set(&own->is_writing, 1);
	if (config.clock_source == CLOCK_SOURCE_KTIME)
		now_ns = bpf_ktime_get_ns();
	request = __sync_lock_test_and_set(&connection->request, 0);
	if (request)
		exchange_count(own, cpu, request, now_ns, id, position, has_start, exclusion);
	store_in_order(&own->is_writing, 0);
	return 0;
}

#endif
