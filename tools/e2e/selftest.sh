#!/usr/bin/env bash
# Does the node do what the tests of the operator lean on, and does it leave nothing behind? Starts it, runs the story of
# a volume (written, snapshot, restored, changed blocks), kills what can be killed, takes it away, and compares the host.
#
# A node that runs already is taken down first: what is compared is the whole life of one.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tools/e2e/env.sh
. tools/e2e/env.sh
# shellcheck source=tools/e2e/objects.sh
. tools/e2e/objects.sh
# shellcheck source=tools/go.sh
. tools/go.sh
need_root e2e-node-test

passed=0
failed=0
# check NAME COMMAND…: the command says by its status whether the claim holds
check() {
    local name=$1 since
    shift
    since=$(date +%s%N)
    (set -e; "$@") >"$work/said" 2>&1 & # beside us, because within an `if` a failing line would not end it
    if wait $!; then
        passed=$((passed + 1))
        printf 'ok      %6.1f s  %s\n' "$((($(date +%s%N) - since) / 100000000))e-1" "$name"
    else
        failed=$((failed + 1))
        printf 'FAILED  %6.1f s  %s\n' "$((($(date +%s%N) - since) / 100000000))e-1" "$name"
        sed 's/^/        /' "$work/said" | tail -n 20
    fi
}

# What a host has that a node could leave: mounts, loop devices, links, routes, filters, control groups, processes, files.
host() {
    cut -d' ' -f3- /proc/self/mountinfo | sed 's/\(shared\|master\):[0-9]* //' | sort
    losetup --list --noheadings --raw --output NAME,BACK-FILE | sort
    ip -o link show | sed 's/^[0-9]*: //' | cut -d' ' -f1 | sort
    ip -4 route show table all | sort
    iptables-save 2>/dev/null | grep -v '^#' | sed 's/\[[0-9:]*\]//' || true
    find /sys/fs/cgroup -maxdepth 3 -type d -name "*$NODE*"
    find /run /var/run /var/log/containers /var/log/pods /var/lib/kubelet /var/lib/cni /etc/cni -maxdepth 1 2>/dev/null |
        grep -E "$NODE|kube|cni|containerd|pods" || true
    pgrep -af "$(basename "$parts")|containerd-shim|tools/e2e/node.sh" || true
}

snapshot() { # NAME CLAIM CLASS
    cat <<EOF
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: $1}
spec: {volumeSnapshotClassName: $3, source: {persistentVolumeClaimName: $2}}
EOF
}

ends() { kubectl wait --for=jsonpath="{.status.phase}=${2:-Succeeded}" --timeout=60s "pod/$1"; }
run_pod() { pod "$@" | kubectl apply -f - && ends "$1"; }
log_of() { kubectl logs "$1"; }

# The md5 of the whole device, as a pod sees it.
md5_of() { # CLAIM
    run_pod "md5-$1" "$1" Block 'md5sum </dev/data' >&2 && log_of "md5-$1" | cut -d' ' -f1 && kubectl delete pod "md5-$1" --wait >&2
}

driver_unit_tests() {
    cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/cluster
    find_go
    CGO_ENABLED=0 GOTOOLCHAIN=local nice -n "${TIDEMARK_BUILD_NICE:-0}" "$go" test -C tools/cluster -trimpath ./csi-file
}
block_story() {
    claim one 64 Block file | kubectl apply -f -
    kubectl wait --for=jsonpath='{.status.phase}=Bound' --timeout=30s pvc/one
    run_pod writer one Block 'dd if=/dev/urandom of=/dev/data bs=1M count=8 seek=3 conv=fsync,notrunc'
    kubectl delete pod writer --wait
    snapshot first one file | kubectl apply -f -
    kubectl wait --for=jsonpath='{.status.readyToUse}=true' --timeout=30s volumesnapshot/first
    md5_of one >"$work/md5"
}
restore_is_equal() {
    # The source goes on changing: what is restored is the point in time.
    run_pod again one Block 'dd if=/dev/urandom of=/dev/data bs=4096 count=3 seek=1000 conv=fsync,notrunc'
    kubectl delete pod again --wait
    claim two 64 Block file first | kubectl apply -f -
    kubectl wait --for=jsonpath='{.status.phase}=Bound' --timeout=30s pvc/two
    [ "$(md5_of two)" = "$(cat "$work/md5")" ] && [ "$(md5_of one)" != "$(cat "$work/md5")" ]
}
filesystem_story() {
    claim files 64 Filesystem file-wait | kubectl apply -f -
    run_pod files files Filesystem 'echo hello | dd of=/data/greeting conv=fsync'
    kubectl delete pod files --wait
    snapshot files files file | kubectl apply -f -
    kubectl wait --for=jsonpath='{.status.readyToUse}=true' --timeout=30s volumesnapshot/files
    claim files-back 64 Filesystem file-wait files | kubectl apply -f -
    run_pod files-back files-back Filesystem 'cat /data/greeting'
    [ "$(log_of files-back)" = hello ]
}
# As the operator does: the same snapshot again, by a static content, and a read-only block volume of it.
filesystem_as_block() {
    local content handle
    content=$(kubectl get volumesnapshot files -o jsonpath='{.status.boundVolumeSnapshotContentName}')
    handle=$(kubectl get volumesnapshotcontent "$content" -o jsonpath='{.status.snapshotHandle}')
    kubectl apply -f - <<EOF
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: exposed}
spec: {volumeSnapshotClassName: file, source: {volumeSnapshotContentName: exposed}}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {name: exposed}
spec:
  driver: $DRIVER
  deletionPolicy: Retain
  volumeSnapshotClassName: file
  source: {snapshotHandle: $handle}
  volumeSnapshotRef: {namespace: default, name: exposed}
