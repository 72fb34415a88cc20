/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Stores whose order other CPUs and user space rely on. */

#ifndef XDP_AUDIT_PUBLISH_H
#define XDP_AUDIT_PUBLISH_H

#include "maps.h"

/* Stores a number after all stores that precede, and before all that follow. Where stores may overtake each other only an exchange
 * does that.
 */
static __always_inline void store_in_order(__u64 *number, __u64 value)
{
	if (config.stores_are_ordered) {
		barrier();
		*(volatile __u64 *)number = value;
		barrier();
	} else {
		__sync_lock_test_and_set(number, value);
	}
}

#endif
