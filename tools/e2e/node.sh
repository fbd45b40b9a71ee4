#!/usr/bin/env bash
# The node itself: process 1 of its own process, network and mount namespaces (started by up.sh, never by hand).
#
# It mounts what the node writes to, starts every program and starts it again when it ends, as an init system would.
# When this process ends the kernel ends all others, pods too, and takes mounts, links and packet filters away.
#
# $RUN/stage says how far it is. A program whose name is a file in $RUN/hold is not started again until that is removed.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tools/e2e/env.sh
. "$here/env.sh"
parts=$(cat "$RUN/parts")
export PATH=$parts/bin:$PATH KUBECONFIG=$RUN/kubeconfig CONTAINERD_ADDRESS=$STATE/containerd/socket CONTAINERD_NAMESPACE=k8s.io
pki=$RUN/pki
stage() { echo "$*" >"$RUN/stage.new" && mv "$RUN/stage.new" "$RUN/stage"; }
fail() { stage "failed: $*"; exit 1; }

# keep NAME COMMAND…
keep() {
    local name=$1 status
    shift
    while :; do
        while [ -e "$RUN/hold/$name" ]; do sleep 0.2; done
        "$@" >>"$RUN/log/$name.log" 2>&1 &
        echo $! >"$STATE/pid/$name"
        wait $!
        status=$?
        echo "$(date -u +%FT%TZ) $name ended with $status" >>"$RUN/log/node.log"
        sleep 0.5
    done &
}

# until_true SECONDS WHAT COMMAND…
until_true() {
    local until=$((SECONDS + $1)) what=$2
    shift 2
    stage "waiting for $what"
    until "$@" >"$RUN/log/waiting.log" 2>&1; do
        [ $SECONDS -lt $until ] || fail "waited in vain for $what"
        sleep 0.2
    done
}

must() { "$@" >>"$RUN/log/node.log" 2>&1 || fail "$*"; }

mounts() {
    # /run and /var are ours from here on: sockets, network namespaces and logs that programs put there by fixed names.
    # Through /mnt, because $RUN is the host's and is below /run.
    must mount -t tmpfs none /mnt
    must mkdir /mnt/run
    must mount --bind "$RUN" /mnt/run
    must mount -t tmpfs -o mode=755,size=75% "$NODE" /run
    mkdir "$RUN" "$STATE"
    mount --move /mnt/run "$RUN" # stdout is a file in $RUN all the time
    must umount /mnt
    mkdir -p "$STATE"/{pid,etcd,kubelet,containerd,cni,flexvolumes,pool,var/upper,var/work}
    must mount -t overlay -o "lowerdir=/var,upperdir=$STATE/var/upper,workdir=$STATE/var/work" overlay /var
    [ -x "$parts/bin/kubelet" ] || fail "$parts is not to be seen below the node's own /run and /var: set TIDEMARK_CACHE"
    must mount --make-rshared /run # The kubelet passes mounts on to pods.
    # The pool of the CSI driver: XFS, because its files can share blocks. It takes memory as it is written to, and
    # gives it back (discard).
    must truncate -s 16G "$STATE/pool.img"
    must mkfs.xfs -q -m reflink=1 "$STATE/pool.img"
    must mount -o loop,discard "$STATE/pool.img" "$STATE/pool"
    # down.sh finds our loop devices by this, even when nothing else is left of the node.
    losetup --associated "$STATE/pool.img" --noheadings --output BACK-MAJ:MIN,BACK-INO | xargs >"$RUN/pool"
}

network() {
    until_true 10 "the wire to the host" ip link show eth0
    must ip link set lo up
    must ip address add "$API_IP/32" dev lo
    must ip address add "$NODE_IP/24" dev eth0
    must ip link set eth0 up
    # Packets between pods of one bridge pass the packet filter only if somebody's setting says so.
    sysctl -qw net.bridge.bridge-nf-call-iptables=0 2>/dev/null
    cat >"$STATE/cni/10-bridge.conflist" <<EOF
{"cniVersion": "0.4.0", "name": "bridge", "plugins": [{"type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
 "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": "$STATE/cni/addresses", "ranges": [[{"subnet": "$NET.128.0/17"}]]}}]}
EOF
    echo "nameserver $HOST_IP" >"$STATE/resolv.conf"
}

control_plane() {
    keep etcd etcd --name "$NODE" --data-dir "$STATE/etcd" \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster "$NODE=http://127.0.0.1:2380"
    keep kube-apiserver kube-apiserver --etcd-servers http://127.0.0.1:2379 --bind-address "$API_IP" --secure-port 443 \
        --advertise-address "$API_IP" --service-cluster-ip-range "$NET.64.0/18" --allow-privileged=true \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --client-ca-file "$pki/ca.crt" \
        --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
        --kubelet-client-certificate "$pki/admin.crt" --kubelet-client-key "$pki/admin.key" \
        --kubelet-certificate-authority "$pki/ca.crt" --kubelet-preferred-address-types InternalIP \
        --service-account-issuer https://kubernetes.default.svc.cluster.local \
        --service-account-key-file "$pki/service-accounts.pub" --service-account-signing-key-file "$pki/service-accounts.key"
    keep kube-controller-manager kube-controller-manager --kubeconfig "$pki/kube-controller-manager.kubeconfig" \
        --leader-elect=false --use-service-account-credentials --bind-address 127.0.0.1 \
        --service-account-private-key-file "$pki/service-accounts.key" --root-ca-file "$pki/ca.crt" \
        --flex-volume-plugin-dir "$STATE/flexvolumes"
    keep kube-scheduler kube-scheduler --kubeconfig "$pki/kube-scheduler.kubeconfig" --leader-elect=false --bind-address 127.0.0.1
}

