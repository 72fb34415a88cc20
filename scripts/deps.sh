#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Installs what building and testing need on Debian 12 beside Go and make. Does
# nothing, and needs no privilege, when nothing is missing.
set -euo pipefail

packages=(
	# the BPF programs
	clang-14 llvm-14 libbpf-dev linux-libc-dev
	# the race detector
	gcc libc6-dev
	# the revision
	git
	# network namespaces, offloads, capabilities and processes in the tests
	iproute2 ethtool libcap2-bin procps
	# promtool, and the server that scrapes in the tests
	prometheus
	# the unit and the packages, on a systemd that the tests boot for themselves
	systemd logrotate rpm
	# the topology, and what its test asks
	docker.io docker-compose iptables bpftool curl openssl util-linux
	# other kernels to test in
	qemu-system-x86 busybox-static cpio xz-utils
	# linters that are not written in Go
	codespell shellcheck yamllint
)

if ! command -v dpkg-query >/dev/null; then
	echo "deps: not a Debian system, going on as if it had ${packages[*]}" >&2
	exit 0
fi

missing=()
for package in "${packages[@]}"; do
	status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) || true
	if [[ $status != installed ]]; then
		missing+=("$package")
	fi
done
if ((${#missing[@]} == 0)); then
	exit 0
fi

if (($(id -u) != 0)); then
	echo "deps: run as root to install ${missing[*]}" >&2
	exit 1
fi

echo ">> installing ${missing[*]}"

# While packages are unpacked no service of theirs may start. A policy that the host
# has already is put back afterwards.
policy=/usr/sbin/policy-rc.d
scratch=$(mktemp -d)
restore() {
	rm -f "$policy"
	if [[ -e $scratch/policy-rc.d ]]; then
		mv "$scratch/policy-rc.d" "$policy"
	fi
	rm -rf "$scratch"
}
trap restore EXIT
if [[ -e $policy ]]; then
	mv "$policy" "$scratch/policy-rc.d"
fi
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

# The hundreds of lines that apt and dpkg print matter only when they fail.
quietly() {
	if ! "$@" </dev/null >"$scratch/log" 2>&1; then
		cat "$scratch/log" >&2
		echo "deps: failed: $*" >&2
		return 1
	fi
}

export DEBIAN_FRONTEND=noninteractive
options=(-q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
# A broken list of somebody else's does not keep Debian's packages from installing.
quietly apt-get "${options[@]}" update || true
quietly apt-get "${options[@]}" install -y --no-install-recommends "${missing[@]}"

# Nor may it start at the next boot. A Prometheus that was here before is not touched.
if [[ " ${missing[*]} " == *" prometheus "* ]]; then
	quietly update-rc.d prometheus disable
fi
