# `make` or `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO ?= $(or $(shell command -v go),/usr/local/go/bin/go)
export PATH := $(patsubst %/,%,$(dir $(GO))):$(PATH)
export GOTEST ?= $(GO) test

# The version that the programs print; "devel" outside a git checkout.
VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),devel)
BUILDFLAGS = -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
PREFIX ?= /usr/local

PROGRAMS := hatchd hatch hatch-agent

# SQLite is C that was translated to Go: the race detector finds nothing in it, and makes it four times as slow.
NORACE := -gcflags=modernc.org/...=-race=false

##@ Run

.PHONY: quickstart
quickstart: ## From a bare Debian 12 to a login in a VM: packages, build, image, hatchd, VM
	scripts/quickstart

.PHONY: clean-host
clean-host: ## Stop hatchd, end its VMs' processes, remove bridge and rules; PURGE=1: VMs, images, disks and keys, too
	PURGE='$(PURGE)' scripts/clean-host

.PHONY: install
install: build ## Install programs, manual pages, completion and the systemd units below PREFIX (/usr/local)
	PREFIX='$(PREFIX)' scripts/install

##@ Build

.PHONY: build
build: ## Build static hatchd, hatch and hatch-agent into bin/
	mkdir -p bin
	CGO_ENABLED=0 $(GO) build $(BUILDFLAGS) -o bin/ $(PROGRAMS:%=./cmd/%)

.PHONY: setup
setup: ## Install the Debian packages for building, running and testing; needs root
	scripts/setup all

.PHONY: clean
clean: ## Remove bin/ and the images of the tests in .cache/e2e and .cache/lab
	rm -rf bin .cache/e2e .cache/lab

##@ Test

.PHONY: test
test: setup test-assets test-unit test-system test-e2e ## All tests, with real guests; needs root

.PHONY: test-unit
test-unit: ## Unit and script tests with the race detector; no root, no QEMU
	CGO_ENABLED=1 $(GOTEST) -race $(NORACE) $$($(GO) list ./... | sed -n 's|^github.com/hatchvm/hatch/|./|p' | grep -vx ./internal/arch)
	$(GOTEST) ./internal/arch # it has one goroutine, and reads all of the code

.PHONY: test-system
test-system: test-assets ## Tests that use Linux, QEMU and PostgreSQL; needs root
	scripts/test-system

.PHONY: test-e2e
test-e2e: test-assets build ## Real guests through the real API, in sandboxes; needs root
	scripts/e2b-sdk
	$(GOTEST) -tags system -count=1 -timeout 60m ./test/e2e

.PHONY: test-kvm
test-kvm: setup ## The same with Linux guests on Firecracker, on a host with KVM; needs root
	HATCH_TEST_VMM=firecracker $(MAKE) test-e2e

.PHONY: test-lab
test-lab: setup test-assets build ## A whole Debian host in a VM, with Hatch installed in it; needs root; SHORT=1 for a part
	$(GO) test -tags lab $(if $(SHORT),-short -timeout 20m,-timeout 5h) -v -count=1 ./test/lab

.PHONY: test-api
test-api: ## Lint the API's description, and send hatchd-fake EXAMPLES (200) requests per operation
	scripts/test-api $(EXAMPLES)

.PHONY: test-assets
test-assets: ## Download a kernel and a Firecracker for tests into .cache/test
	scripts/test-assets
	scripts/test-firecracker

.PHONY: fuzz-smoke
fuzz-smoke: ## Fuzz every target for 3 seconds; PKG=./internal/x for those of one package
	scripts/fuzz smoke

.PHONY: fuzz
fuzz: ## Fuzz every target for FUZZTIME (5m); PKG=./internal/x for those of one package
	scripts/fuzz long

.PHONY: bench
bench: build test-assets ## Print times of creates, sleeps, requests, snapshots, forks, work and lists; needs root; PARTS="forks libvirt" for some
	CGO_ENABLED=0 $(GO) build $(BUILDFLAGS) -o bin/ ./cmd/hatchd-fake
	$(GO) run ./test/bench $(PARTS)
	if command -v nginx >/dev/null; then $(GOTEST) -tags system -run '^$$' -bench Nginx -benchtime 1x ./internal/server/proxy; \
	else echo 'routes against nginx: NOT MEASURED: nginx is not installed; scripts/setup bench installs it'; fi

##@ Check

.PHONY: lint
lint: ## golangci-lint and shellcheck
	"$$(scripts/tool golangci-lint)" run
	shellcheck .ci/run $$(grep -lE '^#!.*\b(ba)?sh\b' scripts/*)

.PHONY: fmt
fmt: ## Format the code for the linter
	"$$(scripts/tool golangci-lint)" fmt

.PHONY: vuln
vuln: ## Look for known vulnerabilities in code that is called
	scripts/vuln

.PHONY: help
help:
	@awk -F ':.*## ' \
		'/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
