/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Copyright The XDP Audit Exporter Authors */

/* Hints to the compiler and facts for the verifier. Each use says what it prevents and the
 * instructions that it saves for a packet of a known flow (`make instructions`), measured with
 * clang 14.0.6 at -O3 -mcpu=v3. After a change of the compiler, remove the uses one at a time and
 * count again.
 */

#ifndef XDP_AUDIT_COMPILER_H
#define XDP_AUDIT_COMPILER_H

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

/* The compiler moves code for unlikely conditions out of the way and spills registers there. */
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

/* Computes a value here, once. Without it, clang computes the value again from its operands at each
 * use, and keeps the operands in registers for that.
 */
#define KEEP_IN_REGISTER(value) barrier_var(value)

/* Hides the range of a value from the compiler. Without it, clang copies code for each value that
 * it can infer, or replaces a mask by a branch.
 */
#define NO_BRANCH(value) barrier_var(value)

/* Keeps a value in a form that the verifier can follow. Without the use in histogram.h, Linux 6.1
 * rejects the program: "math between map_value pointer and register with unbounded min value is not
 * allowed". Without the other uses, Linux 6.1 to 7.3 accept it as clang 14.0.6 compiles it. These
 * uses stay for Linux 5.12 to 6.0, which no test covers. Each says what it costs.
 */
#define VERIFIER_KNOWS(value) barrier_var(value)

/* Reads members of a struct on the stack from the stack. Without it, clang keeps members that few
 * packets need in registers, from where they are stored on.
 */
#define READ_FROM_STACK(pointer) barrier_var(pointer)

/* Keeps a seldom taken branch apart. Without it, clang computes the values of both branches before
 * the condition and selects one of them.
 */
#define KEEP_BRANCH() barrier()

/* Loads a member that is needed only later. The CPU does not wait for it. */
#define BEGIN_LOAD(member) ((void)*(const volatile typeof(member) *)&(member))

/* Keeps the compiler from moving loads and stores across this line. The CPU may still move them. */
#define COMPILER_FENCE() barrier()

#endif
