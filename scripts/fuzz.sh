#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# fuzz.sh INPUTS: runs every fuzz target of the module with so many inputs each, as in
# 20000x. An input that fails is written to testdata/fuzz of its package, and is a test
# from then on. Not for a time: before Go 1.27 a target that is stopped by its time may
# fail for that alone (https://go.dev/issue/75804).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# != 1)) || [[ ! $1 =~ ^[1-9][0-9]*x$ ]]; then
	echo "fuzz: \"$*\" is no number of inputs for each target: name one such as 20000x" >&2
	exit 1
fi

# go test takes one target at a time.
found=0
while IFS=: read -r file target; do
	found=$((found + 1))
	echo ">> fuzzing $target in $(dirname "$file"), $1"
	REQUIRE_BPF=1 "${GO:-go}" test -run '^$' -fuzz "^$target\$" -fuzztime "$1" -timeout 0 "./$(dirname "$file")"
done < <(git ls-files -co --exclude-standard '*_test.go' | xargs grep -Ho '^func Fuzz[A-Za-z0-9_]*' | sed 's/:func /:/')

if ((found == 0)); then
	echo "fuzz: there is no target" >&2
	exit 1
fi
