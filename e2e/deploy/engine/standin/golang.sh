#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# golang.sh FOLDER writes to FOLDER/golang the context of golang.Dockerfile: what an image
# needs in addition to a shell to build the exporter without a network, which is this machine's Go
# and the modules of the exporter.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
golang=$1/golang

mkdir -p "$golang/mod"
cp golang.Dockerfile "$golang/Dockerfile"
# From this machine's cache, and from where Go fetches what that lacks.
GOPROXY="file://$(go env GOMODCACHE)/cache/download,$(go env GOPROXY)" GOMODCACHE=$golang/mod GOFLAGS=-modcacherw \
	go -C ../../../.. mod download
cp -a "$(go env GOROOT)" "$golang/go"