containers() {
    cat >"$STATE/containerd/config.toml" <<EOF
version = 2
root = "$STATE/containerd/root"
state = "$STATE/containerd/state"
[grpc]
  address = "$STATE/containerd/socket"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$BUSYBOX"
  disable_apparmor = true
  restrict_oom_score_adj = true
  device_ownership_from_security_context = ${TIDEMARK_E2E_DEVICE_OWNERSHIP:-false}
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "$parts/cni"
  conf_dir = "$STATE/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
EOF
    keep containerd containerd --config "$STATE/containerd/config.toml"
    until_true 30 containerd ctr version
    ctr images import "$RUN/busybox.tar" >>"$RUN/log/node.log" 2>&1 || fail "importing the image $BUSYBOX"
}

# A control group of our own below the root, so that down.sh can remove all of ours.
control_group() {
    local root=/sys/fs/cgroup controller controllers
    if [ -e $root/cgroup.controllers ]; then
        mkdir -p "$root/$CGROUP"
        read -ra controllers <$root/cgroup.controllers
        for controller in "${controllers[@]}"; do
            echo "+$controller" >$root/cgroup.subtree_control && echo "+$controller" >"$root/$CGROUP/cgroup.subtree_control"
        done 2>>"$RUN/log/node.log"
        return
    fi
    for controller in "$root"/*/; do
        [ ! -e "$controller/cgroup.procs" ] || mkdir -p "$controller/$CGROUP"
    done
    # In version 1 a new group has no processors until it is told which.
    for controller in cpus mems; do
        [ ! -e "$root/cpuset/$CGROUP" ] || cat "$root/cpuset/cpuset.$controller" >"$root/cpuset/$CGROUP/cpuset.$controller"
    done
}

kubelet_config() {
    cat >"$STATE/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $NODE_IP
containerRuntimeEndpoint: unix://$STATE/containerd/socket
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failCgroupV1: false
failSwapOn: false
makeIPTablesUtilChains: false
enforceNodeAllocatable: [pods]
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $pki/kubelet-server.crt
tlsPrivateKeyFile: $pki/kubelet-server.key
resolvConf: $STATE/resolv.conf
clusterDNS: [$HOST_IP]
clusterDomain: cluster.local
podLogsDir: $STATE/pod-logs
volumePluginDir: $STATE/flexvolumes
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
serializeImagePulls: false
EOF
}

csi() {
    local socket=$STATE/kubelet/plugins/$DRIVER/csi.sock
    keep csi-provisioner csi-provisioner --kubeconfig "$KUBECONFIG" --csi-address "$socket" --feature-gates Topology=true \
        --extra-create-metadata --retry-interval-max 10s
    keep csi-snapshotter csi-snapshotter --kubeconfig "$KUBECONFIG" --csi-address "$socket" --retry-interval-max 10s
    keep snapshot-controller snapshot-controller --kubeconfig "$KUBECONFIG" --retry-interval-max 10s
    keep csi-snapshot-metadata csi-snapshot-metadata -kubeconfig "$KUBECONFIG" -csi-address "$socket" -port $METADATA_PORT \
        -audience "$DRIVER" -tls-cert "$pki/metadata.crt" -tls-key "$pki/metadata.key" -http-endpoint 127.0.0.1:9809
}

# The CRDs first, and what needs them once they are served.
manifests() {
    kubectl apply --server-side -f "$parts/crds" &&
        kubectl wait --for=condition=Established --timeout=30s -f "$parts/crds" &&
        kubectl apply --server-side -f "$here/manifests" &&
        kubectl apply --server-side -f - <<EOF
apiVersion: cbt.storage.k8s.io/v1beta1
kind: SnapshotMetadataService
metadata: {name: $DRIVER}
spec: {address: "$NODE_IP:$METADATA_PORT", audience: $DRIVER, caCert: $(base64 -w0 "$pki/ca.crt")}
EOF
}

registered() { [ "$(kubectl get csinode "$NODE" -o jsonpath='{.spec.drivers[*].name}')" = $DRIVER ]; }

mounts
network
control_plane
control_group
containers
keep csi-file csi-file -root "$STATE/pool" -node "$NODE" -kubelet "$STATE/kubelet"
until_true 60 "the API server" kubectl get --raw /readyz
kubelet_config
keep kubelet kubelet --config "$STATE/kubelet.yaml" --kubeconfig "$pki/kubelet.kubeconfig" --root-dir "$STATE/kubelet" \
    --hostname-override "$NODE" --node-ip "$NODE_IP"
stage "installing the storage classes"
manifests >>"$RUN/log/node.log" 2>&1 || fail "installing CRDs and storage classes"
csi
until_true 60 "the CSI driver's registration" registered
until_true 60 "the node" kubectl wait --for=condition=Ready --timeout=1s "node/$NODE"
until_true 30 "the first service account" kubectl get serviceaccount default
stage ready
# As process 1: whatever loses its parent is ours to bury, which wait does.
while :; do wait; sleep 1; done
