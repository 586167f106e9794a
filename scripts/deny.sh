#!/bin/bash
# Checks licences, bans and sources of dependencies (deny.toml). The advisory database is not
# consulted: it cannot be fetched where this project is built.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=${BULLA_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulla-tests}/tools
PATH="$tools/bin:$PATH"
if ! command -v cargo-deny > /dev/null; then
    echo "installing cargo-deny into $tools" >&2
    cargo install --quiet --locked --root "$tools" cargo-deny
fi
cargo deny --locked check bans licenses sources
