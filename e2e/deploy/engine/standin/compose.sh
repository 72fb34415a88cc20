#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# compose.sh FOLDER writes Docker Compose as a plugin of the client to FOLDER/config/cli-plugins.
# For Debian 12, whose own is too old: the plugin is that of Debian 13, from the same mirror. It is
# one program, which needs nothing but the C library.
set -euo pipefail

mkdir -p "$1/compose/lists/partial" "$1/compose/cache/archives/partial" "$1/config/cli-plugins"
cd "$1/compose"
mirror=$(apt-get -o Dir::State::lists=/nonexistent --print-uris update 2>/dev/null | sed -nE "s#^'(.*/debian)/dists/.*#\1#p" | head -n 1)
if [[ -z $mirror ]]; then
	echo "compose: apt has no mirror of Debian among its sources: install docker-compose-v2" >&2
	exit 1
fi
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >sources.list
cat >apt.conf <<CONF
Dir::Etc::SourceList "$PWD/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$PWD/lists";
Dir::State::Status "/dev/null";
Dir::Cache "$PWD/cache";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Sandbox::User "root";
CONF
export APT_CONFIG=$PWD/apt.conf
{ apt-get -qq update && apt-get -qq download docker-compose; } >apt.log 2>&1 || {
	cat apt.log >&2
	exit 1
}
dpkg-deb --fsys-tarfile docker-compose_*.deb | tar -xO ./usr/libexec/docker/cli-plugins/docker-compose >"$1/config/cli-plugins/docker-compose"
chmod +x "$1/config/cli-plugins/docker-compose"
rm -r "$1/compose"
