# The two commands to know: `make demo` and `make test`. Everything they need is fetched once per machine by `make setup`.

SHELL := /bin/bash
export OMPI_ALLOW_RUN_AS_ROOT ?= 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM ?= 1
DW_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dw
export PATH := $(PATH):$(DW_CACHE)/tools/bin
BIN := $(or $(CARGO_TARGET_DIR),target)/release
DW_GOLDENS ?= ../shared/goldens
# A second folder, where it exists; with a DW_GOLDENS of one's own, only that one is read.
DW_GOLDENS_MORE ?= $(if $(filter file,$(origin DW_GOLDENS)),../shared/goldens-dcn-resnext)
GOLDENS = $(DW_GOLDENS)$(addprefix :,$(wildcard $(DW_GOLDENS_MORE)))
DW_DATA ?= ../shared/data

.PHONY: test-setup help setup build demo test lint test-golden test-shared soak bench gpu-kit gpu-acceptance clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

setup: ## Debian packages, libtorch, crates: once per machine, does nothing the second time
	@tools/setup.sh

build: setup ## release binaries in target/release (the first time 4-10 minutes: libtorch's bindings)
	@echo "build: compiling release binaries"
	@cargo build --locked --release --workspace

demo: build ## draw a data set, train on two ranks, evaluate, draw pictures: demo-out/
	@BIN=$(BIN) tools/demo.sh

test-setup:
	@tools/setup.sh tests

lint: setup ## format and clippy, warnings are errors
	@cargo fmt --all --check
	@cargo clippy --locked --release --workspace --all-targets -- -D warnings

test: test-setup lint build ## everything that needs nothing beside this clone
	@env -u DW_DATA -u DW_GOLDENS cargo nextest run --locked --release --workspace

test-golden: build ## golden numbers below DW_GOLDENS (and DW_GOLDENS_MORE), one line a case and precision
	@DW_GOLDENS="$(GOLDENS)" cargo test --locked --release --test golden -- --test-threads 1 --nocapture

test-shared: test-setup build ## golden numbers and real photos below ../shared, where present
	@if [ -d "$(DW_GOLDENS)" ]; then DW_GOLDENS="$(GOLDENS)" cargo nextest run --locked --release --test golden; else echo "test-shared: no golden data in $(DW_GOLDENS)"; fi
	@if [ -d "$(DW_DATA)" ]; then DW_DATA="$(abspath $(DW_DATA))" cargo nextest run --locked --release --test shared; else echo "test-shared: no photos in $(DW_DATA)"; fi

soak: build ## long runs: over-fitting, faults, kills, SLURM, fuzzing (about 75 minutes)
	@BIN=$(BIN) DW_DATA="$(DW_DATA)" tools/soak.sh

bench: build ## speed against the peers, in one run
	@BIN=$(BIN) DW_DATA="$(DW_DATA)" benches/run.sh

gpu-kit: setup ## what the GPU acceptance needs on a machine without Rust: target/gpu-kit
	@tools/gpu-kit.sh

gpu-acceptance: gpu-kit ## on a machine with one NVIDIA GPU: correctness and speed, one table
	@benches/gpu_acceptance.sh

clean: ## remove this clone's build and demo results (the machine's caches stay)
	@rm -rf target demo-out soak-out bench-out gpu-acceptance-out
