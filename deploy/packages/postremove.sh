#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# After the files are removed. The audit trail stays until dpkg purges: it is evidence.
# rpm cannot purge, and keeps trail and user.
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
