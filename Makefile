# SPDX-License-Identifier: Apache-2.0
# Copyright The XDP Audit Exporter Authors

.DEFAULT_GOAL := all

include Makefile.common

# The race detector runs the tests of packages that use goroutines and do not need the kernel.
RACE_PACKAGES := . ./collector/... ./internal/exporter ./internal/connlimit ./internal/answer ./internal/logging ./internal/appendfile ./internal/trail ./internal/covert ./internal/assessment ./internal/probe ./internal/history

# Limits are for a test that hangs: a machine that does much else takes three times as long. lint does
# more than the vet of go test.
TEST_FLAGS  ?= -timeout 40m -vet=off
BENCH       ?= .
BENCH_COUNT ?= 5
BENCH_TIME  ?= 50ms
LIVE_ROUNDS ?= 31
SOAK        ?= 10m
FUZZTIME    ?= 100000x
FRAMES      ?= 10000000

.PHONY: all
all: style check_license lint build test-short ## check, build and test what needs neither root nor clang

.PHONY: deps
deps: toolchain ## install what building and testing need, Go included (root, unless nothing is missing)
	@scripts/deps.sh

# The go:generate directives name the compiler, because another version generates other objects.
.PHONY: generate
generate: ## compile the BPF programs and generate their Go bindings
	@echo ">> generating BPF objects"
	@command -v clang-14 >/dev/null || { echo "generate: clang-14 not found: run make deps" >&2; exit 1; }
	$(GO) generate ./bpf ./e2e
	$(GO) -C tools/evaluate generate .
	$(call give_back,bpf/*_bpfe[lb]* e2e/*_bpfe[lb]* tools/evaluate/*_bpfe[lb]*)

.PHONY: check-generate
check-generate: ## check that the committed BPF objects match their sources
	@echo ">> checking that the BPF objects are up to date"
	@if $(call is_not_packaged,clang-14); then \
		echo ">> NOT CHECKED: this distribution has no clang-14, the compiler of the objects"; \
	else \
		scripts/check-generate.sh $(MAKE) generate; \
	fi

.PHONY: style-c
style-c: ## check that every C file is formatted
	@echo ">> checking the style of C"
	@if $(call is_not_packaged,clang-format-14); then \
		echo ">> NOT CHECKED: this distribution has no clang-format-14"; \
	else \
		find $(SOURCES) -name '*.[ch]' -print0 | xargs -0r clang-format-14 --dry-run --Werror || { \
			echo "style-c: run clang-format-14 -i on these files" >&2; exit 1; \
		}; \
	fi

.PHONY: check-config
check-config: ## check the example configuration and the rules with promtool
	@echo ">> checking the example configuration and the rules"
	promtool check config deploy/prometheus.yml deploy/prometheus/*.yml
	promtool check rules deploy/rules/*.yml

.PHONY: check-root
check-root:
	@[ "$$(id -u)" -eq 0 ] || { echo "test: the tests load BPF programs: run as root" >&2; exit 1; }

# The steps of test, in this order. The topology mostly waits, and the guests measure no time, so
# these run together.
CHECKS := deps style style-c check_license yamllint shellcheck check-text lint unused check-generate \
	check-config check-dashboards tarball
TESTS  := test-race test-fuzz test-tools test-manifests test-kernels,test-deploy test-evaluate \
	test-pages test-packages

# The last step stands apart, so that its result closes the output.
.PHONY: test
test: check-root ## run every check and every test, including the kernel tests (root)
	@scripts/timed.sh $(MAKE) $(CHECKS) $(TESTS)
	@$(MAKE) test-load

# Each tree has nothing but a minimal system, make and sudo.
.PHONY: test-bare
test-bare: check-root ## run BARE_TARGETS="demo demo-fleet test" on the bare TREES="bookworm trixie noble" (root)
	@echo ">> testing on bare systems"
	@scripts/test-bare.sh "$(or $(TREES),bookworm trixie noble)" "$(or $(BARE_TARGETS),demo demo-fleet test)"
	$(call give_back,.build)

.PHONY: test-race
test-race: ## run the tests of goroutines with the race detector
	@if [ "$$($(GO) env CGO_ENABLED)" = 1 ] && command -v "$$($(GO) env CC)" >/dev/null; then \
		echo ">> running tests with the race detector"; \
		$(GO) test -race -count=1 $(TEST_FLAGS) $(RACE_PACKAGES); \
	else \
		echo ">> no C compiler: skipping the race detector"; \
	fi

.PHONY: test-fuzz
test-fuzz: ## fuzz each parser briefly
	@GO="$(GO)" scripts/fuzz.sh 20000x

.PHONY: test-tools
test-tools: ## run the tests of the module of tools
	@echo ">> running the tests of tools"
	@$(GO) -C tools test -count=1 ./...

.PHONY: test-manifests
test-manifests: ## run the tests of compose files and of Kubernetes manifests
	@echo ">> running the tests of compose files and manifests"
	@REQUIRE_BPF=1 $(GO) -C e2e/deploy test -count=1 $(TEST_FLAGS) ./...

.PHONY: test-evaluate
test-evaluate: ## run the tests of tools/evaluate
	@echo ">> running the tests of tools/evaluate"
	@REQUIRE_BPF=1 $(GO) -C tools/evaluate test -count=1 $(TEST_FLAGS) ./...

.PHONY: test-pages
test-pages: ## run the tests of the pages in Chromium
	@echo ">> running the tests of the pages"
	@REQUIRE_BPF=1 $(GO) -C e2e/pages test -count=1 $(TEST_FLAGS) ./...

# These packages put load on the machine and measure its effect, so they run one at a time and
# nothing runs with them.
LOADING := bpf|e2e|leaklab

.PHONY: test-packages
test-packages: ## run the tests of all packages except those of test-load, in parallel
	@echo ">> running the tests of packages"
	@REQUIRE_BPF=1 $(GO) test -count=1 $(TEST_FLAGS) $$($(GO) list ./... | grep -vE '/($(LOADING))$$')

.PHONY: test-load
test-load: check-root ## run the tests that put load on the machine, one package at a time (root)
	@echo ">> running the tests that put load on the machine"
	@REQUIRE_BPF=1 $(GO) test -count=1 -p 1 $(TEST_FLAGS) $$($(GO) list ./... | grep -E '/($(LOADING))$$')

.PHONY: bench
bench: $(BENCHSTAT) ## measure the BPF programs against their references, for docs/performance.md (root)
	@echo ">> running benchmarks"
	@mkdir -p .build
	REQUIRE_BPF=1 BENCH_REPORT="$(CURDIR)/docs/performance.md" $(GO) test -run '^$$' -bench '$(BENCH)' \
		-benchtime $(BENCH_TIME) -count $(BENCH_COUNT) -timeout 1h ./bpf | tee .build/bench.txt
	$(BENCHSTAT) -confidence 0.9 .build/bench.txt
	$(call give_back,.build)

.PHONY: instructions
instructions: ## count the instructions per packet, for docs/performance.md
	@echo ">> counting instructions"
	INSTRUCTIONS_REPORT="$(CURDIR)/docs/performance.md" $(GO) test -count=1 -run '^TestInstructions$$' ./bpf

.PHONY: bench-compare
bench-compare: $(BENCHSTAT) ## compare the BPF programs of two commits, BASE=v0.1.0 and HEAD=HEAD (root)
	@echo ">> comparing benchmarks"
	@GO="$(GO)" BENCH="$(BENCH)" BENCH_COUNT="$(BENCH_COUNT)" BENCH_TIME="$(BENCH_TIME)" \
		scripts/bench-compare.sh "$(BASE)" "$(or $(HEAD),HEAD)"
	$(call give_back,.build)

.PHONY: bench-live
bench-live: check-root ## measure the audit of a device under real frames, for docs/performance.md (root)
	@echo ">> measuring on a live device"
	REQUIRE_BPF=1 LIVE_ROUNDS=$(LIVE_ROUNDS) LIVE_REPORT="$(CURDIR)/docs/performance.md" \
		$(GO) test -v -count=1 -timeout 1h -run '^TestLiveDevice$$' ./e2e

# The documents contain the figures of the default seed, so another seed does not write them.
.PHONY: evaluate
evaluate: check-root ## measure with generated traffic, for docs/statistics.md; SEED=4 only prints, TRACES=directory adds recordings (root)
	@echo ">> evaluating"
	$(GO) -C tools/evaluate run . $(if $(SEED),-seed '$(SEED)',-write ../..) $(if $(TRACES),-traces '$(abspath $(TRACES))')
	$(call give_back,docs)

# The runs need twenty minutes on a machine that does nothing else.
.PHONY: leak-lab
leak-lab: check-root deps ## plant delays in real servers RUNS=20 times and look for them, for docs/leak-lab.md (root)
	@$(MAKE) -k exchange-figures handler-figures leak-figures # a bound that does not hold ends none of the others

.PHONY: exchange-figures
exchange-figures:
	@echo ">> counting the exchanges of real servers"
	REQUIRE_BPF=1 EXCHANGE_REPORT="$(CURDIR)/docs/leak-lab.md" $(GO) test -v -count=1 -timeout 1h \
		-run '^(TestExchangesOfAWebServer|TestAMillionExchangesAreRecorded)$$' ./bpf
	$(call give_back,docs)

# The process is server, client and reader. Two CPUs of a virtual machine wake each other up late.
.PHONY: handler-figures
handler-figures:
	@echo ">> comparing response times with the handler's time"
	REQUIRE_BPF=1 EXCHANGE_REPORT="$(CURDIR)/docs/leak-lab.md" GOMAXPROCS=1 taskset -c 0 $(GO) test -v -count=1 \
		-run '^TestResponseTimeIsThatOfTheHandler$$' ./bpf
	$(call give_back,docs)

.PHONY: leak-figures
leak-figures:
	@echo ">> looking for leaks in real servers"
	REQUIRE_BPF=1 LEAKLAB_RUNS=$(or $(RUNS),20) LEAKLAB_REPORT="$(CURDIR)/docs/leak-lab.md" \
		$(GO) test -v -count=1 -timeout 2h -run '^TestLeaksAreFound$$' ./e2e/leaklab
	$(call give_back,docs)

.PHONY: probe-figures
probe-figures: check-root deps ## ask servers RUNS=20 times with the probe, for docs/probe.md; LONG_RUNS=3 (root)
	@echo ">> asking servers"
	REQUIRE_BPF=1 PROBE_RUNS=$(or $(RUNS),20) PROBE_LONG_RUNS=$(or $(LONG_RUNS),20) PROBE_REPORT="$(CURDIR)/docs/probe.md" \
		$(GO) test -v -count=1 -timeout 6h -run '^TestProbeExperiments$$' ./e2e
	$(call give_back,docs/probe.md)

.PHONY: soak
soak: check-root ## load the exporter for SOAK=10m, then with 1,000 devices, and check that it does not grow (root)
	@echo ">> soaking for $(SOAK)"
	REQUIRE_BPF=1 SOAK=$(SOAK) FOLLOW_ROUNDS=50 $(GO) test -v -count=1 -timeout 0 -run '^(TestSoak|TestDevicesComeAndGo)$$' ./e2e

.PHONY: fuzz
fuzz: check-root ## test with FRAMES=10000000 random frames and FUZZTIME=100000x parser inputs (root)
	@echo ">> sending $(FRAMES) random frames"
	REQUIRE_BPF=1 FRAMES=$(FRAMES) $(GO) test -v -count=1 -timeout 0 -run '^TestRandomFramesEqualModel$$' ./bpf
	@GO="$(GO)" scripts/fuzz.sh "$(FUZZTIME)"

.PHONY: demo
demo: build ## show the exporter at work in network namespaces of its own (root)
	@$(GO) build -o $(BIN)/demo ./examples/demo
	@$(BIN)/demo ./$(BINARY)

.PHONY: demo-leak
demo-leak: build ## assess a server that leaks a token and one that does not (root)
	@$(GO) build -o $(BIN)/demo ./examples/demo
	@$(BIN)/demo ./$(BINARY) ./$(PROBE)

.PHONY: demo-fleet
demo-fleet: build ## show an alert on one host of three, with Prometheus and the rules (root)
	@command -v prometheus >/dev/null || scripts/apt-install.sh prometheus
	@$(GO) build -o $(BIN)/demo ./examples/demo
	@$(BIN)/demo ./$(BINARY) prometheus deploy/rules docs/runbooks.md

# The pages show ten minutes, so it takes eleven.
.PHONY: screenshots
screenshots: check-root ## take the screenshots of the pages with Chromium, for README.md and docs/pages.md (root)
	@echo ">> taking screenshots"
	REQUIRE_BPF=1 SCREENSHOTS="$(CURDIR)/docs/images" $(GO) -C e2e/pages test -v -count=1 -timeout 1h -run '^TestScreenshots$$' .
	$(call give_back,docs/images)

.PHONY: costs-of-pages
costs-of-pages: check-root ## measure what the pages cost, for docs/pages.md (root)
	@echo ">> measuring the pages"
	REQUIRE_BPF=1 COSTS_REPORT="$(CURDIR)/docs/pages.md" $(GO) -C e2e/pages test -v -count=1 -run '^TestCosts$$' .

.PHONY: dashboards
dashboards: ## generate the Grafana dashboards
	@echo ">> writing the dashboards"
	$(GO) -C tools/dashboards run . ../../deploy/grafana/dashboards
	$(call give_back,deploy/grafana/dashboards)

.PHONY: check-dashboards
check-dashboards: ## check that the committed dashboards match tools/dashboards
	@echo ">> checking that the dashboards are up to date"
	@directory="$$(mktemp -d)"; trap 'rm -rf "$$directory"' EXIT; \
	$(GO) -C tools/dashboards run . "$$directory"; \
	diff -r "$$directory" deploy/grafana/dashboards || { echo "check-dashboards: run make dashboards" >&2; exit 1; }

.PHONY: packages
packages: build $(NFPM) ## build the deb and rpm packages in .build/packages
	@echo ">> building packages"
	@rm -rf .build/packages
	@GO="$(GO)" scripts/packages.sh $(NFPM) ./$(BINARY) ./$(PROBE) .build/packages
	$(call give_back,.build)

.PHONY: kubernetes-rules
kubernetes-rules: ## generate the PrometheusRule of deploy/kubernetes from deploy/rules
	@echo ">> writing deploy/kubernetes/base/prometheusrule.yaml"
	@$(GO) -C e2e/deploy test -count=1 -run '^TestRulesAreThoseOfTheFiles$$' ./kubernetes -update
	$(call give_back,deploy/kubernetes/base)

.PHONY: pin-images
pin-images: ## look up the digests of the images of Dockerfile and deploy/, and add them to the tags
	@echo ">> looking up the digests of images"
	@$(GO) -C tools run ./pinimages ../Dockerfile ../deploy/docker-compose.yml
	$(call give_back,Dockerfile deploy)

.PHONY: fleet-figures
fleet-figures: check-root ## count the series of the exporter, for docs/fleet.md (root)
	@echo ">> counting series"
	REQUIRE_BPF=1 FLEET_REPORT="$(CURDIR)/docs/fleet.md" $(GO) test -count=1 -run '^TestCardinality$$' ./e2e

.PHONY: test-deploy
test-deploy: check-root deps ## test the topology of deploy/ on a Docker engine of its own (root)
	@echo ">> testing the topology"
	@TEST_DEPLOY=1 REQUIRE_BPF=1 $(GO) -C e2e/deploy test -v -count=1 -timeout 45m ./engine

# Kernel packages come from the mirror in apt's sources and are kept in .build/kernels. Each guest
# uses one CPU.
.PHONY: test-kernels
test-kernels: check-root deps ## test inside virtual machines, with all tests of KERNELS="6.1 6.12" or KERNELS=all (root)
	@echo ">> testing inside other kernels"
	@TEST_KERNELS=1 KERNELS="$(KERNELS)" $(GO) test -v -count=1 -parallel 2 -timeout 1h -run '^(TestInsideKernels|TestFailingGuestsAreNoticed)$$' ./e2e/kernels
	$(call give_back,.build)

.PHONY: kernel-table
kernel-table: check-root deps ## run test-kernels KERNELS=all and write its results into docs/kernels.md and docs/devices.md (root)
	@echo ">> writing the tables of kernels and devices"
	@TEST_KERNELS=1 KERNELS=all KERNEL_REPORT="$(CURDIR)/docs" $(GO) test -v -count=1 -parallel 2 -timeout 1h -run '^TestInsideKernels$$' ./e2e/kernels
	$(call give_back,.build)

.PHONY: quiet-days
quiet-days: ## evaluate the alerts over QUIET_DAYS=30 days of quiet devices
	@echo ">> evaluating the alerts"
	REQUIRE_BPF=1 QUIET_DAYS=$(or $(QUIET_DAYS),30) $(GO) test -v -count=1 -timeout 1h -run '^TestQuietDaysDoNotFire$$' ./e2e/rules

.PHONY: faults
faults: check-root ## kill the exporter FAULTS=1000 times, without and with pins (root)
	@echo ">> killing the exporter at random moments"
	REQUIRE_BPF=1 FAULTS=$(or $(FAULTS),1000) $(GO) test -v -count=1 -timeout 0 -run '^TestFaults' ./e2e
