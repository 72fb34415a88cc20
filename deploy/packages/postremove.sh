#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Runs after the files are removed. The audit trail is evidence, so it stays until dpkg purges
# the package. rpm has no purge, so trail and user stay.
set -eu

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi

if [ "${1-}" = purge ]; then
	rm -rf /var/log/xdp_audit
	if getent passwd xdp_audit >/dev/null; then
		userdel xdp_audit
	fi
fi
