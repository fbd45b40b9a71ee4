#!/usr/bin/env bash
# Runs a command in the node: its processes, network and mounts, with the node's programs on the PATH.
#
#   tools/e2e/enter.sh ctr images ls
#   tools/e2e/enter.sh sh -c 'kill -9 $(cat /run/node/pid/kubelet)'
#   tools/e2e/enter.sh iptables -I FORWARD -d 10.213.0.1 -j DROP
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tools/e2e/env.sh
. "$here/env.sh"
need_root e2e-up
pid=$(node_pid)
[ -n "$pid" ] || die "The node is not running: make e2e-up"
exec nsenter --mount="/proc/$pid/ns/mnt" --net="/proc/$pid/ns/net" --pid="/proc/$pid/ns/pid_for_children" \
    env PATH="$(cat "$RUN/parts")/bin:$PATH" KUBECONFIG="$RUN/kubeconfig" \
    CONTAINERD_ADDRESS=$STATE/containerd/socket CONTAINERD_NAMESPACE=k8s.io "$@"
