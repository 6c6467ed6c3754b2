# guestnet: `make demo` and `make test` are all a newcomer needs. Both install what they need (as root, by apt).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

.PHONY: help demo test test-otlp test-guests test-scale images deb deps nextest bench fuzz clean

help:
	@echo 'make demo          boot two VMs on guestnet in a lab and show what they see (KEEP=1: leave it running)'
	echo 'make test          formatting, lints, unit and integration tests, with real guests'
	echo 'make test-otlp     what needs the feature otlp: traces and metrics for an OpenTelemetry collector'
	echo 'make test-guests   the tests that boot or install whole distributions'
	echo 'make test-scale    4,000 guests on one host, 200 crashes in a storm of calls: under 15 minutes'
	echo 'make bench         every benchmark beside its peers; BENCHES=dhcp: one of them'
	echo 'make fuzz          TARGET=dhcp, packet, dns_query or dns_answer, for SECONDS=60'
	echo 'make images        all guest images'
	echo 'make deb           the Debian package, in target/debian'

deps:
	@packaging/install-deps

demo: deps
	@vm-images/build.sh cloud-kernel
	cargo build --quiet --bin guestnet --example demo
	cargo run --quiet --example demo

# Tests that boot or install a whole distribution.
GUEST_TESTS := test(/^(booted|package|validators)::/)

test: deps nextest
	@vm-images/build.sh initramfs uml cloud-kernel kernel
	cargo fmt --check
	cargo clippy --all-targets --quiet -- -D warnings
	cargo nextest run --no-fail-fast -E 'not $(GUEST_TESTS) and not test(/^scale::/)'

test-otlp: deps nextest
	@cargo clippy --features otlp --tests --quiet -- -D warnings
	cargo nextest run --no-fail-fast --features otlp --lib --test it -E 'test(/otlp::|telemetry::/)'

test-guests: deps nextest
	@vm-images/build.sh all validators systemd-root
	PROFILE=dev packaging/deb
	cargo nextest run --no-fail-fast -E '$(GUEST_TESTS)'

test-scale: deps nextest
	cargo nextest run --no-fail-fast --success-output final -E 'test(/^scale::/)'

images: deps
	@vm-images/build.sh all

deb: deps
	@packaging/deb

nextest:
	@command -v cargo-nextest >/dev/null || cargo install --locked cargo-nextest

BENCHES ?= bind dhcp dhcp-behaviour dns packet policy stats

bench:
	@for name in $(BENCHES); do bench/run $$name; done

# libFuzzer with a stable compiler: the instrumentation that cargo-fuzz asks for, for the target only, not for build scripts.
# What it finds new goes into target/fuzz-corpus, what breaks into the directory it is run in.
TARGET ?= dhcp
SECONDS ?= 60
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_FLAGS = --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks

fuzz: deps
	@mkdir -p target/fuzz-corpus/$(TARGET)
	RUSTFLAGS="$(FUZZ_FLAGS)" CARGO_TARGET_DIR=target/fuzz cargo run --release --manifest-path fuzz/Cargo.toml \
		--target $(HOST) --bin $(TARGET) -- -max_total_time=$(SECONDS) -max_len=1514 \
		target/fuzz-corpus/$(TARGET) fuzz/corpus/$(if $(filter packet,$(TARGET)),dhcp,$(TARGET))

clean:
	cargo clean
