#!/bin/bash
# Builds a real Kubernetes API server once, outside the checkout, for the tests of the store.
#
#   kubernetes.sh
#
# The source is Debian's (package `kubernetes`, 1.20, fetched by apt, which checks it against Debian's
# signed index), the compiler Debian's Go. The result is $BULLA_TEST_CACHE/kubernetes/kube-apiserver
# (default ~/.cache/bulla-tests/kubernetes). Some minutes on two cores; nothing is done where it is.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${BULLA_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulla-tests}/kubernetes
mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9
[ ! -x "$cache/kube-apiserver" ] || exit 0

"$here/../../scripts/packages.sh" kubernetes
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/go/src/k8s.io/kubernetes
mkdir -p "$work/apt/lists/partial" "$work/apt/parts" "${tree%/*}"
# A list of sources of its own: the machine's stays as it is.
cat > "$work/apt/parts/debian.sources" << END
Types: deb-src
URIs: http://deb.debian.org/debian
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
apt() {
    apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/apt/parts" \
        -o "Dir::State::lists=$work/apt/lists" -o APT::Sandbox::User=root "$@"
}

build() {
    cd "$work"
    apt update
    apt source --download-only kubernetes
    # apt has checked the hashes.
    dpkg-source --no-check -x kubernetes_*.dsc "$tree"
    rm -rf kubernetes_* apt
    cd "$tree"
    # The reflect2 of that time does not know the tables of today's Go; Debian's does.
    rm -rf vendor/github.com/modern-go/reflect2
    cp -r /usr/share/gocode/src/github.com/modern-go/reflect2 vendor/github.com/modern-go/reflect2
    export GOPATH=$work/go GOCACHE=$work/cache GO111MODULE=off GOFLAGS= CGO_ENABLED=0 GOMAXPROCS=2
    go build -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
    # The descriptions of all types are generated; the server does not start without.
    packages=$(grep -rl --include='*.go' '^// *+k8s:openapi-gen=' pkg staging/src/k8s.io \
        | grep -v -e /code-generator/ -e /sample- | xargs -n 1 dirname | LC_ALL=C sort -u \
        | sed -e 's,^staging/src/,vendor/,' -e 's,^,k8s.io/kubernetes/,' | paste -sd ,)
    "$work/openapi-gen" --logtostderr -i "$packages" -p k8s.io/kubernetes/pkg/generated/openapi \
        -O zz_generated.openapi -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt \
        -r "$work/violations"
    go build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v1.20.2 \
        -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=20" \
        -o "$work/kube-apiserver" ./cmd/kube-apiserver
}
echo "building kube-apiserver (log: $cache/build.log)" >&2
( build ) > "$cache/build.log" 2>&1 || { tail -20 "$cache/build.log" >&2; exit 1; }
mv "$work/kube-apiserver" "$cache/kube-apiserver"
