#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# packages.sh NFPM BINARY DIRECTORY: packs the binary as deb and rpm, for the architecture of go env
# GOARCH. The packages are reproducible: they depend only on the commit and the binary.
set -euo pipefail

if (($# != 3)); then
	echo "packages.sh: pass the path of nfpm, the binary to pack and an output directory" >&2
	exit 1
fi
nfpm=$(realpath "$1")
BINARY=$(realpath "$2")
mkdir -p "$3"
directory=$(realpath "$3")

cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=$(<VERSION)
ARCH=$("${GO:-go}" env GOARCH)
if ! SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null)}; then
	SOURCE_DATE_EPOCH=$(stat -c %Y VERSION) # a source tarball without git
fi
export ARCH BINARY SOURCE_DATE_EPOCH VERSION

# Debian 12 keeps units in /lib/systemd. dpkg does not treat that path as /usr/lib/systemd.
UNITS=/lib/systemd/system "$nfpm" package --config deploy/packages/nfpm.yaml --packager deb --target "$directory/"
UNITS=/usr/lib/systemd/system "$nfpm" package --config deploy/packages/nfpm.yaml --packager rpm --target "$directory/"
