#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Installs the packages of Debian or Ubuntu that building and testing need in addition to Go and
# make. If no package is missing, it does nothing and needs no privilege. apt-install.sh explains
# | and ?.
set -euo pipefail

packages=(
	# the BPF programs; only clang 14 generates the committed objects
	clang-14? llvm-14? libbpf-dev linux-libc-dev
	# the race detector
	gcc libc6-dev
	# the revision of a build
	git ca-certificates
	# network namespaces, offloads, capabilities and processes in the tests
	iproute2 ethtool libcap2-bin procps
	# promtool, and the server that scrapes in the tests
	prometheus
	# commands of the documents that the tests run
	curl jq
	# servers and a client of the tests of response times
	nginx python3
	# tests of the unit and the packages, which boot a systemd of their own
	systemd logrotate rpm lintian man-db zsh
	# tests of the topology
	docker.io "docker-cli|docker.io" "docker-compose-v2|docker-compose" iptables "bpftool|linux-tools-common" openssl util-linux
	# tests of the pages, which need fonts
	"chromium|chromium-browser" fonts-dejavu-core
	# tests with other kernels
	qemu-system-x86 busybox-static cpio xz-utils
	# formatter and linters that are not written in Go
	clang-format-14? codespell shellcheck yamllint
)

if ! command -v dpkg-query >/dev/null; then
	echo "deps: not a Debian system; assuming that these are installed: ${packages[*]}" >&2
	exit 0
fi

exec "$(dirname "${BASH_SOURCE[0]}")/apt-install.sh" "${packages[@]}"
