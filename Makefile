# Start with `make demo` and `make test`. Both install their dependencies with `make setup`.

SHELL := /bin/bash
export OMPI_ALLOW_RUN_AS_ROOT ?= 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1
DW_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dw
export PATH := $(PATH):$(DW_CACHE)/tools/bin
BIN := $(or $(CARGO_TARGET_DIR),target)/release
DW_GOLDENS ?= ../shared/goldens
# A second folder of golden data, if present. Not used if DW_GOLDENS is set by the user.
DW_GOLDENS_MORE ?= $(if $(filter file,$(origin DW_GOLDENS)),../shared/goldens-dcn-resnext)
GOLDENS = $(DW_GOLDENS)$(addprefix :,$(wildcard $(DW_GOLDENS_MORE)))
DW_DATA ?= ../shared/data

.PHONY: test-setup help setup build demo check test lint deps audit test-golden test-shared soak \
  bench gpu-kit gpu-acceptance clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: ## install Debian packages, libtorch and crates, unless already installed
	@tools/setup.sh

build: setup ## build release binaries in target/release (the first build takes 4-10 minutes)
	@echo "build: compiling release binaries"
	@cargo build --locked --release --workspace

demo: build ## generate a data set, train on two ranks, evaluate, render images: demo-out/
	@BIN=$(BIN) tools/demo.sh

check: ## check format, lints and unit tests of the changed crates (under a minute when warm)
	@tools/check.sh

test-setup:
	@tools/setup.sh tests

lint: setup ## check formatting and run clippy; warnings are errors
	@cargo fmt --all --check
	@cargo clippy --locked --release --workspace --all-targets -- -D warnings

deps: ## check licences, sources and bans of dependencies, and the spelling
	@tools/setup.sh deps
	@cargo deny --offline check --hide-inclusion-graph licenses bans sources
	@typos

audit: deps ## deps, and known vulnerabilities (downloads the advisory database)
	@cargo deny check --hide-inclusion-graph advisories

# Test processes run in parallel. Idle OpenMP threads would spin and take cores from the other
# processes: two such tests at once took three times as long.
test test-golden test-shared: export OMP_WAIT_POLICY ?= passive

test: test-setup lint build ## run all tests that need only this clone
	@env -u DW_DATA -u DW_GOLDENS cargo nextest run --locked --release --workspace
	@cargo test --locked --release --quiet --doc -p dw -p dw-metric

test-golden: build ## run the golden tests on DW_GOLDENS (and DW_GOLDENS_MORE), one line per case
	@DW_GOLDENS="$(GOLDENS)" cargo test --locked --release --test golden -- --test-threads 1 \
	  --nocapture

test-shared: test-setup build ## run the tests on golden data and photos in ../shared, if present
	@if [ -d "$(DW_GOLDENS)" ]; then \
	  DW_GOLDENS="$(GOLDENS)" cargo nextest run --locked --release --test golden && \
	  DW_GOLDENS="$(abspath $(DW_GOLDENS))" cargo nextest run --locked --release -p dw-metric \
	    --test coco_golden --test report_tide; \
	else echo "test-shared: skipped, no golden data in $(DW_GOLDENS)"; fi
	@if [ -d "$(DW_DATA)" ]; then \
	  DW_DATA="$(abspath $(DW_DATA))" cargo nextest run --locked --release --test shared; \
	else echo "test-shared: skipped, no photos in $(DW_DATA)"; fi

soak: build ## run the long checks of docs/soak.md (two hours)
	@BIN=$(BIN) DW_DATA="$(DW_DATA)" tools/soak.sh

bench: build ## benchmark speed and memory against other programs
	@BIN=$(BIN) DW_DATA="$(DW_DATA)" benches/run.sh

gpu-kit: setup ## pack the GPU acceptance for a machine without Rust: target/gpu-kit
	@tools/gpu-kit.sh

gpu-acceptance: gpu-kit ## check correctness and speed on a machine with one NVIDIA GPU
	@benches/gpu_acceptance.sh

clean: ## remove build and demo output of this clone, but not the caches of the machine
	@rm -rf target demo-out soak-out bench-out gpu-acceptance-out
