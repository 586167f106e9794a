#!/bin/bash
# Builds the Linux Test Project and a root file system that holds it, once, outside the checkout.
#
#   build-ltp.sh [SOURCE]
#
# SOURCE is an unpacked LTP, a git directory (bare or not) or an address to clone; the default is
# $BULLA_LTP_SOURCE, else https://github.com/linux-test-project/ltp. The result is
# $BULLA_TEST_CACHE/ltp/root (default ~/.cache/bulla-tests/ltp/root): Debian's essential packages
# with LTP's programs in /opt/ltp. About ten minutes on two cores; nothing is done where it exists.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
source=${1:-${BULLA_LTP_SOURCE:-https://github.com/linux-test-project/ltp}}
cache=${BULLA_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulla-tests}/ltp
mkdir -p "$cache"
exec 9> "$cache/lock"
flock 9
[ ! -e "$cache/root/opt/ltp/ready" ] || { echo "LTP is ready in $cache/root"; exit 0; }

"$here/../../scripts/packages.sh" images conformance
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
src=$work/src
mkdir "$src"
if [ -e "$source/configure.ac" ]; then
    cp -a "$source/." "$src"
elif [ -d "$source" ]; then
    git -C "$source" archive HEAD | tar -x -C "$src"
else
    git clone --quiet --depth 1 "$source" "$src"
fi

echo "building LTP (log: $cache/build.log)" >&2
{
    cd "$src"
    make autotools
    ./configure --prefix="$work/ltp" --without-modules
    make -j"$(nproc)" lib-all libs-all
    for part in kernel/syscalls kernel/fs kernel/io kernel/mem kernel/pty kernel/sched \
        kernel/security network/lib6 network/nfsv4/locks commands cve misc/math lib; do
        make -j"$(nproc)" -C "testcases/$part"
        make -C "testcases/$part" install
    done
    make -C runtest install
    # Symbols of the debugger would make every start slower.
    find "$work/ltp/testcases/bin" -type f -exec strip -g {} + 2> /dev/null || true
} > "$cache/build.log" 2>&1 || { tail -20 "$cache/build.log" >&2; exit 1; }

mmdebstrap --mode=root --variant=essential --quiet \
    --include=libaio1,libcap2,libkeyutils1,libnuma1,libacl1,procps \
    --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='force-unsafe-io' \
    --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/*' \
    bookworm "$work/root" >> "$cache/build.log" 2>&1 || { tail -20 "$cache/build.log" >&2; exit 1; }
mkdir -p "$work/root/opt"
mv "$work/ltp" "$work/root/opt/ltp"
touch "$work/root/opt/ltp/ready"
rm -rf "$cache/root"
mv "$work/root" "$cache/root"
echo "LTP is ready in $cache/root"
