/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Stores whose order matters to other CPUs and to user space. */

#ifndef XDP_AUDIT_PUBLISH_H
#define XDP_AUDIT_PUBLISH_H

#include "compiler.h"
#include "maps.h"

/* Stores a number after all earlier stores and before all later ones. x86 keeps stores in order.
 * Elsewhere BPF has only atomic exchanges for that.
 */
static __always_inline void store_in_order(__u64 *number, __u64 value)
{
	if (config.stores_are_ordered) {
		COMPILER_FENCE();
		*(volatile __u64 *)number = value;
		COMPILER_FENCE();
	} else {
		__sync_lock_test_and_set(number, value);
	}
}

#endif
