#!/bin/bash
# What Bulla does, in a minute: two ordinary Debian container images, not changed or recompiled in
# any way, run in emulated SGX enclaves whose identity was predicted beforehand.
set -euo pipefail
cd "$(dirname "$0")/.."

bulla=${BULLA_BIN:-target/release/bulla}
images=${BULLA_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulla-tests}/images
port=${DEMO_PORT:-18000}
redis_port=${DEMO_REDIS_PORT:-16379}
pids=()
log=$(mktemp)
# KILL: the first process of a container ignores a SIGTERM that it has no handler for.
trap 'for pid in "${pids[@]}"; do kill -KILL "$pid" 2> /dev/null || true; done; rm -f "$log"' EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; }
fail() { echo "demo: $*" >&2; cat "$log" >&2; exit 1; }

await() { # PORT PID
    for _ in $(seq 300); do
        if (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; then return; fi
        kill -0 "$2" 2> /dev/null || fail "the container ended early"
        sleep 0.1
    done
    fail "nothing listens on port $1"
}

field() { sed -n "s/.*\"$1\":\"\([0-9a-f]*\)\".*/\1/p" | head -n 1; }

start() { # NAME PORT ARGUMENTS..: predicts, starts, compares
    local name=$1 port=$2 predicted reported
    shift 2
    show "bulla measure --layout dynamic $name.tar $*"
    predicted=$("$bulla" measure --json --layout dynamic "$images/$name.tar" "$@" |
        sed -n 's/.*"mrenclave": "\([0-9a-f]*\)".*/\1/p')
    echo "MRENCLAVE $predicted"
    show "bulla run -p $port $name.tar $*"
    "$bulla" run --json --platform emulated -p "$port" "$images/$name.tar" "$@" > "$log" 2>&1 &
    pids+=($!)
    await "$port" $!
    reported=$(field mrenclave < "$log")
    echo "MRENCLAVE $reported (reported by the running enclave)"
    [ "$predicted" = "$reported" ] || fail "the enclave is not the predicted one"
}

say "1. This machine"
show "bulla doctor"
"$bulla" doctor | head -n 3

say "2. A Debian image with Python, serving HTTP from an enclave"
start python "$port" python3 -m http.server "$port" --directory /etc
show "curl http://localhost:$port/os-release"
curl -sS "http://127.0.0.1:$port/os-release" | head -n 3

say "3. A Debian image with Redis, under redis-benchmark"
start redis "$redis_port" --port "$redis_port" --save ''
show "redis-benchmark -p $redis_port -t set,get -n 100000 -c 50 -q"
redis-benchmark -p "$redis_port" -t set,get -n 100000 -c 50 -q | tr '\r' '\n' | grep 'requests per'
show "redis-cli -p $redis_port set message 'kept in the enclave'; redis-cli get message"
redis-cli -p "$redis_port" set message 'kept in the enclave'
redis-cli -p "$redis_port" get message

say "4. Its attestation: a quote made in an enclave, verified from outside"
dir=$(mktemp -d)
show "bulla run python.tar sh -c 'echo -n hello > /dev/attestation/user_report_data; cat /dev/attestation/quote' > quote"
ask='echo -n hello > /dev/attestation/user_report_data; cat /dev/attestation/quote'
"$bulla" run --quiet --platform emulated "$images/python.tar" sh -c "$ask" > "$dir/quote" 2> "$log" ||
    fail "no quote"
mrenclave=$("$bulla" measure --json --layout dynamic "$images/python.tar" sh -c "$ask" |
    sed -n 's/.*"mrenclave": "\([0-9a-f]*\)".*/\1/p')
printf 'insecure_allow_emulated = true\n\n[[accept]]\nname = "the demo"\nmrenclave = "%s"\n' "$mrenclave" > "$dir/policy.toml"
show "cat policy.toml; bulla verify quote --policy policy.toml"
cat "$dir/policy.toml"
"$bulla" verify "$dir/quote" --policy "$dir/policy.toml" --offline || fail "the quote was refused"
rm -r "$dir"

say "Done. Nothing was installed into the images, and nothing in them was changed."
echo "The enclaves were EMULATED: the same measurements as on SGX hardware, but no secrecy."
