// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package bpf loads the XDP program that audits packet timing, attaches it to network devices,
// and reads what it counts.
//
// [Open] loads and attaches the program; the returned [Audit] owns every program, map and link
// until [Audit.Close]. The package returns plain Go values. The C source of the program is in
// the directory xdp, where layout.h describes the contents of the maps.
package bpf

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type audit_event -type flag_state -type last_flag -type device_counters -type flow_set -type flow_key -type flow_slot -type baseline -type device_baseline -type flagged_run -type run_level -type flow_record -type set_records -type watch -type flow_samples -output-stem xdp_audit program xdp/xdp_audit.bpf.c -- -O3 -mcpu=v3 -Wall -Wextra -Werror -Wpadded -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -output-stem bench -output-suffix _test bench xdp/bench/bench.bpf.c -- -O3 -mcpu=v3 -Wall -Wextra -Wno-unused-parameter -Werror -Wpadded -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
