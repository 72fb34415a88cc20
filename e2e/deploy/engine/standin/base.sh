#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# base.sh FOLDER writes a root file system to FOLDER/tree: what the stand-ins need of
# Debian. Packages come from wherever this machine's apt takes them, and are unpacked
# and not installed, which takes seconds instead of minutes; what their scripts would
# have set up and the stand-ins need is done at the end.
set -euo pipefail

cd "$1"
packages=(
	base-files base-passwd bash coreutils dash grep sed libc-bin
	iproute2 wget
	nginx-light prometheus apache2-bin mariadb-server-core mariadb-client-core
	php8.2-fpm php8.2-cli php8.2-mysql
)

mkdir -p archives/partial tree/usr/{bin,sbin,lib,lib64}
: >status
# As if nothing was installed, so that all they depend on comes with them.
download() {
	apt-get -qq -o Dir::State::status="$PWD/status" -o Dir::Cache::archives="$PWD/archives/" \
		-o Debug::NoLocking=true -o APT::Install-Recommends=false -o Acquire::Retries=3 \
		install -y --download-only "${packages[@]}" >apt.log 2>&1
}
# The lists of a machine may be older than the packages that the archive has, or missing.
if ! download && ! { apt-get -qq update >/dev/null && download; }; then
	cat apt.log >&2
	exit 1
fi

for folder in bin sbin lib lib64; do
	ln -s "usr/$folder" "tree/$folder"
done
for package in archives/*.deb; do
	dpkg-deb --fsys-tarfile "$package" | tar -x -C tree --keep-directory-symlink --no-same-owner \
		--exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
		--exclude='./usr/share/perl/*' --exclude='./usr/lib/systemd/*' \
		--exclude='./usr/share/javascript/*' --exclude='./usr/share/nodejs/*' --exclude=./usr/bin/promtool
done
rm -r archives

ln -sf bash tree/bin/sh
mkdir -p tree/tmp
chmod 1777 tree/tmp
cp tree/usr/share/base-passwd/passwd.master tree/etc/passwd
cp tree/usr/share/base-passwd/group.master tree/etc/group
ldconfig -r tree
