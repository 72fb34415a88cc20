#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# packages.sh NFPM BINARY FOLDER: packs the binary, of the architecture that go env
# names, as deb and rpm. The packages depend on the commit and the binary alone.
set -euo pipefail

if (($# != 3)); then
	echo "packages.sh: give the nfpm to use, the binary to pack and a folder" >&2
	exit 1
fi
nfpm=$(realpath "$1")
BINARY=$(realpath "$2")
mkdir -p "$3"
folder=$(realpath "$3")

cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=$(<VERSION)
ARCH=$("${GO:-go}" env GOARCH)
if ! SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null)}; then
	SOURCE_DATE_EPOCH=$(stat -c %Y VERSION) # a tarball
fi
export ARCH BINARY SOURCE_DATE_EPOCH VERSION

# Debian 12 keeps its units below /lib, which dpkg does not take for /usr/lib.
UNITS=/lib/systemd/system "$nfpm" package --config deploy/packages/nfpm.yaml --packager deb --target "$folder/"
UNITS=/usr/lib/systemd/system "$nfpm" package --config deploy/packages/nfpm.yaml --packager rpm --target "$folder/"
