#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors
#
# Verifies a topology that docker compose started in this directory or in the parent directory.
# Prints one line for each step, and a remedy for each failed step. Exits with 1 if any step
# fails. A service that has just started gets the time that its health check allows. The image of
# the agent needs no tools: a container of the gateway's image asks in its place.
#
#   GATEWAY_ADDRESS  address of the host that publishes port 443 (127.0.0.1)
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

address=${GATEWAY_ADDRESS:-127.0.0.1}
failures=0

ok() { printf 'ok    %s\n' "$1"; }
bad() {
	printf 'FAIL  %s: %s\n      %s\n' "$1" "$2" "$3"
	failures=$((failures + 1))
}

# setting NAME DEFAULT prints the value that compose uses: from the environment, then from .env.
setting() {
	local value=${!1:-}
	if [[ -z $value && -r $directory/.env ]]; then
		value=$(sed -n "s/^$1=//p" "$directory/.env" | tail -n 1)
		value=${value#[\"\']} value=${value%[\"\']}
	fi
	printf '%s' "${value:-$2}"
}

for tool in docker curl openssl; do
	if ! command -v "$tool" >/dev/null; then
		echo "verify: $tool not found: install it" >&2
		exit 1
	fi
done
if ! problem=$(docker version 2>&1 >/dev/null); then
	echo "verify: the Docker engine does not answer: ${problem##*$'\n'}" >&2
	exit 1
fi

label() { docker inspect -f "{{index .Config.Labels \"com.docker.compose.$1\"}}" enclave_agent 2>/dev/null; }
project=$(label project)
if [[ -z $project ]]; then
	echo "verify: no container enclave_agent: run docker compose up -d --build in $PWD" >&2
	exit 1
fi
directory=$(label project.working_dir)
device=$(setting XDP_INTERFACE eth0)
mode=$(setting XDP_MODE drv)

# container SERVICE prints the id of the container of the service.
container() {
	docker ps -aq --filter "label=com.docker.compose.project=$project" --filter "label=com.docker.compose.service=$1" | head -n 1
}
# address_of SERVICE NETWORK prints the IPv4 address of the service on the network, or nothing.
address_of() {
	docker inspect -f "{{with index .NetworkSettings.Networks \"${project}_$2\"}}{{.IPAddress}}{{end}}" "$(container "$1")" 2>/dev/null
}
# A container joins the network namespace that the enclave has now, without privileges.
joined=(--network=container:enclave_agent --read-only --cap-drop=ALL --security-opt=no-new-privileges --user=65534:65534 --log-driver=none)
image_of() { docker inspect -f '{{.Image}}' "$(container "$1")" 2>/dev/null; }
# in_enclave COMMAND… runs a command of the gateway's image there.
in_enclave() {
	if [[ $guest =~ ^[0-9a-f]{64}$ ]]; then
		docker exec "$guest" "$@" 2>&1
	else
		printf '%s\n' "${guest%%$'\n'*}"
		return 1
	fi
}
# fetch PORT/PATH prints the answer from the loopback of the enclave's namespace. It uses the
# address, because GNU wget keeps retrying if localhost is an IPv6 address that does not exist.
fetch() { in_enclave timeout 6 wget -T 3 -qO- "http://127.0.0.1:$1"; }

# reach SERVICE HOST PORT tries to connect from the service's container, or from the enclave's
# namespace. It prints open, closed (refused or no route), or an error message. Busybox reports
# the same timeout for a connection and for an answer; therefore the script checks the members of
# networks as well.
reach() {
	local output status
	if [[ -z $2 ]]; then
		echo unknown
		return
	fi
	local try=(timeout 6 wget -T 3 -O /dev/null "http://$2:$3/")
	if [[ $1 == enclave ]]; then
		output=$(in_enclave "${try[@]}")
	else
		output=$(docker exec "$(container "$1")" "${try[@]}" 2>&1)
	fi
	status=$?
	case $output in
	*"connected."*) echo open ;;
	*refused* | *nreachable* | *"No route"* | *"timed out"* | *"resolve"* | *"bad address"*) echo closed ;;
	*"not found"* | *"is not running"* | *"No such"*) echo "${output##*$'\n'}" ;;
	*)
		# Exit codes of timeout: 124 of coreutils, 143 of busybox.
		if ((status == 124 || status == 143)); then echo closed; else echo open; fi
		;;
	esac
}

