#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# fuzz.sh INPUTS: runs every fuzz target of the module with that many inputs, such as 20000x. A
# failing input is written to testdata/fuzz of its package and becomes a test case. A time limit is
# not an option: before Go 1.27, reaching it may fail the target (https://go.dev/issue/75804). Go would
# also shorten each input that reaches new code, for up to a minute.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# != 1)) || [[ ! $1 =~ ^[1-9][0-9]*x$ ]]; then
	echo "fuzz: \"$*\" is not a number of inputs: pass one such as 20000x" >&2
	exit 1
fi

# go test takes one target at a time.
found=0
while IFS=: read -r file target; do
	found=$((found + 1))
	echo ">> fuzzing $target in $(dirname "$file"), $1"
	REQUIRE_BPF=1 "${GO:-go}" test -vet=off -run '^$' -fuzz "^$target\$" -fuzztime "$1" -fuzzminimizetime 100x -timeout 0 "./$(dirname "$file")"
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -Ho '^func Fuzz[A-Za-z0-9_]*' | sed 's/:func /:/')

if ((found == 0)); then
	echo "fuzz: no fuzz target found" >&2
	exit 1
fi
