# shellcheck shell=bash disable=SC2034 # used by those who source it
# Sourced by the scripts of the e2e node: where things are, and how to tell whether the node runs.

NODE=${TIDEMARK_E2E_NODE:-tidemark-e2e}
RUN=/run/$NODE    # all that the node has on the host: logs, kubeconfig, certificates, pid
STATE=/run/node   # in the node's mount namespace only, in memory: etcd, images, volumes
LINK=$NODE        # the host's end of the wire to the node
CGROUP=$NODE      # below every controller's root
DRIVER=file.csi.tidemark.dev
BUSYBOX=tidemark.local/busybox:1

# One /16 of private addresses: the host is NET.0.1, the node NET.0.2, services NET.64.0/18, pods NET.128.0/17.
NET=${TIDEMARK_E2E_NET:-10.213}
HOST_IP=$NET.0.1
NODE_IP=$NET.0.2
API_IP=$NET.64.1
METADATA_PORT=6443

say() { printf 'e2e  %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

need_root() {
    [ "$(id -u)" -eq 0 ] || die "A node has namespaces, mounts and loop devices: this needs root. Run: sudo -E make $1"
}

# The process that holds the node's namespaces; prints nothing when there is no node.
node_pid() {
    local pid
    pid=$(cat "$RUN/pid" 2>/dev/null) || return 0
    # A pid is used again after a crash or a reboot: ours calls this directory's script.
    if { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -q "^unshare .*/tools/e2e/node.sh"; then echo "$pid"; fi
}

# One at a time: up, down and whoever else changes the node. The lock ends with the process.
lock() {
    mkdir -p /run/lock
    exec 9>"/run/lock/$NODE"
    flock -n 9 || { say "another up or down is at work: waiting for it"; flock 9; }
}
