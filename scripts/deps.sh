#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Installs the Debian 12 packages that building and testing need in addition to Go and make. If no
# package is missing, it does nothing and needs no privilege.
set -euo pipefail

packages=(
	# the BPF programs
	clang-14 llvm-14 libbpf-dev linux-libc-dev
	# the race detector
	gcc libc6-dev
	# the revision of a build
	git
	# network namespaces, offloads, capabilities and processes in the tests
	iproute2 ethtool libcap2-bin procps
	# promtool, and the server that scrapes in the tests
	prometheus
	# a server of the tests of response times
	nginx
	# tests of the unit and the packages, which boot a systemd of their own
	systemd logrotate rpm lintian man-db zsh
	# tests of the topology
	docker.io docker-compose iptables bpftool curl openssl util-linux
	# tests of the pages, which need fonts
	chromium fonts-dejavu-core
	# tests with other kernels
	qemu-system-x86 busybox-static cpio xz-utils
	# formatter and linters that are not written in Go
	clang-format-14 codespell shellcheck yamllint
)

if ! command -v dpkg-query >/dev/null; then
	echo "deps: not a Debian system; assuming that these are installed: ${packages[*]}" >&2
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

# No service of the packages may start during the installation. An existing policy of the host is
# restored at the end.
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

# apt and dpkg print hundreds of lines, which matter only if they fail.
quietly() {
	if ! "$@" </dev/null >"$scratch/log" 2>&1; then
		cat "$scratch/log" >&2
		echo "deps: failed: $*" >&2
		return 1
	fi
}

export DEBIAN_FRONTEND=noninteractive
options=(-q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
# A broken package source of a third party must not prevent the installation.
quietly apt-get "${options[@]}" update || true
quietly apt-get "${options[@]}" install -y --no-install-recommends "${missing[@]}"

# No server of the tests may start at the next boot. If it was installed before, its setting stays.
for server in prometheus nginx; do
	if [[ " ${missing[*]} " == *" $server "* ]]; then
		quietly update-rc.d "$server" disable
	fi
done
