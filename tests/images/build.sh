#!/bin/bash
# Builds the images that the application tests and the demo use, from Debian's packages.
#
#   build.sh [NAME..]        (default: those of `make test`)
#   build.sh --all           (those of `make test-full`)
#
# Each image NAME becomes, under $BULLA_TEST_CACHE/images (default ~/.cache/bulla-tests/images):
#   NAME.tar     a docker-archive, as `docker save` writes it
#   NAME.oci/    an OCI layout directory (the tag is `latest`)
#   NAME.rootfs/ the same files unpacked, for running the program natively in a chroot
# An image is built again only when its recipe (this script, its sources) changes.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
cache=${BULLA_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulla-tests}/images
mkdir -p "$cache"
names=(api busybox java micro postgresql programs python redis servers shell tools)
full=(languages mariadb services)

debian() { # PACKAGES OUT.tar: a minimal Debian with these packages, without documentation
    mmdebstrap --mode=root --variant=essential --quiet --include="$1" \
        --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --dpkgopt='force-unsafe-io' \
        --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/*' \
        bookworm "$2" > "$2.log" 2>&1 || { tail -20 "$2.log" >&2; return 1; }
    rm -f "$2.log"
}

pack() { # DIR OUT.tar: a directory as a layer
    tar --numeric-owner --owner=0 --group=0 --sort=name --mtime=@1700000000 -C "$1" -cf "$2" .
}

# Each recipe writes $work/rootfs.tar and sets `config`, the arguments of `umoci config`.
recipe_busybox() {
    mkdir -p "$work/root"/{bin,tmp,etc,proc,dev}
    cp /bin/busybox "$work/root/bin/busybox"
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$work/root/bin/$applet"
    done
    echo 'root:x:0:0:root:/:/bin/sh' > "$work/root/etc/passwd"
    echo 'root:x:0:' > "$work/root/etc/group"
    pack "$work/root" "$work/rootfs.tar"
    config=(--config.env PATH=/bin --config.cmd sh)
}

recipe_programs() {
    mkdir -p "$work/root"/{bin,lib,tmp}
    local out="$work/root/bin" src="$here/programs"
    for program in hello threads bench; do
        gcc -O2 -pthread -static -o "$out/$program-glibc-static" "$src/$program.c"
        musl-gcc -O2 -pthread -static -o "$out/$program-musl-static" "$src/$program.c"
        musl-gcc -O2 -pthread -o "$out/$program-musl" "$src/$program.c"
    done
    cp /lib/x86_64-linux-musl/libc.so "$work/root/lib/ld-musl-x86_64.so.1"
    for program in http bench faults; do
        CGO_ENABLED=0 GO111MODULE=off GOFLAGS= GOCACHE="$work/go" \
            go build -o "$out/$program-go" "$src/$program.go"
    done
    rustc --edition 2024 -O -C target-feature=+crt-static -C relocation-model=pie \
        -o "$out/hello-rust" "$src/hello.rs"
    pack "$work/root" "$work/rootfs.tar"
    config=(--config.entrypoint /bin/http-go --config.exposedports 8080/tcp)
}

recipe_api() {
    mkdir -p "$work/root"/{bin,tmp}
    CGO_ENABLED=0 GO111MODULE=off GOFLAGS= GOCACHE="$work/go" \
        go build -o "$work/root/bin/api" "$here/cluster/api.go"
    pack "$work/root" "$work/rootfs.tar"
    config=(--config.entrypoint /bin/api)
}

recipe_micro() {
    # Dynamic programs use this machine's own C library: tests/bench compares with it.
    mkdir -p "$work/root"/{bin,tmp,lib64,lib/x86_64-linux-gnu}
    local out="$work/root/bin" src="$here/micro"
    gcc -O2 -o "$out/micro-glibc" "$src/micro.c"
    gcc -O2 -static -o "$out/micro-glibc-static" "$src/micro.c"
    musl-gcc -O2 -idirafter /usr/include -idirafter /usr/include/x86_64-linux-gnu \
        -o "$out/micro-musl" "$src/micro.c"
    musl-gcc -O2 -static -idirafter /usr/include -idirafter /usr/include/x86_64-linux-gnu \
        -o "$out/micro-musl-static" "$src/micro.c"
    cp /lib/x86_64-linux-musl/libc.so "$work/root/lib/ld-musl-x86_64.so.1"
    cp /lib64/ld-linux-x86-64.so.2 "$work/root/lib64"
    cp /lib/x86_64-linux-gnu/libc.so.6 "$work/root/lib/x86_64-linux-gnu"
    CGO_ENABLED=0 GO111MODULE=off GOFLAGS= GOCACHE="$work/go" \
        go build -o "$out/micro-go" "$src/micro.go"
    pack "$work/root" "$work/rootfs.tar"
    config=(--config.cmd /bin/micro-glibc)
}

recipe_python() {
    debian python3,python3-flask "$work/rootfs.tar"
    config=(--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        --config.env LANG=C.UTF-8 --config.cmd python3)
}

recipe_redis() {
    debian redis-server "$work/rootfs.tar"
    config=(--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        --config.entrypoint redis-server --config.exposedports 6379/tcp
        --config.workingdir /var/lib/redis --config.volume /var/lib/redis)
}

recipe_postgresql() {
    debian postgresql-15 "$work/rootfs.tar"
    config=(--config.env PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin
        --config.env LANG=C.UTF-8 --config.cmd postgres --config.exposedports 5432/tcp)
}

recipe_mariadb() {
    debian mariadb-server "$work/rootfs.tar"
    config=(--config.cmd mariadbd --config.exposedports 3306/tcp)
}

recipe_servers() {
    debian python3-flask,gunicorn,nginx-light,memcached,sqlite3,libpython3.11-testsuite \
        "$work/rootfs.tar"
    config=(--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        --config.env LANG=C.UTF-8 --config.cmd bash)
}

recipe_java() {
    # The package's scripts want a directory for manual pages, which the exclusions take away.
    mmdebstrap() { command mmdebstrap --essential-hook='mkdir -p "$1"/usr/share/man/man1' "$@"; }
    debian openjdk-17-jdk-headless "$work/rootfs.tar"
    config=(--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        --config.env LANG=C.UTF-8 --config.cmd jshell)
}

recipe_shell() {
    debian git,make,gcc,libc6-dev,curl,openssl,procps,less,vim-tiny,python3,nodejs \
        "$work/rootfs.tar"
    config=(--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        --config.env LANG=C.UTF-8 --config.cmd bash)
}

# Further ordinary programs, for "does my image just run?".
recipe_languages() {
    debian ruby,perl,lua5.4,tcl,php-cli,golang-go,rustc,cmake,ninja-build,make,npm,g++,gdb,strace,sqlite3,xz-utils,zstd,bzip2,cpio,curl,procps,psmisc,iproute2,iputils-ping,net-tools,lsof,python3,nginx-light,php-fpm,erlang-base,openssl \
        "$work/rootfs.tar"
    config=(--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        --config.env LANG=C.UTF-8 --config.cmd bash)
}

recipe_services() {
    debian haproxy,squid,mosquitto,mosquitto-clients,etcd-server,etcd-client,prometheus,openssh-server,openssh-client,rsync,cron,postfix,apache2,dnsmasq-base,rabbitmq-server,curl,procps,python3,openssl \
        "$work/rootfs.tar"
    config=(--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        --config.env LANG=C.UTF-8 --config.cmd bash)
}

recipe_tools() {
    debian python3,python3-flask,redis-server,nginx-light,nodejs,gcc,libc6-dev "$work/rootfs.tar"
    mkdir -p "$work/extra/opt/bench"
    for program in hello threads bench; do
        gcc -O2 -pthread -o "$work/extra/opt/bench/$program" "$here/programs/$program.c"
    done
    tar --numeric-owner --owner=0 --group=0 -C "$work/extra" -rf "$work/rootfs.tar" ./opt/bench
    config=(--config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        --config.cmd bash)
}

build() { # NAME
    local name=$1 key config
    work= # for the trap, which runs after this function
    key=$(cat "$here/build.sh" "$here"/programs/* | sha256sum | cut -c1-16)
    # The big images depend on their own recipe only, so that editing a test program is cheap.
    case $name in
        java | languages | mariadb | postgresql | python | redis | services | servers | shell)
            key=$(declare -f debian "recipe_$name" | sha256sum | cut -c1-16) ;;
        api) key=$({ declare -f recipe_api; cat "$here"/cluster/*; } | sha256sum | cut -c1-16) ;;
        micro) key=$({ declare -f recipe_micro; cat "$here"/micro/*; } | sha256sum | cut -c1-16) ;;
        tools) key=$({ declare -f debian recipe_tools; cat "$here"/programs/*.c; } |
            sha256sum | cut -c1-16) ;;
    esac
    exec 9> "$cache/$name.lock"
    flock 9
    if [ "$(cat "$cache/$name.key" 2> /dev/null)" = "$key" ]; then return; fi
    local start=$SECONDS
    work=$(mktemp -d "$cache/.$name.XXXXXX")
    trap '[ -z "$work" ] || rm -rf "$work"' EXIT
    "recipe_$name"
    umoci init --layout "$work/oci"
    umoci new --image "$work/oci:latest"
    umoci raw add-layer --image "$work/oci:latest" "$work/rootfs.tar"
    umoci config --image "$work/oci:latest" --architecture amd64 --os linux "${config[@]}"
    umoci gc --layout "$work/oci" > /dev/null 2>&1
    skopeo --insecure-policy copy --quiet "oci:$work/oci:latest" \
        "docker-archive:$work/image.tar:bulla-test/$name:latest"
    mkdir "$work/rootfs"
    tar --numeric-owner --xattrs --xattrs-include='*' -C "$work/rootfs" -xpf "$work/rootfs.tar"
    rm -rf "$cache/$name.oci" "$cache/$name.rootfs"
    mv "$work/oci" "$cache/$name.oci"
    mv "$work/rootfs" "$cache/$name.rootfs"
    mv "$work/image.tar" "$cache/$name.tar"
    echo "$key" > "$cache/$name.key"
    echo "built $name in $((SECONDS - start)) s" >&2
}

[ $# -gt 0 ] || set -- "${names[@]}"
[ "$1" != --all ] || set -- "${names[@]}" "${full[@]}"
status=0
running=()
for name; do
    # Two at a time: unpacking packages is single-threaded.
    if [ ${#running[@]} -ge 2 ]; then wait "${running[0]}" || status=1; running=("${running[@]:1}"); fi
    (build "$name") &
    running+=($!)
done
for pid in "${running[@]}"; do wait "$pid" || status=1; done
exit $status
