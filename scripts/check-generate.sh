#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# check-generate.sh COMMAND...: runs COMMAND, which generates files, and fails if a generated file
# changes. The new files stay, ready to be committed.
set -euo pipefail
shopt -s nullglob

cd "$(dirname "${BASH_SOURCE[0]}")/.."

generated() {
	printf '%s\n' {bpf,e2e,tools/evaluate}/*_bpfe[lb]*
}

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT

mapfile -t old < <(generated)
cp --parents -- "${old[@]}" "$before"

if ! "$@"; then
	# A failed compilation removes the object files. Restore them, or nothing builds any more.
	cp -r -- "$before"/. .
	exit 1
fi

changed=()
while read -r file; do
	cmp -s "$file" "$before/$file" || changed+=("$file")
done < <(generated)
if ((${#changed[@]})); then
	printf '%s: was out of date\n' "${changed[@]}" >&2
	echo "check-generate: commit the generated files" >&2
	exit 1
fi