# state SERVICE prints the state and health of the container of the service.
state() {
	docker inspect -f '{{.State.Status}} {{with .State.Health}}{{.Status}}{{end}}' "$(container "$1")" 2>/dev/null
}

# 1. Every service runs and is healthy. The engine limits the time of "starting".
for service in enclave xdp-auditor prometheus grafana gateway apache drupal db; do
	while state=$(state "$service") && [[ $state == "running starting" ]]; do
		sleep 1
	done
	if [[ $state == "running healthy" ]]; then
		ok "$service is healthy"
	else
		bad "$service is healthy" "state is ${state:-missing}" "See docker compose logs $service."
	fi
done

scratch=$(mktemp -d)
guest=$(docker run --detach --rm "${joined[@]}" --entrypoint=sleep "$(image_of gateway)" 600 2>&1)
trap 'rm -rf "$scratch"; docker rm --force "$guest" >/dev/null 2>&1' EXIT

# 2. Port 443 leads to the audited device.
edge=$(address_of enclave edge)
if [[ $device != eth0 ]]; then
	ok "$device is chosen by hand, eth0 is not audited"
elif [[ -n $edge ]] && in_enclave ip -o -4 addr show dev eth0 | grep -qF " $edge/"; then
	ok "eth0 is the device on edge"
else
	bad "eth0 is the device on edge" "eth0 does not have the address ${edge:-(none)}" \
		"The engine numbered the devices differently: set XDP_INTERFACE to the device with that address."
fi

# 3. The hook.
orphaned="If enclave was restarted, the other services kept its old namespace: run docker compose restart xdp-auditor prometheus grafana gateway."
# The check of the auditor's image says what the kernel says to everyone.
found=$(docker run --rm "${joined[@]}" "$(image_of xdp-auditor)" --check --audit.device="$device" 2>&1)
if [[ $found == *"XDP program "[0-9]* ]]; then
	ok "hook attached on $device"
else
	bad "hook attached on $device" "the kernel shows no XDP program" "See docker logs xdp-auditor --tail=50. $orphaned"
fi
line="XDP audit hook attached on $device with mode="
if [[ $mode == auto ]]; then line+="(drv|skb)"; else line+=$mode; fi
# No pipe: grep -q would end docker logs early.
if log=$(docker logs xdp-auditor 2>&1) && grep -qE "$line" <<<"$log"; then
	ok "log line of the hook"
else
	bad "log line of the hook" "no \"$line\"" "A driver without native XDP needs XDP_MODE=skb. docker logs xdp-auditor --tail=50 shows the error."
fi

# 4. The metrics, at the address that Prometheus scrapes.
metrics=$(fetch 9400/metrics)
if [[ $metrics == *xdp_audit_hook_info* ]]; then
	ok "metrics path"
else
	bad "metrics path" "http://localhost:9400/metrics in the enclave: ${metrics:0:80}" \
		"$orphaned"
fi
if grep -q "^xdp_audit_hook_up{device=\"$device\"} 1" <<<"$metrics"; then
	ok "hook reported as up"
else
	bad "hook reported as up" "xdp_audit_hook_up of $device is not 1" "See docker logs xdp-auditor --tail=50."
fi

# 5. Prometheus.
ready=$(fetch 9090/-/ready)
if [[ $ready == *Ready* ]]; then
	ok "Prometheus ready"
else
	bad "Prometheus ready" "${ready:-no answer}" "$orphaned"
fi
# query EXPRESSION prints the answer of Prometheus to a URL-encoded expression.
query() { fetch "9090/api/v1/query?query=$1"; }
# has_series EXPRESSION reports whether the result has a series.
has_series() {
	local answer
	answer=$(query "$1")
	[[ $answer == *'"status":"success"'* && $answer == *'"metric":{'* ]]
}
# The first scrape happens within one interval after the start.
for ((i = 0; i < 20; i++)); do
	[[ $(query 'up%7Bjob%3D%22xdp_audit%22%7D') == *'"result":[]'* ]] || break
	sleep 1
done
if has_series 'up%7Bjob%3D%22xdp_audit%22%7D%20%3D%3D%201'; then
	ok "target up"
else
	bad "target up" "Prometheus has not scraped the auditor" "See prometheus.yml, and the error in docker compose exec prometheus wget -qO- http://127.0.0.1:9090/api/v1/targets."
