#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# toolchain.sh DIRECTORY: provides the version of Go that go.mod requires. If go, or the version
# that it switches to by itself, is older, the script fetches the module golang.org/toolchain with
# it, which every version of Go can, and puts the toolchain into DIRECTORY. If there is no go at
# all, it first installs the distribution's, as root. If Go is recent enough, it does nothing.
set -euo pipefail

version=1.26.8 # of the toolchain that is fetched

if (($# != 1)); then
	echo "toolchain: pass the directory of the toolchain" >&2
	exit 1
fi
directory=$1
scripts=$(realpath "$(dirname "${BASH_SOURCE[0]}")")
cd "$scripts/.."
required=$(awk '$1 == "go" { print $2 }' go.mod)

# is_recent VERSION: reports whether go VERSION is the required version or a later one.
is_recent() {
	[[ $1 && $(printf '%s\n' "$required" "$1" | sort --version-sort | head -n 1) == "$required" ]]
}

# The version is that of the command, or that of the toolchain which go.mod makes it fetch.
have=$(go env GOVERSION 2>/dev/null || true)
if is_recent "${have#go}"; then
	exit 0
fi
if ! command -v go >/dev/null; then
	if ! command -v apt-get >/dev/null; then
		echo "toolchain: no go in PATH: install Go $required or later" >&2
		exit 1
	fi
	# The module proxy is asked with TLS.
	"$scripts/apt-install.sh" golang-go ca-certificates
fi

module=golang.org/toolchain
echo ">> fetching Go $version with $(go version | cut -d ' ' -f 3)"
# An old Go cannot read go.mod, and a proxy of file:// serves modules, too.
platform=$(cd / && go env GOOS)-$(cd / && go env GOARCH)
if ! found=$(cd / && GOTOOLCHAIN=local GOFLAGS='' go mod download -json "$module@v0.0.1-go$version.$platform"); then
	echo "$found" >&2
	echo "toolchain: cannot fetch Go $version: install Go $required or later, or set GOPROXY" >&2
	exit 1
fi
fetched=$(sed -n 's/^\t"Dir": "\(.*\)",*$/\1/p' <<<"$found")

mkdir -p "$(dirname "$directory")"
rm -rf "$directory.new"
cp -r "$fetched" "$directory.new"
# A module is read-only, and Go before 1.21 leaves out the permissions to execute.
chmod -R u+w "$directory.new"
chmod +x "$directory.new"/bin/* "$directory.new"/pkg/tool/*/*
rm -rf "$directory"
mv "$directory.new" "$directory"
if [[ -n ${SUDO_UID:-} ]]; then
	chown -R "$SUDO_UID:${SUDO_GID:-}" "$(dirname "$directory")"
fi
"$directory/bin/go" version
