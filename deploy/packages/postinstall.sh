#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# After the files are unpacked. dpkg says "configure" and the version that was there
# before, rpm how many versions there are now.
set -eu

unit=xdp_audit_exporter.service

case ${1-} in
configure | [1-9]) ;;
*) exit 0 ;; # of a failed upgrade or removal
esac

systemd-sysusers xdp_audit_exporter.conf

# In a chroot and while an image is built no systemd runs.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# An upgrade goes on with the new binary. A first installation does not start: which
	# device to audit is the operator's to say.
	systemctl try-restart "$unit"
fi
