#!/bin/busybox sh
# shellcheck shell=dash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# The first process of a guest: runs the groups of tests in /groups, each a line of name,
# program and pattern, and powers off. The report goes to the second serial port, and the
# first is the kernel's. Lines that begin with @ are for the parser of the report.

export PATH=/sbin:/bin HOME=/ TMPDIR=/tmp E2E_BINARIES=/programs E2E_OWN_KERNEL=1 REQUIRE_BPF=1 CPU_HOTPLUG=1

set -e
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=1777 tmpfs /tmp
exec >/dev/ttyS1 2>&1
echo "@kernel $(uname -r) $(uname -v)"
# The kernel loads the module of a device when the device is made. Modules of tunnels make no
# devices by themselves.
echo /bin/modprobe >/proc/sys/kernel/modprobe
echo 2 >/proc/sys/net/core/fb_tunnels_only_for_init_net
modprobe veth
modprobe -q tun || true # makes /dev/net/tun
# The tests run the exporter with CAP_PERFMON, for which Debian's default is too strict.
echo 2 >/proc/sys/kernel/perf_event_paranoid
set +e

cd /programs
while read -r name program pattern; do
	echo "@begin $name"
	"./$program" -test.v -test.short -test.timeout 4m -test.run "$pattern" </dev/null
	status=$?
	echo "@end $name $status"
	# Where the program does not load, nothing else works, and takes its time to say so.
	[ "$name" = load ] && [ $status -ne 0 ] && break
done </groups
echo "@done"
poweroff -f
