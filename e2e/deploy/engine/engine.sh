#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# engine.sh FOLDER is the first process of namespaces of its own (processes, mounts,
# network), and runs a Docker engine with all its state in FOLDER. It ends when its
# standard input does, so that nothing outlives the test. Next to the engine is the
# namespace "outside", in which the address of the engine is 192.0.2.1.
set -euo pipefail

mount --make-rprivate /
mount -t proc proc /proc
mkdir -p /run/netns
mount -t tmpfs tmpfs /run/netns
ip link set lo up
ip netns add outside
ip link add outside0 type veth peer name eth0 netns outside
ip addr add 192.0.2.1/24 dev outside0
ip link set outside0 up
ip -n outside addr add 192.0.2.2/24 dev eth0
ip -n outside link set eth0 up

dockerd --data-root="$1/root" --exec-root="$1/exec" --pidfile="$1/pid" --host="unix://$1/sock" \
	--cgroup-parent="/$(basename "$1")" >"$1/log" 2>&1 &
engine=$!
cat >/dev/null
kill "$engine"
wait "$engine" || true
