module github.com/xdp-audit/xdp_audit_exporter/tools/dashboards

go 1.26.0

require github.com/grafana/grafana-foundation-sdk/go v0.0.18
