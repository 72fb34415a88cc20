#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# bench-compare.sh BASE HEAD: compares the BPF programs of two commits. It measures them in turn,
# so that a machine that speeds up or slows down affects both alike. Environment: BENCH is the
# pattern of benchmarks, BENCH_COUNT the number of rounds, BENCH_TIME the minimum time of each.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# != 2)) || [[ -z $1 || -z $2 ]]; then
	echo "bench-compare: name the commits to compare: make bench-compare BASE=v0.1.0" >&2
	exit 1
fi

results=$PWD/.build/bench-compare
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$results"

# prepare SIDE REVISION: unpacks the commit, compiles its benchmarks and prints its short hash.
# Unlike a worktree, an archive leaves nothing in the repository to clean up.
prepare() {
	local commit
	if ! commit=$(git rev-parse --verify --quiet "$2^{commit}"); then
		echo "bench-compare: $2 is not a commit of this repository" >&2
		return 1
	fi
	mkdir "$scratch/$1"
	git archive "$commit" | tar -x -C "$scratch/$1"
	"${GO:-go}" -C "$scratch/$1" test -c -o "$scratch/$1.test" ./bpf
	: >"$results/$1.txt"
	git rev-parse --short "$commit"
}

measure() {
	echo ">> round $2 of $1"
	(cd "$scratch/$1/bpf" && REQUIRE_BPF=1 "$scratch/$1.test" -test.run '^$' -test.timeout 1h \
		-test.bench "${BENCH:-.}" -test.benchtime "${BENCH_TIME:-50ms}") >>"$results/$1.txt"
}

base=$(prepare base "$1")
head=$(prepare head "$2")
for ((round = 1; round <= ${BENCH_COUNT:-5}; round++)); do
	measure base "$round"
	measure head "$round"
done

# Compare the cost of the audit only, not that of the reference programs.
.bin/benchstat -confidence 0.9 -filter '-.unit:(null-ns OR ref-ns OR audit-ns OR table-bytes)' \
	"base $base=$results/base.txt" "head $head=$results/head.txt"
