#!/bin/bash
# Runs the workspace's tests and closes with one plain line, "N passed, N failed".
#   test.sh [--full]       --full: those that take long, too
set -uo pipefail
cd "$(dirname "$0")/.."

# What the tests convert goes into a cache of their own, which stays small and is kept between runs.
tests=${BULLA_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulla-tests}
export BULLA_CACHE=${BULLA_CACHE:-$tests/cache} BULLA_CACHE_LIMIT=${BULLA_CACHE_LIMIT:-4G}

full=()
tests_full=()
if [ "$*" != "" ] && [ "$*" != --full ]; then
    echo "usage: test.sh [--full]; for single tests use cargo nextest run" >&2
    exit 2
fi
if [ "${1:-}" = --full ]; then
    full=(--profile full --run-ignored all)
    # Without what measures: it wants a quiet machine.
    tests_full=(-- --include-ignored --skip speed --skip activations_status_and_memory)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0
failed=0

if cargo nextest --version > /dev/null 2>&1; then
    cargo nextest run --workspace --locked --no-fail-fast --color never \
        --status-level slow --final-status-level fail "${full[@]}" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    # Summary [ 12.3s] 42 tests run: 41 passed (1 slow), 1 failed, 2 skipped
    summary=$(grep -E '^ *Summary ' "$log" | tail -n 1)
    count() { grep -oE "[0-9]+ $1" <<< "$summary" | head -n 1 | cut -d' ' -f1; }
    passed=$(count passed)
    failed=$(count failed)
    timed_out=$(count 'timed out')
    passed=${passed:-0}
    failed=$((${failed:-0} + ${timed_out:-0}))
else
    cargo test --workspace --locked --no-fail-fast "${tests_full[@]}" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    # test result: ok. 12 passed; 0 failed; …
    while read -r ok bad; do
        passed=$((passed + ok))
        failed=$((failed + bad))
    done < <(sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed;.*/\1 \2/p' "$log")
fi

# A build that failed ran no test at all: that is a failure too.
if [ "$status" != 0 ] && [ "$failed" = 0 ]; then failed=1; fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
