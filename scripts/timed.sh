#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# timed.sh MAKE TARGET...: makes the targets in turn, and prints how many seconds each of them took.
# It stops at the first that fails.
set -euo pipefail

if (($# < 2)); then
	echo "timed: pass the make to use and its targets" >&2
	exit 1
fi

make=$1
shift
table=
for target in "$@"; do
	began=$SECONDS
	"$make" "$target"
	line=$(printf '%5d s  %s' "$((SECONDS - began))" "$target")
	echo ">> $line"
	table+="$line"$'\n'
done
printf '>> where the time went, %d s in all\n%s' "$SECONDS" "$table"
