#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Runs before the files are removed, but does nothing on an upgrade. rpm passes the number of
# versions that remain.
set -eu

case ${1-} in
remove | 0) ;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl disable --now xdp_audit_exporter.service
else
	systemctl disable xdp_audit_exporter.service
fi

# With the drop-in pins.conf the hooks outlive the unit. Remove them while the program that can
# remove them is still installed.
pins=/run/xdp_audit_bpf
if mountpoint -q "$pins"; then
	xdp_audit_exporter --bpf.pin-path="$pins/pins" --bpf.unpin
	umount "$pins"
	rmdir "$pins"
fi
