#!/usr/bin/env bash
# Gets every program of the e2e node and prints the directory that holds them: bin/, cni/ and crds/.
#
# Kubernetes, the CSI controllers and Helm are built from the one pinned Go module in tools/cluster; etcd, containerd,
# runc, the CNI plugins and busybox are Debian's, unpacked and not installed. Everything lies below
# ${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/cluster, one directory per set of versions. Two runs at
# once do not build twice, and a run that is stopped leaves nothing half done.
#
# TIDEMARK_BUILD_JOBS=1 TIDEMARK_BUILD_NICE=19 leave the machine to others.
#
# stdout: the directory, and nothing else. stderr: what is being done.
set -euo pipefail
cd "$(dirname "$0")/../.."

pin() { awk '{ sub(/^require /, "") } $1 == "k8s.io/kubernetes" { print $2 }' "$1"; }
KUBERNETES=$(pin tools/cluster/go.mod)
# One program, many names: see tools/cluster/main.go.
NAMES=(kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl csi-snapshot-metadata changed-blocks)
MODULES=(
    github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner
    github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter
    github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller
    helm.sh/helm/v4/cmd/helm
)
CRDS=(github.com/kubernetes-csi/external-snapshotter/client/v8 github.com/kubernetes-csi/external-snapshot-metadata/client)
PACKAGES=(etcd-server containerd runc containernetworking-plugins busybox-static)

cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/cluster
key=$({ cat tools/e2e/parts.sh tools/go.sh tools/deb.sh tools/cluster/go.* tools/cluster/*.go tools/cluster/csi-file/*.go; uname -m; } |
    sha256sum | cut -c1-12)
final=$cache/kubernetes-$KUBERNETES-$key
work=$cache/.work-$$

say() { printf 'parts  %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# shellcheck source=tools/go.sh
. tools/go.sh
# shellcheck source=tools/deb.sh
. tools/deb.sh

take_debian() {
    local tree=$work/debian/tree
    deb_unpack "${PACKAGES[@]}"
    mv "$tree"/usr/bin/{etcd,containerd,containerd-shim-runc-v2,ctr} "$tree/usr/sbin/runc" "$tree/bin/busybox" "$work/bin/"
    mkdir "$work/cni"
    mv "$tree"/usr/lib/cni/{bridge,host-local,loopback} "$work/cni/"
    # What they are linked to is on every Debian (libc, and libseccomp by apt), but not on every system.
    for program in etcd containerd runc; do
        "$work/bin/$program" --version >/dev/null || die "Debian's $program does not run here (above)"
    done
    say "$(printf '%s ' "${PACKAGES[@]}"): done"
}

build() {
    local name crds
    find_go
    say "building Kubernetes $KUBERNETES, the CSI controllers and Helm with Go $(go_version "$go") (about 11 CPU minutes, once)"
    go_build tools/cluster "$work/bin/" "$(go_version_flags "$KUBERNETES")" . ./csi-file "${MODULES[@]}"
    for name in "${NAMES[@]}"; do ln -s cluster "$work/bin/$name"; done
    mkdir "$work/crds"
    for crds in "${CRDS[@]}"; do
        cp "$(GOTOOLCHAIN=local "$go" list -C tools/cluster -m -f '{{.Dir}}' "$crds")"/config/crd/*.k8s.io_*.yaml "$work/crds/"
    done
    chmod u+w "$work"/crds/*
}

[ "$(pin tools/kubernetes/go.mod)" = "$KUBERNETES" ] ||
    die "tools/kubernetes/go.mod pins Kubernetes $(pin tools/kubernetes/go.mod), tools/cluster/go.mod $KUBERNETES: make them equal"
if [ -d "$final" ]; then
    echo "$final"
    exit
fi
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock -n 9 || { say "another run is getting the parts: waiting for it"; flock 9; }
if [ ! -d "$final" ]; then
    trap 'jobs -p | xargs -r kill 2>/dev/null; rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    rm -rf "$cache"/.work-* # left by a run that was killed: we hold the lock
    mkdir -p "$work/bin"
    take_debian
    build
    rm -rf "$work"/debian "$work"/wheel "$work"/*.log "$work"/packages
    mv "$work" "$final"
fi
say "ready: $final"
echo "$final"
