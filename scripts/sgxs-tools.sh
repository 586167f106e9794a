#!/bin/bash
# Installs Fortanix' sgxs-tools once, beside the test images: the independent implementation that
# measurements and signatures are compared with. The tests would do it themselves, each for itself.
set -euo pipefail

tools=${BULLA_TEST_CACHE:-$HOME/.cache/bulla-tests}/sgxs-tools
[ ! -x "$tools/bin/sgxs-sign" ] || exit 0
echo "installing sgxs-tools (about 3 minutes, once)" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
env -u RUSTFLAGS -u CARGO_TARGET_DIR "${CARGO:-cargo}" install sgxs-tools --version 0.10.0 --locked \
    --root "$tools" > "$log" 2>&1 || { tail -30 "$log" >&2; exit 1; }
