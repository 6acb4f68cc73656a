# Sluice: `make demo` to watch it, `make test` to check it.
SHELL := /bin/bash
.DELETE_ON_ERROR:

CACHE  := $(CURDIR)/.cache
BIN    := $(CACHE)/bin
LINT   := $(BIN)/golangci-lint-v2.15.0
HELM   := $(BIN)/helm-v3.22.0
ACT    := $(BIN)/act-v0.2.89
ACTIONLINT := $(BIN)/actionlint-v1.7.12
UNITS  := $$(go list ./... | grep -v -e /test/e2e -e /test/chart)
export CGO_ENABLED ?= 1

.PHONY: demo test unit lint e2e fuzz bench bench-verdict setup generate build clean

demo: ## watch a good version being promoted and a bad one rolled back
	@command -v python3 >/dev/null || { echo "make demo needs python3: install Python 3 (on Debian or Ubuntu: apt-get install python3)"; exit 1; }
	@echo "Compiling; the first time this takes a few minutes."
	@asked=$$(date +%s); mkdir -p bin && CGO_ENABLED=0 go build -o bin/sluice ./cmd/sluice && SLUICE_DEMO_ASKED=$$asked ./bin/sluice demo

test: ## everything that CI runs
	@test/run

build: ## all programs into bin/
	@mkdir -p bin && CGO_ENABLED=0 go build -o bin/ ./cmd/...

.PHONY: images
images: ## Sluice's own images into bin/images, an OCI image layout; IMAGES="--push REGISTRY --tag TAG" pushes them instead
	go run ./build/images $(IMAGES)

unit:
	go vet ./...
	go test -race -timeout 15m $(UNITS)

e2e:
	go test -count=1 -timeout 25m -v ./test/e2e

$(LINT):
	@mkdir -p $(BIN)
	GOBIN=$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	@mv $(BIN)/golangci-lint $@

.PHONY: .cache-lint
.cache-lint: $(LINT)

lint: $(LINT)
	$(LINT) run ./...

# As its own releases are built; without that it renders for Kubernetes 1.20.
$(HELM):
	@mkdir -p $(BIN)
	GOBIN=$(BIN)/helm-build go install -ldflags "-s -w -X helm.sh/helm/v3/internal/version.version=v3.22.0 \
	  -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=35" helm.sh/helm/v3/cmd/helm@v3.22.0
	@mv $(BIN)/helm-build/helm $@ && rmdir $(BIN)/helm-build

.PHONY: helm chart
helm: $(HELM) ## Helm, pinned, as .cache/bin/helm
	@ln -sf $(notdir $(HELM)) $(BIN)/helm

chart: helm ## the chart's tests; with SLUICE_TEST_KUBECONFIG also on that cluster
	HELM=$(HELM) go test -count=1 ./test/chart

.PHONY: page-test
page-test: ## the page, in a real Chromium; SLUICE_TEST_SCREENSHOTS=DIR keeps pictures
	go test -count=1 -v -run 'InChromium' ./pkg/page

.PHONY: comment-pictures
comment-pictures: ## the pictures of comments in docs/, anew from the goldens
	HEIGHT=1360 test/tools/comment-pictures.sh docs/images/comments.png running worse
	HEIGHT=1740 test/tools/comment-pictures.sh docs/images/comments-more.png held failed promoted

