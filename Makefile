# `make` or `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO ?= $(or $(shell command -v go),/usr/local/go/bin/go)
export PATH := $(patsubst %/,%,$(dir $(GO))):$(PATH)

# The version that the programs print; "devel" outside a git checkout.
VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),devel)
BUILDFLAGS = -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
PREFIX ?= /usr/local

PROGRAMS := hatchd hatch hatch-agent

##@ Run

.PHONY: quickstart
quickstart: ## From a bare Debian 12 to a VM you are logged in to: packages, build, image, hatchd, VM
	scripts/quickstart

.PHONY: clean-host
clean-host: ## Remove VMs, hatchd, bridge and rules from this host; PURGE=1: images, disks and keys, too
	PURGE='$(PURGE)' scripts/clean-host

.PHONY: install
install: build ## Install the programs and the systemd unit below PREFIX (/usr/local)
	PREFIX='$(PREFIX)' scripts/install

##@ Build

.PHONY: build
build: ## Build static hatchd, hatch and hatch-agent into bin/
	mkdir -p bin
	CGO_ENABLED=0 $(GO) build $(BUILDFLAGS) -o bin/ $(PROGRAMS:%=./cmd/%)

.PHONY: setup
setup: ## Install what building, running and testing need (Debian packages; needs root)
	scripts/setup all

.PHONY: clean
clean: ## Remove bin/ and what the tests left in .cache/e2e
	rm -rf bin .cache/e2e

##@ Test

.PHONY: test
test: setup test-assets test-unit test-system test-e2e ## Everything, real guests included; needs root

.PHONY: test-unit
test-unit: ## Unit and script tests with the race detector; no root, no QEMU
	CGO_ENABLED=1 $(GO) test -race ./...

.PHONY: test-system
test-system: test-assets ## Tests of what touches Linux, QEMU and PostgreSQL; needs root
	scripts/test-system

.PHONY: test-e2e
test-e2e: test-assets build ## Real guests through the real API, in a network namespace of their own; needs root
	$(GO) test -tags system -count=1 -timeout 60m ./test/e2e

.PHONY: test-kvm
test-kvm: setup ## The same with Firecracker under Linux guests, on a host with KVM; needs root
	HATCH_TEST_VMM=firecracker $(MAKE) test-e2e

.PHONY: test-assets
test-assets: ## Download the kernel and the Firecracker that tests run into .cache/test
	scripts/test-assets
	scripts/test-firecracker

.PHONY: bench
bench: build test-assets ## Measure create, delete, sleep, wake, work in guests and lists; prints, judges nothing; needs root; PARTS="forks libvirt" for some
	$(GO) run ./test/bench $(PARTS)

##@ Check

.PHONY: lint
lint: ## golangci-lint and shellcheck
	"$$(scripts/tool golangci-lint)" run
	shellcheck .ci/run $$(grep -lE '^#!.*\b(ba)?sh\b' scripts/*)

.PHONY: fmt
fmt: ## Format the code as the linter wants it
	"$$(scripts/tool golangci-lint)" fmt

.PHONY: vuln
vuln: ## Look for known vulnerabilities in what we call
	scripts/vuln

.PHONY: help
help:
	@awk -F ':.*## ' \
		'/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
