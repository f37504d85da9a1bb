# The commands of this project. `make` alone only explains them.
# What a command needs and this machine lacks is installed by scripts/setup:
# system packages with apt, everything else below $(CARGO_TARGET_DIR)/tools.

export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
export MESH_TOOLS := $(CARGO_TARGET_DIR)/tools
export PATH := $(MESH_TOOLS)/bin:$(PATH)

CARGO ?= cargo
# Arguments for the program that a target starts: make up ARGS=--once
ARGS ?=

.PHONY: help build up test bench bench-registry lint fmt peers test-peers clean-tools

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build mosn, pilot and meshctl (debug)
	@scripts/setup build
	$(CARGO) build --workspace --bins

up: ## Run the whole mesh with demo applications on this machine (ARGS=--once: a fixed script of calls)
	@scripts/setup build
	$(CARGO) build -p meshctl
	"$(CARGO_TARGET_DIR)/debug/meshctl" up $(ARGS)

test: ## Install what the tests need and run all of them, real components included
	@scripts/setup test
	@scripts/test $(ARGS)

lint: ## Formatting, clippy with warnings denied, dependency rules
	@scripts/setup lint
	@scripts/lint

bench: ## Peers side by side; writes docs/performance.md and its plot (BENCH_SECONDS=n bounds each measurement)
	@scripts/setup bench
	$(CARGO) build --profile bench -p mosn -p loadgen --bins
	bench/run $(ARGS)

bench-registry: ## The registry's figures; writes docs/registry-performance.md (BENCH_INSTANCES=n and others bound it)
	@scripts/setup test bench
	$(CARGO) build --profile bench -p pilot -p mosn -p registryload --bins
	@tests/apps/build >/dev/null
	bench/run-registry $(ARGS)

fmt: ## Format the Rust code
	$(CARGO) fmt --all

peers: ## Build the peers that compile for long into a cache outside the checkout
	@scripts/setup peers
	@scripts/peers $(ARGS)

test-peers: ## Run the tests that need those peers (test binaries named peer_*)
	@scripts/peers --have || { echo "make test-peers: the peers are not there; make peers builds them"; exit 1; }
	@scripts/setup test test-peers
	@scripts/test --peers $(ARGS)

clean-tools: ## Remove the tools that scripts/setup put below the target folder
	rm -rf "$(MESH_TOOLS)"
