#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# check-generate.sh COMMAND...: runs the command that generates, and fails when a
# generated file changed by it. The new files stay, ready to be committed.
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
	# A failed compilation removes the object, and with it every build.
	cp -r -- "$before"/. .
	exit 1
fi

changed=()
while read -r file; do
	cmp -s "$file" "$before/$file" || changed+=("$file")
done < <(generated)
if ((${#changed[@]})); then
	printf '%s: was not up to date\n' "${changed[@]}" >&2
	echo "check-generate: commit the files that were generated just now" >&2
	exit 1
fi
