#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# timed.sh MAKE STEP...: makes the targets of each step in turn, and prints how many seconds each of
# them took. A step is a target, or several that run together, such as test-deploy,test-kernels. The
# output of the first of them is shown at once, that of the others when they have ended. It stops at
# the first step that fails.
set -euo pipefail

if (($# < 2)); then
	echo "timed: pass the make to use and its targets" >&2
	exit 1
fi

make=$1
shift
table=
logs=$(mktemp -d)
others=()

# finish ends what still runs in the background, which the interrupt of a terminal does not reach.
finish() {
	for other in "${others[@]}"; do
		kill -- "-$other" 2>/dev/null || true
	done
	wait
	rm -rf "$logs"
}
trap finish EXIT
trap 'exit 1' INT TERM

# timed TARGET: makes a target, and writes how long it took.
timed() {
	local began=$SECONDS code=0
	"$make" "$1" || code=$?
	echo "$((SECONDS - began))" >"$logs/$1.seconds"
	return "$code"
}

for step in "$@"; do
	IFS=, read -ra targets <<<"$step"
	for target in "${targets[@]:1}"; do
		set -m # a process group of its own
		timed "$target" >"$logs/$target" 2>&1 </dev/null &
		set +m
		others+=("$!")
	done
	code=0
	timed "${targets[0]}" || code=$?
	for i in "${!others[@]}"; do
		wait "${others[$i]}" || code=$?
		cat "$logs/${targets[$((i + 1))]}"
	done
	others=()
	for target in "${targets[@]}"; do
		line=$(printf '%5d s  %s' "$(<"$logs/$target.seconds")" "$target")
		echo ">> $line"
		table+="$line"$'\n'
	done
	if ((code != 0)); then
		exit "$code"
	fi
done
printf '>> where the time went, %d s in all\n%s' "$SECONDS" "$table"
