#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# test-bare.sh TREES TARGETS: runs "sudo make TARGET" for each target on bare systems of Debian or
# Ubuntu, named by their code names, which have make and sudo in addition to the minimal system. The
# systems are trees made by debootstrap in .build/bare, on the kernel of this machine, from the
# mirror of apt or from UBUNTU_MIRROR. A tree whose mirror cannot be reached is reported as not run.
set -euo pipefail

if (($# != 2)); then
	echo "test-bare: pass the code names of the systems and the targets" >&2
	exit 1
fi
read -ra trees <<<"$1"
read -ra targets <<<"$2"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/apt-install.sh debootstrap

DEBIAN_MIRROR=${DEBIAN_MIRROR:-$(apt-get --print-uris update | sed -nE "s#^'(.*/debian)/dists/.*#\1#p" | head -n 1)}
UBUNTU_MIRROR=${UBUNTU_MIRROR:-http://archive.ubuntu.com/ubuntu}
export DEBIAN_FRONTEND=noninteractive
work=$PWD/.build/bare
mkdir -p "$work"
summary=

# remove_tree NAME: removes the system in $work/NAME, unless anything is mounted in it.
remove_tree() {
	if grep -qF " $work/$1" /proc/self/mountinfo; then
		echo "test-bare: unmount what is mounted in $work/$1 first" >&2
		exit 1
	fi
	rm -rf --one-file-system "${work:?}/$1"
}

# run_in NAME TARGET: runs "sudo make TARGET" in the system. The mounts are in a namespace that ends
# with the command, so that nothing of this machine is below a tree when the tree is removed.
run_in() {
	# shellcheck disable=SC2016 # the shells inside expand it
	unshare --mount --propagation=private sh -euc '
		for folder in dev proc sys; do
			mount --rbind "/$folder" "$1/$folder"
		done
		mount -t tmpfs tmpfs "$1/run"
		exec chroot "$1" env --ignore-environment PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
			${SSL_CERT_FILE:+SSL_CERT_FILE=/etc/ssl/machine.crt} \
			sh -euc "cd /src && sudo make \"\$1\" DEMO_SECONDS=20" sh "$2"' sh "$work/$1" "$2" </dev/null
}

# prepare NAME MIRROR COMPONENTS: makes the system in $work/NAME ready for run_in.
prepare() {
	local tree=$work/$1
	echo "deb $2 $1 ${3//,/ }" >"$tree/etc/apt/sources.list"
	cp /etc/resolv.conf "$tree/etc/resolv.conf"
	echo "127.0.0.1 localhost $(uname -n)" >"$tree/etc/hosts"
	# The proxies and certificates of this machine, in the usual files of apt, sudo and Go.
	apt-config dump | grep '^Acquire::.*[Pp]roxy' >"$tree/etc/apt/apt.conf.d/proxy" || true
	if [[ -n ${SSL_CERT_FILE:-} ]]; then
		mkdir -p "$tree/etc/ssl"
		cp "$SSL_CERT_FILE" "$tree/etc/ssl/machine.crt"
		echo 'Defaults env_keep += SSL_CERT_FILE' >"$tree/etc/sudoers.d/machine"
	fi
	if command -v go >/dev/null; then
		mkdir -p "$tree/root/.config/go"
		go env GOPROXY GONOSUMDB GOSUMDB GOPRIVATE | paste -d= <(printf '%s\n' GOPROXY GONOSUMDB GOSUMDB GOPRIVATE) - \
			>"$tree/root/.config/go/env"
	fi
	mkdir "$tree/src"
	# The files of the repository and their history, without what was built.
	git ls-files -z | tar --null --files-from=- --create | tar --extract --directory="$tree/src"
	git clone --quiet --bare "$(git rev-parse --show-toplevel)" "$tree/src/.git"
	git --git-dir="$tree/src/.git" config core.bare false
}

for name in "${trees[@]}"; do
	case $name in
	bookworm | trixie) mirror=$DEBIAN_MIRROR components=main ;;
	*) mirror=$UBUNTU_MIRROR components=main,universe ;;
	esac
	began=$SECONDS
	remove_tree "$name"
	if ! debootstrap --variant=minbase --components="$components" --include=make,sudo "$name" "$work/$name" "$mirror" >"$work/$name.log" 2>&1; then
		if grep -qE 'Failed getting release file|Unknown (suite|host)|No such script' "$work/$name.log"; then
			summary+="$name: NOT RUN: $mirror cannot be reached"$'\n'
			continue
		fi
		cat "$work/$name.log" >&2
		exit 1
	fi
	prepare "$name" "$mirror" "$components"
	summary+=$(printf '%s: %5d s  debootstrap, make and sudo' "$name" "$((SECONDS - began))")$'\n'
	for target in "${targets[@]}"; do
		began=$SECONDS
		run_in "$name" "$target"
		line=$(printf '%s: %5d s  sudo make %s' "$name" "$((SECONDS - began))" "$target")
		echo ">> $line"
		summary+=$line$'\n'
	done
	remove_tree "$name"
done
printf '>> bare systems\n%s' "$summary"