# A number of inputs, not a time: before Go 1.27 a time that runs out can fail a target with nothing but
# "context deadline exceeded" (golang/go#75804).
FUZZTIME ?= 20000x
fuzz: ## each fuzz target for FUZZTIME
	@set -e; found=$$(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' cmd pkg rollout test); \
	echo "$$found" | while IFS=: read -r file func; do \
	  target=$${func#func }; pkg=./$${file%/*}; echo "fuzz $$pkg $$target"; \
	  go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
	done

bench: ## measurements, as ratios within one run; takes about half an hour
	@test/bench/run

.PHONY: bench-webhook
bench-webhook: ## 200 kills under 100 commands, and 2,000 deliveries at once
	SLUICE_TEST_KILLS=200 SLUICE_TEST_BURST=2000 go test -count=1 -timeout 15m -v -run 'TestKilled|TestBurst' ./pkg/webhook/webhookcmd

bench-verdict:
	go run ./test/bench/verdict

# The tool that runs a Kubernetes for tests is a module of its own; compiling it is quick when nothing
# has changed, compiling Kubernetes is left to it.
.PHONY: cluster cluster-up cluster-down cluster-test
cluster:
	@mkdir -p $(BIN) && CGO_ENABLED=0 go build -C test/cluster -o $(BIN)/cluster ./cmd/cluster

cluster-up: cluster ## a one-node Kubernetes on this machine, with base images; see test/cluster
	@$(BIN)/cluster up && $(BIN)/cluster images

cluster-down: cluster
	@$(BIN)/cluster down

# Tests that need a cluster: the ports' suites on it, the definitions, the chart, and Sluice installed on it.
.PHONY: cluster-e2e
cluster-e2e: helm
	@[ -n "$$SLUICE_TEST_REGISTRY" ] || $(MAKE) -s cluster-up
	@test/cluster-e2e $(BIN)/cluster

# A built environment on the cluster. It runs in the host's network, from which builds reach package mirrors.
.PHONY: environment-e2e
environment-e2e: cluster-up helm buildkit-build
	@test/environment-e2e $(BIN)/cluster $(BIN)/buildkit

.PHONY: cluster-build cluster-test
cluster-build: cluster
	@$(BIN)/cluster build

# Not cmd/kube: looking at it would be looking at all of Kubernetes.
CLUSTER_PACKAGES := . ./cmd/cluster ./internal/...
cluster-test: cluster-build ## the cluster's own test
	@cd test/cluster && go vet $(CLUSTER_PACKAGES) && go test -count=1 -timeout 20m -v .

# The tool that runs a buildkitd for tests is a module of its own too.
.PHONY: buildkit buildkit-build buildkit-test build-e2e
buildkit:
	@mkdir -p $(BIN) && CGO_ENABLED=0 go build -C test/buildkit -o $(BIN)/buildkit ./cmd/buildkit

buildkit-build: buildkit
	@$(BIN)/buildkit build

buildkit-test: buildkit-build $(LINT) ## the tool's own test
	@cd test/buildkit && go vet ./... && $(LINT) run --config ../../.golangci.yml ./... && go test -count=1 -timeout 10m -v ./...

build-e2e: buildkit ## builds of environments with a real buildkitd and a Docker engine; see test/buildkit
	@test/tools/static-busybox.sh
	@$(BIN)/buildkit run -- go test -count=1 -timeout 15m -v ./pkg/image/build
	@$(BIN)/buildkit run --docker -- go test -count=1 -timeout 15m -v -run TestDockerEngine ./pkg/image/build

# What runs workflows, and what reads them. They compile somewhere else first: both would have a name without a version.
$(ACT):
	@mkdir -p $(BIN)
	GOBIN=$(BIN)/act-build go install -ldflags "-s -w" github.com/nektos/act@v0.2.89
	@mv $(BIN)/act-build/act $@ && rmdir $(BIN)/act-build

$(ACTIONLINT):
	@mkdir -p $(BIN)
	GOBIN=$(BIN)/actionlint-build go install -ldflags "-s -w" github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
	@mv $(BIN)/actionlint-build/actionlint $@ && rmdir $(BIN)/actionlint-build

.PHONY: act actionlint action-e2e
act: $(ACT) ## nektos/act, pinned, as .cache/bin/act
	@ln -sf $(notdir $(ACT)) $(BIN)/act

actionlint: $(ACTIONLINT) ## actionlint, pinned, as .cache/bin/actionlint
	@ln -sf $(notdir $(ACTIONLINT)) $(BIN)/actionlint

action-e2e: cluster buildkit-build helm act actionlint ## workflows that run the Action, by act, on the cluster; see test/act
	@test/tools/static-busybox.sh
	@[ -n "$$SLUICE_TEST_REGISTRY" ] || $(MAKE) -s cluster-up
	@test/action-e2e $(BIN)/cluster $(BIN)/buildkit $(BIN)/act

.PHONY: workflows
workflows: actionlint ## actionlint on this project's workflows, the examples and those in the documentation
	@SLUICE_TEST_ACTIONLINT=$(ACTIONLINT) go test -count=1 -v ./test/workflows

.PHONY: image-e2e bench-images
DISTRIBUTION = $$(test/tools/registry.sh $(CACHE)/docker-registry)
image-e2e: ## pushes to Docker's own registry: broken connections, kills, a full disk; and memory
	@SLUICE_TEST_DISTRIBUTION=$(DISTRIBUTION) go test -count=1 -timeout 15m -v -run 'Distribution|MemoryIsFlat|OutputsStream' ./pkg/image

bench-images: buildkit ## deploys of a 2 GiB model, side by side with BuildKit; about ten minutes
	@SLUICE_TEST_DISTRIBUTION=$(DISTRIBUTION) $(BIN)/buildkit run -- go test -count=1 -tags bench -timeout 40m -v -run TestBenchDeploy ./pkg/image

# What makes bills of materials is a module of its own; syft takes some minutes to compile the first time.
.PHONY: sbom sbom-test
sbom: ## sluice-sbom into bin/, beside sluice
	@mkdir -p bin && CGO_ENABLED=0 go build -C sbom -ldflags "-s -w" -o $(CURDIR)/bin/sluice-sbom ./cmd/sluice-sbom

sbom-test: $(LINT) ## its own test
	@cd sbom && go vet ./... && $(LINT) run --config ../.golangci.yml ./... && go test -count=1 -timeout 10m ./...

generate: ## references that are made from the code
	go test ./rollout -run TestReasonsReference -update
	go test ./cmd/action/internal/action -run "TestReference|TestComposite" -update
	go test ./cmd/sluice/internal/cli -run TestCommandReference -update
	go test ./pkg/project/azureml -run TestDocumentation -update
	go test ./pkg/cluster/kube/v1alpha1 -run TestDefinitions -update
	go test ./pkg/api -run TestOpenAPI -update

clean:
	rm -rf bin .cache
