// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Copyright The XDP Audit Exporter Authors

//go:build ignore

/* Counts the system calls of one process: all of them, and those of one number. */

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* The process id in a PID namespace, which is identified by device and inode. */
const volatile __u64 namespace_device;
const volatile __u64 namespace_inode;
const volatile __u32 process;
const volatile __u32 number; /* of the system call */

__u64 calls; /* of that number */
__u64 all_calls;

SEC("raw_tp/sys_enter")
int count_call(struct bpf_raw_tracepoint_args *ctx)
{
	struct bpf_pidns_info current = {};

	if (bpf_get_ns_current_pid_tgid(namespace_device, namespace_inode, &current,
					sizeof(current)))
		return 0;
	if (current.tgid != process)
		return 0;
	__sync_fetch_and_add(&all_calls, 1);
	if (ctx->args[1] == number)
		__sync_fetch_and_add(&calls, 1);
	return 0;
}

char _license[] SEC("license") = "GPL";
