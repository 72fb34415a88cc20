#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# check-text.sh CHECKTEXT: checks the text files of the repository: their spelling with codespell,
# their wording, comments and length with CHECKTEXT, the binary of tools/checktext. Words that
# codespell does not know are listed in scripts/codespell-words.
set -euo pipefail

if (($# != 1)); then
	echo "check-text: pass the path of the checktext binary" >&2
	exit 1
fi
checktext=$(realpath "$1")

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! command -v codespell >/dev/null; then
	echo "check-text: codespell not found: run make deps" >&2
	exit 1
fi

# New files are checked before they are added. Files that are deleted but not committed are skipped.
files=()
while IFS= read -rd '' file; do
	case $file in
	*go.mod | *go.sum | *_bpfe[lb].* | *.png | *.min.js) continue ;;
	esac
	if [[ -f $file && ! -L $file ]]; then
		files+=("$file")
	fi
done < <(git ls-files -z --cached --others --exclude-standard)

status=0
# The exit code of codespell is the number of mistakes, modulo 256.
mistakes=$(codespell --quiet-level 3 --check-hidden --ignore-words scripts/codespell-words -- "${files[@]}") || status=1
if [[ -n $mistakes ]]; then
	printf '%s\n' "$mistakes"
	status=1
fi
"$checktext" "${files[@]}" || status=1
if ((status)); then
	echo "check-text: correct these lines; a name that codespell does not know goes into scripts/codespell-words" >&2
fi
exit "$status"
