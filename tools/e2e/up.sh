#!/usr/bin/env bash
# Starts the e2e node: a real single-node Kubernetes with a CSI driver that has snapshots, in namespaces of its own.
# Nothing of it is in the host's mounts, packet filters or kubeconfig; on the host there are /run/tidemark-e2e, a network
# link of that name with a route to the node's addresses, loop devices and control groups. down.sh takes all away.
#
# Repeated: does nothing if the node runs, and starts anew if a former start was cut off.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tools/e2e/env.sh
. tools/e2e/env.sh
need_root e2e-up

usage() {
    say "ready after ${1} s. To use it:"
    printf '  export KUBECONFIG=%s\n  kubectl get nodes\n' "$RUN/kubeconfig"
    say "kubectl, helm: $(cat "$RUN/parts")/bin   in the node: tools/e2e/enter.sh   logs: $RUN/log   end: make e2e-down"
}

# The programs of the system that we use, and Debian's packages of them.
tools() {
    local program missing=()
    local -A packages=([ip]=iproute2 [iptables]=iptables [openssl]=openssl [mkfs.xfs]=xfsprogs [mkfs.ext4]=e2fsprogs
        [unshare]=util-linux [nsenter]=util-linux [losetup]=mount [mount]=mount [blkid]=util-linux [flock]=util-linux [sysctl]=procps)
    for program in "${!packages[@]}"; do
        command -v "$program" >/dev/null || missing+=("${packages[$program]}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "Missing, and this is no Debian to install them from: ${missing[*]}"
    say "installing ${missing[*]}"
    { apt-get install -qy --no-install-recommends "${missing[@]}" || { apt-get update -q && apt-get install -qy --no-install-recommends "${missing[@]}"; }; } \
        >/run/lock/$NODE.apt 2>&1 || { cat /run/lock/$NODE.apt >&2; die "apt-get failed (above)"; }
    rm -f /run/lock/$NODE.apt
}

# Another network of the host may have our addresses: then we would cut it off.
addresses_are_free() {
    local taken
    taken=$(ip -4 route show root "$NET.0.0/16"; ip -4 route show match "$NET.0.0/16" | grep -v '^default' || true
        ip -4 -o address show to "$NET.0.0/16")
    [ -z "$taken" ] || die "The addresses $NET.0.0/16 are in use here ($taken): set TIDEMARK_E2E_NET, for example to 10.214"
}

busybox_image() {
    local tree=$RUN/busybox link
    mkdir -p "$tree/bin" "$tree/tmp" "$tree/etc"
    for link in $("$parts/bin/busybox" --list); do ln -s busybox "$tree/bin/$link"; done
    cp --remove-destination "$parts/bin/busybox" "$tree/bin/" # it names itself too
    printf 'root:x:0:0::/:/bin/sh\n' >"$tree/etc/passwd"
    # It is also the image of the pods' sandboxes, which have nothing to do.
    tools/e2e/oci.sh "$BUSYBOX" "$tree" '["/bin/busybox","sleep","2147483647"]' "" >"$RUN/busybox.tar"
    rm -rf "$tree"
}

launch() {
    local pid
    # The shell notes its process id and becomes unshare; when that ends, by whatever, process 1 of the node does too.
    # shellcheck disable=SC2016
    setsid bash -c 'echo $$ >"$1"; exec unshare --mount --propagation private --net --pid --fork --kill-child --mount-proc "$2"' \
        _ "$RUN/pid" "$PWD/tools/e2e/node.sh" </dev/null >>"$RUN/log/node.log" 2>&1 9>&- &
    until pid=$(node_pid) && [ -n "$pid" ] && [ "$(readlink "/proc/$pid/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do
        kill -0 $! 2>/dev/null || { cat "$RUN/log/node.log" >&2; die "This system does not let us make namespaces (above)"; }
        sleep 0.05
    done
    ip link add "$LINK" type veth peer name eth0 netns "$pid"
    ip address add "$HOST_IP/24" dev "$LINK"
    ip link set "$LINK" up
    ip route add "$NET.0.0/16" via "$NODE_IP" dev "$LINK"
}

wait_until_ready() {
    local stage='' told='' since=$SECONDS
    while [ "$stage" != ready ]; do
        sleep 0.2
        stage=$(cat "$RUN/stage" 2>/dev/null || true)
        if [ "$stage" != "$told" ]; then say "$((SECONDS - since)) s  $stage"; told=$stage; fi
        case $stage in failed*) tail -n 15 "$RUN"/log/{node,waiting}.log >&2; return 1 ;; esac
        if [ -z "$(node_pid)" ] || [ $((SECONDS - since)) -gt 240 ]; then
            tail -n 15 "$RUN/log/node.log" >&2
            say "The node did not start"
            return 1
        fi
    done
}

tools
parts=${TIDEMARK_E2E_PARTS:-$(tools/e2e/parts.sh)}
lock
since=$SECONDS
if [ -n "$(node_pid)" ] && [ "$(cat "$RUN/stage" 2>/dev/null)" = ready ]; then
    say "the node runs already"
    usage 0
    exit
fi
tools/e2e/down.sh --locked
trap 'say "cut off: taking the node away"; tools/e2e/down.sh --locked; exit 130' INT TERM
addresses_are_free
mkdir -p "$RUN"/{log,hold}
echo "$parts" >"$RUN/parts"
tools/e2e/pki.sh "$RUN/pki"
install -m 600 "$RUN/pki/admin.kubeconfig" "$RUN/kubeconfig"
[ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID" "$RUN/kubeconfig"
busybox_image
launch
wait_until_ready || die "Its logs are in $RUN/log; make e2e-down takes it away"
usage $((SECONDS - since))
