#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Before the files are removed; not when an upgrade replaces them. rpm counts the
# versions that are left.
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

# With the drop-in pins.conf the hooks outlive the unit. They are not to outlive the
# program that takes them off.
pins=/run/xdp_audit_bpf
if mountpoint -q "$pins"; then
	/usr/bin/xdp_audit_exporter --bpf.pin-path="$pins/pins" --bpf.unpin
	umount "$pins"
	rmdir "$pins"
fi
