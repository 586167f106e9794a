#!/bin/bash
# Fuzzes the targets of fuzz/ for a bounded time:
#   scripts/fuzz.sh [TARGET…]          default: all; FUZZ_SECONDS each (60)
# Fails at the first input that a target cannot take, and says where it is kept. Needs no other
# compiler than the one that builds everything, and a C++ compiler for libFuzzer itself.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${FUZZ_SECONDS:-60}
export CARGO_TARGET_DIR=$(realpath ..)/target/fuzz
# For the target only, not for build scripts: counters at each edge, and what is compared.
# The parsers are safe Rust, so no sanitizer slows them down.
triple=x86_64-unknown-linux-gnu
coverage="-Cpasses=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    coverage+=" -Cllvm-args=-sanitizer-coverage-$option"
done
mapfile -t all < <(cd fuzz_targets && ls -- *.rs | sed 's/\.rs$//')
targets=("$@")
[ $# -gt 0 ] || targets=("${all[@]}")
build=(--bin seeds)
for target in "${targets[@]}"; do
    build+=(--bin "$target")
done
CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS=$coverage \
    cargo build --quiet --release --locked --target "$triple" "${build[@]}"
"$CARGO_TARGET_DIR/$triple/release/seeds" > /dev/null 2>&1
mkdir -p artifacts
for target in "${targets[@]}"; do
    log=$CARGO_TARGET_DIR/$target.log
    # What it finds goes to the first directory; the seeds stay as they are.
    mkdir -p "corpus/$target" "seeds/$target"
    if ! RUST_BACKTRACE=1 "$CARGO_TARGET_DIR/$triple/release/$target" "corpus/$target" "seeds/$target" \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=65536 \
        -artifact_prefix="artifacts/$target-" -print_final_stats=1 -verbosity=0 > "$log" 2>&1; then
        tail -n 60 "$log"
        echo "$target: an input that it cannot take; see $log and fuzz/artifacts" >&2
        exit 1
    fi
    count=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    printf '%-22s %9s executions, nothing found\n' "$target" "$count"
done
