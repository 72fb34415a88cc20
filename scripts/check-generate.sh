#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# check-generate.sh COMMAND...: runs the command that generates, and fails when a
# generated file changed by it. The new files stay, ready to be committed.
set -euo pipefail
shopt -s nullglob

cd "$(dirname "${BASH_SOURCE[0]}")/.."

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT

old=(bpf/*.o bpf/*_bpfe[lb]*.go)
if ((${#old[@]})); then
	cp -- "${old[@]}" "$before"
fi

if ! "$@"; then
	# A failed compilation removes the object, and with it every build.
	((${#old[@]} == 0)) || cp -- "$before"/* bpf/
	exit 1
fi

changed=()
for file in bpf/*.o bpf/*_bpfe[lb]*.go; do
	cmp -s "$file" "$before/${file#bpf/}" || changed+=("$file")
done
if ((${#changed[@]})); then
	printf '%s: was not up to date\n' "${changed[@]}" >&2
	echo "check-generate: commit the files that were generated just now" >&2
	exit 1
fi
