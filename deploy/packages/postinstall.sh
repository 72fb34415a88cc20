#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Runs after the files are unpacked. dpkg passes "configure" and the previous version, rpm the
# number of installed versions.
set -eu

unit=xdp_audit_exporter.service

case ${1-} in
configure | [1-9]) ;;
*) exit 0 ;; # after a failed upgrade or removal
esac

systemd-sysusers xdp_audit_exporter.conf

# systemd does not run in a chroot and during an image build.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# An upgrade restarts a running unit. A first installation does not start the unit: the
	# operator decides when a program is attached to a device.
	systemctl try-restart "$unit"
fi