fi
for series in xdp_audit_events_total xdp_audit_leak_flags_total xdp_audit_last_tscore; do
	if has_series "$series"; then
		ok "series $series"
	else
		bad "series $series" "Prometheus has none" "If the target is up, wait 15 s for the next scrape."
	fi
done

# 6. The gateway.
# gateway NAME PATH prints the HTTP status over TLS, verified with certs/tls.crt.
gateway() {
	curl -sS -o /dev/null -w '%{http_code}' --max-time 20 --cacert certs/tls.crt --resolve "$1:443:$address" "https://$1$2" 2>&1
}
status=$(gateway grafana.enclave /api/health)
if [[ $status == 200 ]]; then
	ok "gateway TLS for grafana.enclave"
else
	bad "gateway TLS for grafana.enclave" "${status//$'\n'/ }" "Check that certs/tls.crt has the name grafana.enclave and matches tls.key. See docker compose logs gateway. $orphaned"
fi
status=$(gateway drupal.enclave /)
if [[ $status =~ ^[23][0-9][0-9]$ ]]; then
	ok "gateway TLS for drupal.enclave"
else
	bad "gateway TLS for drupal.enclave" "${status//$'\n'/ }" "See docker compose logs gateway apache drupal. The first visit installs Drupal."
fi

# A browser that has seen HSTS once allows no exception for a self-signed certificate.
issued=$(openssl x509 -in certs/tls.crt -noout -subject_hash -issuer_hash 2>&1 | uniq | wc -l)
headers=$(curl -sS -o /dev/null -D - --max-time 20 --insecure --resolve "grafana.enclave:443:$address" https://grafana.enclave/api/health 2>&1)
if ((issued == 1)) && grep -qi ^strict-transport-security <<<"$headers"; then
	bad "HSTS only with a trusted certificate" "the gateway sends it with a self-signed one" "Set GATEWAY_HSTS=off in .env and run docker compose up -d gateway."
else
	ok "HSTS only with a trusted certificate"
fi

# 7. Isolation: first the members of each network, then connections.
# members NETWORK INTERNAL SERVICE… compares the members of a network with the expected ones.
members() {
	local network=$1 internal=$2 expected found what
	shift 2
	what="$network has only $*"
	if [[ $internal == true ]]; then what="$network is internal and has only $*"; fi
	expected="$internal: $(printf '%s\n' "$@" | sort | tr '\n' ' ')"
	found="$(docker network inspect -f '{{.Internal}}' "${project}_$network" 2>&1): $(docker ps -q --filter "network=${project}_$network" |
		xargs -r docker inspect -f '{{or (index .Config.Labels "com.docker.compose.service") .Name}}' | sort | tr '\n' ' ')"
	if [[ $found == "$expected" ]]; then
		ok "$what"
	else
		bad "$what" "internal and members are $found" "Run docker compose up -d, and disconnect every other container from the network."
	fi
}
members edge false enclave
members web_net true enclave apache
members app_net true apache drupal
members db_net true drupal db

# expect STATE WHAT SERVICE HOST PORT REMEDY
expect() {
	local found
	found=$(reach "$3" "$4" "$5")
	if [[ $found == "$1" ]]; then
		ok "$2"
	else
		bad "$2" "port $5 of ${4:-(no address)} is $found from $3" "$6"
	fi
}
# attempt starts an expect in the background, so that all timeouts run in parallel.
attempts=10
attempt() {
	attempts=$((attempts + 1))
	expect "$@" >"$scratch/$attempts" &
}
database=$(address_of db db_net)
attempt open "Drupal reaches the database" drupal "$database" 3306 "See docker compose logs db."
attempt closed "the enclave's namespace does not reach the database" enclave "$database" 3306 "Disconnect enclave from db_net."
attempt closed "Apache does not reach the database" apache "$database" 3306 "Disconnect apache from db_net."
# Try an address on a network of Apache and an address on a network of neither.
for port in 9400 9090 3000; do
	attempt closed "port $port is closed to Apache" apache "$(address_of enclave web_net)" "$port" "The service must listen only on 127.0.0.1."
	attempt closed "port $port is closed to Drupal" drupal "$edge" "$port" "Drupal must be only on app_net and db_net."
done
wait
cat "$scratch"/*
failures=$((failures + $(cat "$scratch"/* | grep -c ^FAIL)))

if ((failures > 0)); then
	echo "$failures failed"
	exit 1
fi
echo "all passed"
