# Bulla's front door. `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
BULLA := target/release/bulla
TARGET := x86_64-unknown-linux-gnu
BENCH_RUNS ?= 5
export BULLA_BIN := $(CURDIR)/$(BULLA)

.PHONY: help
help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.PHONY: build
build: ## Build bulla, the enclave included (target/release/bulla)
	@scripts/packages.sh build
	@# Static, so that it runs in an image that has nothing else. Naming the target keeps the flag away
	@# from build scripts and procedural macros.
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --locked --package bulla-cli \
	    --target $(TARGET)
	@# Without symbols: what goes into every confidential image should be small. `strip` writes piecemeal,
	@# and the kernel then keeps the file in small pieces, too, which makes each start slower: so a copy.
	@mkdir -p $(dir $(BULLA))
	@for program in bulla bulla-run bulla-start; do \
	    strip -o target/$(TARGET)/$$program.stripped target/$(TARGET)/release/$$program && \
	    install -m 755 target/$(TARGET)/$$program.stripped $(dir $(BULLA))$$program && \
	    rm target/$(TARGET)/$$program.stripped || exit 1; done

.PHONY: images
images: ## Build the test images once (cached in ~/.cache/bulla-tests)
	@scripts/packages.sh images
	@tests/images/build.sh

.PHONY: demo
demo: build ## See unmodified Python and Redis images run in an emulated enclave
	@scripts/packages.sh images demo
	@tests/images/build.sh python redis
	@scripts/demo.sh

.PHONY: test
test: build ## Run all tests that fit into continuous integration
	@scripts/packages.sh images test
	@tests/images/build.sh
	@scripts/sgxs-tools.sh
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked --quiet -- -D warnings
	$(CARGO) clippy --package bulla-enclave --features enclave-bin --bins --locked --quiet -- -D warnings
	@# The fuzzing targets are outside the workspace: their pinned versions must not be left behind.
	$(CARGO) metadata --manifest-path fuzz/Cargo.toml --locked --format-version 1 > /dev/null
	scripts/test.sh

.PHONY: test-full
test-full: build ## Also run what takes longer: everything ignored by `make test`
	@scripts/packages.sh images test
	@tests/images/build.sh --all
	@tests/images/kubernetes.sh
	@tests/conformance/build-ltp.sh
	@scripts/sgxs-tools.sh
	scripts/test.sh --full

.PHONY: fuzz
fuzz: ## Fuzz every parser of untrusted input, FUZZ_SECONDS (60) each
	@scripts/packages.sh build fuzz
	scripts/fuzz.sh

.PHONY: bench
bench: build ## Measure enclave and native side by side; writes docs/manual/performance.md
	@scripts/packages.sh images test bench
	@tests/images/build.sh
	$(CARGO) run --release --locked --package bulla-bench -- --runs $(BENCH_RUNS)

.PHONY: check
check: ## Formatting, lints, licences and sources of dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy --package bulla-enclave --features enclave-bin --bins --locked -- -D warnings
	scripts/deny.sh

.PHONY: clean
clean: ## Remove what was built (not the cached test images)
	$(CARGO) clean
