# shellcheck shell=bash
# A Backup of a claim that a Pod writes to all the time, restored equal; then one of a filesystem volume
kubectl get clusterbackuptargets
random_volume data 64
pod writer data Block 'while true; do dd if=/dev/urandom of=/dev/data bs=4096 count=16 seek=1000 conv=fsync,notrunc 2>/dev/null; sleep 0.2; done' |
    kubectl apply -f - >>"$WORK/log"
kubectl -n "$NS" wait --for=jsonpath='{.status.phase}=Running' --timeout=30s pod/writer >>"$WORK/log"
tell "a Pod writes to the claim data"
backup first data 'upload: {maxBytesPerSecond: 16Mi}'
checksum=$(point_in_time first)
completed first
kubectl -n "$NS" get tmb
nothing_left || fail "it is Completed, and the above is left"
tell "it is Completed, and nothing of it is left in the cluster"
restored_is first "$checksum"

backup second data
completed second
reused=$(field second .status.progress.reusedBlocks)
[ "$reused" -ge 30 ] || fail "the second Backup reused $reused blocks of 32"
tell "the second one reused $reused of $(field second .status.progress.totalBlocks) blocks"
kubectl -n "$NS" delete pod writer --wait >>"$WORK/log"

# A filesystem, on a claim that is bound when its Pod comes, with a storage class that retains its volumes.
claim files 64 Filesystem file-wait | kubectl apply -f - >>"$WORK/log"
pod files files Filesystem 'head -c 9000000 /dev/urandom >/data/blob; md5sum /data/blob >/data/sum; sync; sleep 1000' | kubectl apply -f - >>"$WORK/log"
kubectl -n "$NS" wait --for=jsonpath='{.status.phase}=Running' --timeout=30s pod/files >>"$WORK/log"
within 20 "the files" kubectl -n "$NS" exec files -- md5sum -c /data/sum
kubectl -n "$NS" exec files -- sync
backup filesystem files 'upload: {maxBytesPerSecond: 4Mi}'
checksum=$(point_in_time filesystem)
completed filesystem
restored_is filesystem "$checksum"
