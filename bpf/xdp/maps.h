/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The maps, which the programs of all devices share, and read-only data, of which each program has
 * its own. User space sets the sizes of the maps before load. Mapped arrays start on a page, so
 * that blocks of whole cache lines stay on their lines.
 */

#ifndef XDP_AUDIT_MAPS_H
#define XDP_AUDIT_MAPS_H

#include <linux/bpf.h>
#include <stddef.h>

#include <bpf/bpf_helpers.h>

#include "layout.h"

/* Volatile, because clang would otherwise use the zeros that it sees here. The verifier knows the
 * values and removes branches that they rule out.
 */
const volatile struct audit_config config;

/* For each linear cell of the histogram, the largest delta below the native boundary inside it. */
const volatile __u32 histogram_cuts[HISTOGRAM_LINEAR_CELLS];

/* ⌊log2 v⌋ for 0 < v < LOG2_TABLE_SIZE, and 0 for 0. */
const volatile __u8 log2_table[LOG2_TABLE_SIZE];

/* Key: config.first_block + CPU. Value: the counters of that device on that CPU. Writer: that CPU.
 * Cannot be full.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct device_counters);
} audit_counters SEC(".maps");

/* The hot part of the flow table. Key: hash & config.set_mask. Value: a set. Writers: the holder
 * of the set's lock; of `watches` also user space, by compare-and-swap and without the lock. In a
 * full set, a new flow replaces the flow with the oldest last packet.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_set);
} flow_sets SEC(".maps");

/* The cold part of the flow table. Key: set · FLOW_WAYS + way. Value: the flow in that slot.
 * Writer: the holder of the set's lock, when a flow is inserted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FLOW_WAYS);
	__type(key, __u32);
	__type(value, struct flow_key);
} flow_keys SEC(".maps");

/* What flagged packets need of the flows of a set. Key: as in flow_sets. Value: the record of the
 * flow in each slot, or of an earlier one there. Writer: the holder of the set's lock, for a
 * flagged packet.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct set_records);
} flow_records SEC(".maps");

/* Key: index of a watch. Value: the last deltas of the flow that has the watch. Writers: the
 * deltas and their number, the holder of the lock of the flow's set; tag and mark, user space
 * while no flow has the watch. The oldest deltas are overwritten.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct watch);
} flow_watches SEC(".maps");

/* Key: CPU. Value: the flows of the packets sampled there, on all devices. Writer: that CPU. The
 * oldest samples are overwritten.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_samples);
} sampled_flows SEC(".maps");

/* Key: CPU. Value: its allowance of perf events and its ring. Writers: that CPU, except for the
 * ring; user space, when it opens the rings, at the start and for a CPU that was offline, which
 * also resets the allowance. Cannot be full.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct event_allowance);
} event_allowances SEC(".maps");

/* Key: index of a ring. Value: the ring that user space opened. An event for a full or missing ring
 * is lost and counted by its fate.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} audit_events SEC(".maps");

#endif
