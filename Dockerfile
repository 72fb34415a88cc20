# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors

FROM golang:1.26 AS build

WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .

# The build context has no .git; `make docker` passes revision and branch.
ARG REVISION=unknown
ARG BRANCH=unknown
ARG BUILD_USER=docker
ARG BUILD_DATE=unknown
# BuildKit sets these for --platform; empty means the platform of the builder.
ARG TARGETOS
ARG TARGETARCH

RUN version=github.com/prometheus/common/version && \
    CGO_ENABLED=0 GOOS="$TARGETOS" GOARCH="$TARGETARCH" go build \
      -trimpath -tags netgo,osusergo \
      -ldflags "-s -w -X $version.Version=$(cat VERSION) \
        -X $version.Revision=$REVISION \
        -X $version.Branch=$BRANCH \
        -X $version.BuildUser=$BUILD_USER \
        -X $version.BuildDate=$BUILD_DATE" \
      -o / . ./cmd/xdp_audit_probe

FROM scratch

COPY --from=build /xdp_audit_exporter /xdp_audit_probe /
COPY LICENSE NOTICE bpf/LICENSE.GPL-2.0 /licenses/

# A capability from --cap-add reaches only uid 0 when no-new-privileges is set.
USER 0:0
EXPOSE 9400
# The check uses port 9400 without TLS. With another --web.listen-address, or with
# --web.config.file, override the check with a command that has both flags.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 \
  CMD ["/xdp_audit_exporter", "--healthcheck"]
ENTRYPOINT ["/xdp_audit_exporter"]
