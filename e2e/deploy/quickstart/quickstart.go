// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

// Package quickstart has the commands of a quick start, as a user types them in the root of the
// repository.
package quickstart

// The steps, in this order.
const (
	Environment = `cp .env.example .env
`
	Certificate = `mkdir -p certs
openssl req -x509 -nodes -newkey rsa:2048 -days 365 \
  -keyout certs/tls.key \
  -out certs/tls.crt \
  -subj "/CN=grafana.enclave"
`
	Launch = `docker compose up -d --build
`
	Hook = `docker exec enclave_agent ip link show
`
	Log = `docker logs xdp-auditor --tail=50
`
	Metrics = `docker exec enclave_agent wget -qO- http://localhost:9400/metrics | head
`
	Prometheus = `docker exec enclave_agent wget -qO- http://localhost:9090/-/ready
`
	Teardown = `docker compose down -v
`
)

// Secrets are the variables that the user sets in .env.
var Secrets = []string{"ENCLAVE_ENROLMENT_KEY", "DRUPAL_DB_PASSWORD", "MARIADB_ROOT_PASSWORD", "GRAFANA_ADMIN_PASSWORD"}
