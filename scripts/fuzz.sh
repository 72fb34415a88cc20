#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# fuzz.sh TIME: runs every fuzz target of the module for a time each. An input that
# fails is written to testdata/fuzz of its package, and is a test from then on.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# != 1)); then
	echo "fuzz: name the time for each target, such as 10s" >&2
	exit 1
fi

# go test takes one target at a time.
found=0
while IFS=: read -r file target; do
	found=$((found + 1))
	echo ">> fuzzing $target in $(dirname "$file") for $1"
	REQUIRE_BPF=1 "${GO:-go}" test -run '^$' -fuzz "^$target\$" -fuzztime "$1" -timeout 0 "./$(dirname "$file")"
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -Ho '^func Fuzz[A-Za-z0-9_]*' | sed 's/:func /:/')

if ((found == 0)); then
	echo "fuzz: there is no target" >&2
	exit 1
fi
