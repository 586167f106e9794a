#!/bin/bash
# Fuzzes the targets of fuzz/ for a bounded time:
#   scripts/fuzz.sh [TARGET…]          default: all; FUZZ_SECONDS each (60)
# Fails at the first input that a target cannot take; cargo-fuzz says where it is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${FUZZ_SECONDS:-60}
# The options that cargo-fuzz passes are unstable ones, which the stable compiler has too.
export RUSTC_BOOTSTRAP=1
tools=$PWD/target/fuzz-tools
if ! command -v cargo-fuzz > /dev/null && [ ! -x "$tools/bin/cargo-fuzz" ]; then
    cargo install --quiet --locked --root "$tools" cargo-fuzz
fi
export PATH=$tools/bin:$PATH CARGO_TARGET_DIR=$PWD/target/fuzz
cd fuzz
(unset RUSTC_BOOTSTRAP; cargo run --quiet --release --bin seeds)
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list --fuzz-dir . | grep -v '^seeds$')
for target in "${targets[@]}"; do
    echo "== $target"
    mkdir -p "corpus/$target"
    cargo fuzz run --fuzz-dir . "$target" -- -max_total_time="$seconds" -timeout=20 \
        -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 -verbosity=0
done
echo "${#targets[@]} targets, $seconds seconds each: nothing found"
