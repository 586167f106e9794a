#!/bin/sh
# Builds the agent (crates/agent), a static program, and puts it beside bulla:
#   scripts/agent.sh [DIRECTORY]     default: target/release
# It becomes part of the measured configuration of containers that ask for it, so it depends on
# nothing but the sources, the lock file and the compiler.
set -eu
cd "$(dirname "$0")/.."
to=${1:-target/release}
here=$(pwd -P)
registry=${CARGO_HOME:-$HOME/.cargo}
target=x86_64-unknown-linux-gnu
RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$here=/bulla --remap-path-prefix=$registry=/cargo" \
CARGO_INCREMENTAL=0 \
CARGO_PROFILE_RELEASE_OPT_LEVEL=s CARGO_PROFILE_RELEASE_LTO=fat \
CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 CARGO_PROFILE_RELEASE_STRIP=symbols \
    cargo build --release --locked --package bulla-agent --target $target --target-dir target/bulla-agent
mkdir -p "$to"
cp "target/bulla-agent/$target/release/bulla-agent" "$to/bulla-agent"
