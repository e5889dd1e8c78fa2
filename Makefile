# The project's commands. Each does its own set-up: `make test` on a fresh Debian or Ubuntu with a
# Rust toolchain needs nothing else (scripts/setup.sh installs the system packages).
#
# CARGO_TARGET_DIR is honoured; set NEXTEST=0 to run the tests with `cargo test`.

SHELL := /bin/bash
CARGO ?= cargo
NEXTEST ?= $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo 1 || echo 0)

.DEFAULT_GOAL := help
.PHONY: help setup check fmt clippy policy doc test parity bench-queue bench-files browser fuzz

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: ## install what is missing (Debian, Ubuntu); says what is missing elsewhere
	@scripts/setup.sh

check: setup fmt clippy policy doc ## formatting, lints, dependency policy, documentation

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

# Licences, banned crates and sources of every dependency, as deny.toml says.
policy:
	$(CARGO) test --locked --quiet -p kiln-policy

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet

test: setup ## every test
ifeq ($(NEXTEST),1)
	$(CARGO) nextest run --locked --workspace --no-fail-fast
	$(CARGO) test --locked --workspace --doc --no-fail-fast
else
	$(CARGO) test --locked --workspace --no-fail-fast
endif

parity: setup ## compare the model with the reference tensors (KILN_REFERENCE=<folder>: with others)
	@KILN_REFERENCE='$(if $(KILN_REFERENCE),$(abspath $(KILN_REFERENCE)))' \
		$(CARGO) test --locked --quiet -p kiln-parity --test parity

bench-queue: setup ## durable submits, status reads and claims against a real server and Postgres (ARGS="--seconds 10")
	$(CARGO) bench --locked -p kiln-tests --bench queue -- $(ARGS)

browser: ## the JavaScript client in a page of headless Chromium, which it installs; no part of `make test`
	@scripts/setup.sh chromium
	$(CARGO) test --locked -p kiln-tests --test browser -- --nocapture

bench-files: ## memory and throughput of uploads and downloads, beside nginx, which it installs (ARGS="--mib 1024 --rounds 3")
	@scripts/setup.sh nginx-light
	$(CARGO) bench --locked -p kiln-tests --bench files -- $(ARGS)

# Seconds for each target, and which ones.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= request wire
# Without the sanitizers: none of the code that is reached has a line of unsafe Rust of ours, and so the stable
# compiler will do.
FUZZ = $(CARGO) fuzz run --fuzz-dir tests/fuzz --sanitizer none

fuzz: ## fuzz what strangers send, FUZZ_SECONDS=600 for each of FUZZ_TARGETS="request wire"
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo 'cargo-fuzz is missing: cargo install --locked cargo-fuzz'; exit 1; }
	@python3 tests/fuzz/seed.py
	@for target in $(FUZZ_TARGETS); do \
		dictionary=tests/fuzz/corpus/$$target.dict; \
		$(FUZZ) $$target -- -max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1 \
			$$([ -f $$dictionary ] && echo -dict=$$dictionary) || exit 1; \
	done
