#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
exec mariadb --host=127.0.0.1 --user="$MARIADB_USER" --password="$MARIADB_PASSWORD" --execute='SELECT 1' "$MARIADB_DATABASE"
