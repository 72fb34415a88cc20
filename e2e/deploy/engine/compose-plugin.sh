#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Debian's docker-compose as a plugin of the client: docker compose.
if [ "$1" = docker-cli-plugin-metadata ]; then
	echo '{"SchemaVersion":"0.1.0","Vendor":"Debian","Version":"1"}'
	exit
fi
shift
exec docker-compose "$@"
