#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# check-license.sh FILE...: fails if a file lacks the SPDX line or the line of the authors in its
# first five lines. Generated files are exempt.
set -euo pipefail

status=0
for file in "$@"; do
	head=$(head -n 5 -- "$file")
	if grep -qE '^// Code generated .* DO NOT EDIT\.$' <<<"$head"; then
		continue
	fi
	if ! grep -qE 'SPDX-License-Identifier: [A-Za-z(]' <<<"$head"; then
		echo "$file: no SPDX-License-Identifier in the first five lines" >&2
		status=1
	fi
	if ! grep -qF 'Copyright The XDP Audit Exporter Authors' <<<"$head"; then
		echo "$file: no \"Copyright The XDP Audit Exporter Authors\" in the first five lines" >&2
		status=1
	fi
done
exit "$status"