EOF
    kubectl wait --for=jsonpath='{.status.readyToUse}=true' --timeout=30s volumesnapshot/exposed
    claim exposed 64 Block file exposed | kubectl apply -f -
    # The magic number of ext4, and no writing.
    pod exposed exposed Block 'dd if=/dev/data bs=2 skip=540 count=1 | od -An -tx1; echo no >/dev/data || true' |
        sed 's/claimName: exposed/&, readOnly: true/' | kubectl apply -f -
    ends exposed
    log_of exposed | tee /dev/stderr | grep -q '53 ef'
    log_of exposed | grep -q 'not permitted'
}
helm_installs() {
    mkdir -p "$work/chart/templates"
    printf 'apiVersion: v2\nname: one\nversion: 1.0.0\n' >"$work/chart/Chart.yaml"
    printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\n' >"$work/chart/templates/map.yaml"
    HELM_CACHE_HOME=$work HELM_CONFIG_HOME=$work HELM_DATA_HOME=$work helm install story "$work/chart" --wait
    kubectl get configmap story
}
slow_snapshot() { # NAME
    snapshot "$1" one file-slow | kubectl apply -f -
    kubectl wait --for=jsonpath='{.status.readyToUse}=false' --timeout=30s "volumesnapshot/$1"
    kubectl wait --for=jsonpath='{.status.readyToUse}=true' --timeout=60s "volumesnapshot/$1"
}
changed_blocks() {
    snapshot second one file | kubectl apply -f -
    kubectl wait --for=jsonpath='{.status.readyToUse}=true' --timeout=30s volumesnapshot/second
    if changed-blocks second first; then echo "an account without rights was answered"; return 1; fi
    kubectl create serviceaccount blocks
    kubectl create role blocks --verb=get --resource=volumesnapshots.snapshot.storage.k8s.io
    kubectl create rolebinding blocks --role=blocks --serviceaccount=default:blocks
    # The three blocks of 4096 bytes that restore_is_equal wrote, and of the whole volume what was ever written.
    [ "$(changed-blocks -account blocks second first)" = "$((1000 * 4096)) $((3 * 4096))" ]
    [ "$(changed-blocks -account blocks second)" = "$((3 << 20)) $((8 << 20))" ]
    [ -z "$(changed-blocks -account blocks second second)" ]
}
pod_reaches() { # NAME SCRIPT
    kubectl run "$1" --image="$BUSYBOX" --image-pull-policy=Never --restart=Never --command -- sh -ec "$2" && ends "$1"
}
host_server() {
    # A server of this host, as the S3 server of the tests is one.
    local server status=0
    mkdir -p "$work/www" && echo here >"$work/www/index"
    "$parts/bin/busybox" httpd -f -p "$HOST_IP:8099" -h "$work/www" &
    server=$!
    pod_reaches to-host "[ \"\$(wget -qO- http://$HOST_IP:8099/index)\" = here ]" || status=1
    kill $server
    return $status
}
pod_server() {
    kubectl run served --image="$BUSYBOX" --image-pull-policy=Never --restart=Never --command -- sh -c 'echo pod >/tmp/index; httpd -f -p 8080 -h /tmp'
    ends served Running
    local address
    address=$(kubectl get pod served -o jsonpath='{.status.podIP}')
    [ "$("$parts/bin/busybox" wget -qO- "http://$address:8080/index")" = pod ]
    pod_reaches to-pod "[ \"\$(wget -qO- http://$address:8080/index)\" = pod ]"
}
killed() { # PROGRAM COMMAND…: kill -9, and the command holds again
    local before
    before=$(tools/e2e/enter.sh cat "$STATE/pid/$1")
    tools/e2e/enter.sh kill -KILL "$before"
    shift
    "$@"
}
held() {
    touch "$RUN/hold/kube-scheduler"
    killed kube-scheduler true
    kubectl run held --image="$BUSYBOX" --image-pull-policy=Never --restart=Never --command -- true
    if kubectl wait --for=jsonpath='{.status.phase}=Succeeded' --timeout=4s pod/held; then return 1; fi
    rm "$RUN/hold/kube-scheduler"
    ends held
}
control_plane_killed() {
    killed etcd true
    killed kube-apiserver true
    for _ in $(seq 150); do
        if kubectl get --raw /readyz; then return; fi
        sleep 0.2
    done
    return 1
}
everything_deleted() {
    kubectl delete pods --all --wait --grace-period=1 && kubectl delete pvc --all --wait && kubectl delete volumesnapshots --all --wait &&
        kubectl delete volumesnapshotcontent exposed --wait && kubectl wait --for=delete pv --all --timeout=60s && [ -z "$(kubectl get volumesnapshotcontents,pv -o name)" ] &&
        [ -z "$(tools/e2e/enter.sh find "$STATE/pool/volumes" "$STATE/pool/snapshots" -mindepth 1)" ] &&
        [ "$(tools/e2e/enter.sh losetup --list --noheadings | grep -c "$STATE")" = 1 ]
}

as_before() { host >"$work/after" && diff "$work/before" "$work/after"; }
in_use() {
    claim left 64 Block file | kubectl apply -f -
    pod left left Block 'sleep 1000' | kubectl apply -f -
    ends left Running
}
started_after_a_kill() {
    local started
    tools/e2e/up.sh &
    started=$!
    until [ -s "$RUN/pid" ]; do sleep 0.1; done
    sleep 1
    kill -KILL "$started"
    tools/e2e/up.sh
}
down_in_use() {
    in_use
    tools/e2e/down.sh
    as_before
}
crash_in_use() {
    tools/e2e/up.sh
    in_use
    kill -KILL "$(cat "$RUN/pid")"
    tools/e2e/down.sh
    as_before
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
parts=${TIDEMARK_E2E_PARTS:-$(tools/e2e/parts.sh)}
export PATH=$parts/bin:$PATH KUBECONFIG=$RUN/kubeconfig
tools/e2e/down.sh
host >"$work/before"

check "the CSI driver's unit tests pass" driver_unit_tests
check "a start that is killed in the middle is taken away by the next one" started_after_a_kill
check "up again does nothing" tools/e2e/up.sh
check "a block volume is bound, written by a pod, and a snapshot of it is ready" block_story
check "a volume restored from the snapshot is equal" restore_is_equal
check "what changed between two snapshots is told exactly, to who may know it" changed_blocks
check "a filesystem volume (bound when its pod comes) is restored from a snapshot" filesystem_story
check "the snapshot of a filesystem volume is read as a read-only block device" filesystem_as_block
check "Helm installs a chart" helm_installs
check "a slow snapshot is not ready at first" slow_snapshot slow
check "a pod reaches a server of the host" host_server
check "host and pod reach a pod by its address" pod_server
check "a pod reaches the API server by the address of its service" \
    pod_reaches to-api "nc -w 5 \$KUBERNETES_SERVICE_HOST \$KUBERNETES_SERVICE_PORT </dev/null"
check "kubelet killed: pods run again" killed kubelet pod_reaches after-kubelet true
check "containerd killed: pods run again" killed containerd pod_reaches after-containerd true
check "a scheduler that is held stays away, and then it is back" held
check "etcd and API server killed: the API is back" control_plane_killed
check "the CSI driver killed: snapshots are taken again" killed csi-file slow_snapshot after-csi
check "everything deleted: nothing is left in the driver's pool" everything_deleted
check "taken away while a pod has a block volume, the node leaves nothing" down_in_use
check "down again does nothing" tools/e2e/down.sh
check "a node that crashed while a pod had a block volume leaves nothing after down" crash_in_use
echo
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
