#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# boot.sh FOLDER: becomes a systemd that runs on this machine's files. What it changes is
# in FOLDER/upper. To be run in mount, PID, UTS, IPC and cgroup namespaces of its own.
set -euo pipefail

mount --make-rprivate /
mount -t tmpfs tmpfs "$1"  # a file system that an overlay can write to
cd "$1"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work" root
cd root
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount --rbind /dev dev

# None of this machine's services, sysctls, mounts and timers.
rm -rf etc/systemd/system/* lib/systemd/system/*.wants
: >etc/fstab

pivot_root . mnt
umount -l /mnt
export container=lab
exec /lib/systemd/systemd --system --unit=basic.target --log-target=console --show-status=no
