#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# apt-install.sh PACKAGE[|PACKAGE...]...: installs those Debian or Ubuntu packages that are missing,
# as root, without starting their services. Of alternatives it installs the first that the
# distribution has. Names that end in ? are left out, with a line that says so, where the
# distribution has none of them. If no package is missing, it does nothing and needs no privilege.
set -euo pipefail

has_candidate() {
	[[ -n $(apt-cache madison "$1") ]]
}

is_installed() {
	[[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# choose PREDICATE PACKAGE[|PACKAGE...][?]: prints the first of the alternatives for which the
# predicate holds.
choose() {
	local names name
	IFS='|' read -ra names <<<"${2%\?}"
	for name in "${names[@]}"; do
		if "$1" "$name"; then
			echo "$name"
			return
		fi
	done
}

# A distribution is only known to lack a package after the first update.
knows_packages=$(if has_candidate dpkg; then echo yes; fi)
missing=()
for wanted in "$@"; do
	if [[ -n $(choose is_installed "$wanted") ]]; then
		continue
	fi
	if [[ $knows_packages && $wanted == *\? && -z $(choose has_candidate "$wanted") ]]; then
		echo ">> NOT INSTALLED: this distribution has no ${wanted%\?}"
		continue
	fi
	missing+=("$wanted")
done
if ((${#missing[@]} == 0)); then
	exit 0
fi

if (($(id -u) != 0)); then
	echo "apt-install: run as root to install ${missing[*]}" >&2
	exit 1
fi

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
		echo "apt-install: failed: $*" >&2
		return 1
	fi
}

export DEBIAN_FRONTEND=noninteractive
options=(-q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
# A broken package source of a third party must not prevent the installation.
quietly apt-get "${options[@]}" update || true

chosen=()
for wanted in "${missing[@]}"; do
	choice=$(choose has_candidate "$wanted")
	if [[ $choice ]]; then
		chosen+=("$choice")
	elif [[ $wanted == *\? ]]; then
		echo ">> NOT INSTALLED: this distribution has no ${wanted%\?}"
	else
		echo "apt-install: this distribution has no $wanted" >&2
		exit 1
	fi
done
if ((${#chosen[@]})); then
	echo ">> installing ${chosen[*]}"
	quietly apt-get "${options[@]}" install -y --no-install-recommends "${chosen[@]}"
fi

# Prometheus must not start at the next boot. If it was installed before, its setting stays.
if [[ " ${chosen[*]} " == *" prometheus "* ]]; then
	quietly update-rc.d prometheus disable
fi
