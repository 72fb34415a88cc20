# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Stands in for the image that the project's Dockerfile builds in. Its context is what
# golang.sh writes.
FROM standin-base
COPY go /usr/local/go
COPY mod /go/pkg/mod
# The engine's namespace leads nowhere: go mod download finds everything here.
ENV PATH=/usr/local/go/bin:/usr/bin GOPATH=/go GOPROXY=off GOTOOLCHAIN=local
