/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* The maps, shared by the programs of all devices, and the constants, which each program has for itself. User space sets
 * the sizes before load. Mapped arrays start on a page, so that blocks of whole cache lines stay on their lines.
 */

#ifndef XDP_AUDIT_MAPS_H
#define XDP_AUDIT_MAPS_H

#include <linux/bpf.h>
#include <stddef.h>

#include <bpf/bpf_helpers.h>

#include "layout.h"

const volatile struct audit_config config;

/* For each linear cell of the histogram the largest delta that belongs below the native boundary inside it. */
const volatile __u32 histogram_cuts[HISTOGRAM_LINEAR_CELLS];

/* ⌊log2 v⌋ for 0 < v < LOG2_TABLE_SIZE, and 0 for 0. */
const volatile __u8 log2_table[LOG2_TABLE_SIZE];

/* Key: config.first_block + CPU. Value: the counters of that device on that CPU. Writer: that CPU. Never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct device_counters);
} audit_counters SEC(".maps");

/* The hot part of the flow table. Key: hash & config.set_mask. Value: a set. Writer: whoever holds the set's lock. When
 * a set is full, a new flow takes the slot of the one seen longest ago.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_set);
} flow_sets SEC(".maps");

/* The cold part of the flow table. Key: set · FLOW_WAYS + way. Value: whose slot it is. Writer: whoever holds the set's
 * lock, when a flow is inserted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FLOW_WAYS);
	__type(key, __u32);
	__type(value, struct flow_key);
} flow_keys SEC(".maps");

/* Key: number of a watch. Value: the last deltas of the flow that has it. Writer: whoever holds the lock of the flow's set;
 * user space while no flow has it. Never full: the oldest deltas are overwritten.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct watch);
} flow_watches SEC(".maps");

/* Key: CPU. Value: whose packets were sampled there, on all devices. Writer: that CPU. Never full: the oldest samples are
 * overwritten.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_samples);
} sampled_flows SEC(".maps");

/* Key: CPU. Value: its allowance of perf events and its ring. Writer: that CPU; user space before attaching. Never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct event_allowance);
} event_allowances SEC(".maps");

/* Key: number of a ring. Value: the ring that user space opened. What finds no room or no ring is counted as its fate. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} audit_events SEC(".maps");

#endif
