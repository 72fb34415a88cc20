#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Runs promu so that the result depends only on the commit. By default, promu names the tarball
# after the URL of the clone and stamps the binary with the time and the user of the build.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

git_config() {
	local n=${GIT_CONFIG_COUNT:-0}
	export "GIT_CONFIG_KEY_$n=$1" "GIT_CONFIG_VALUE_$n=$2"
	export GIT_CONFIG_COUNT=$((n + 1))
}

if git rev-parse --git-dir >/dev/null 2>&1; then
	if ! branch=$(git rev-parse --abbrev-ref HEAD 2>/dev/null); then
		echo "promu.sh: the repository has no commit: commit first" >&2
		exit 1
	fi
	git_config "branch.$branch.remote" origin
	git_config remote.origin.url https://github.com/xdp-audit/xdp_audit_exporter
	: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
	export SOURCE_DATE_EPOCH
fi

exec .bin/promu "$@"
