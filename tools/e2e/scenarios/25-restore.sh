# shellcheck shell=bash
# A Backup becomes a new claim: a block device, a filesystem that waits for its consumer, and a claim that names the Backup
# Waits, then says what a user would look for: bound, the class's own policy, nothing that names us.
restored() { # RESTORE CLAIM POLICY
    local volume
    if ! kubectl -n "$NS" wait --for=jsonpath='{.status.state}=Completed' --timeout=120s "tmr/$1" >>"$WORK/log"; then
        kubectl -n "$NS" describe tmr "$1"
        kubectl get pv,pvc -A
        fail "$1 is not Completed"
    fi
    kubectl -n "$NS" get tmr "$1"
    [ "$(kubectl -n "$NS" get pvc "$2" -o jsonpath='{.status.phase}')" = Bound ] || fail "$2 is not Bound, and $1 is Completed"
    volume=$(kubectl -n "$NS" get pvc "$2" -o jsonpath='{.spec.volumeName}')
    [ "$(kubectl get pv "$volume" -o jsonpath='{.spec.persistentVolumeReclaimPolicy}')" = "$3" ] || fail "$volume has another policy than $3"
    [ -z "$(kubectl get pv "$volume" -o jsonpath='{.metadata.labels.app\.kubernetes\.io/managed-by}')" ] || fail "$volume is still called ours"
    nothing_left || fail "$1 is Completed, and the above is left"
    tell "$1 is Completed, $2 is Bound, and nothing of ours is left"
}
random_volume data 48
backup blocks data
completed blocks
expected=$(said_by reads-data data Block 'sha256sum </dev/data')
restore to-block blocks data-again 'size: 64Mi'
restored to-block data-again Delete
[ "$(said_by reads-again data-again Block 'head -c 50331648 /dev/data | sha256sum')" = "$expected" ] || fail "data-again is not what data was"
tell "data-again is equal to data"

# Files, by a class whose volumes wait for their Pod, and into one whose volumes are retained.
claim files 64 Filesystem file-wait | kubectl apply -f - >>"$WORK/log"
said_by writes-files files Filesystem 'head -c 9000000 /dev/urandom >/data/blob; cd /data; md5sum blob >sum; sync'
backup tree files
completed tree
restore to-files tree files-again
restored to-files files-again Delete
said_by reads-files files-again Filesystem 'cd /data; md5sum -c sum'
tell "files-again mounts, and its files are those of files"
restore to-retained tree files-kept 'storageClassName: file-retain'
restored to-retained files-kept Retain

# A claim says itself which Backup it begins with, and waits for the Pod that wants it.
claim populated 64 Filesystem file-wait | sed 's/^spec:/&\n  dataSourceRef: {apiGroup: tidemark.dev, kind: Backup, name: tree}/' | kubectl apply -f - >>"$WORK/log"
said_by reads-populated populated Filesystem 'cd /data; md5sum -c sum'
nothing_left || fail "populated is Bound, and the above is left"
tell "populated mounts, and its files are those of files"

# A name that is taken is refused before anything is made.
restore taken blocks data
within 30 "the refusal of a claim that exists" kubectl -n "$NS" wait --for=jsonpath='{.status.state}=Error' --timeout=1s tmr/taken
kubectl -n "$NS" get tmr taken -o jsonpath='{.status.failure.message}{"\n"}'

# A Restore never owned what it filled; one that goes in mid-restore leaves nothing.
kubectl -n "$NS" delete tmr --all --wait --timeout=60s >>"$WORK/log"
[ "$(said_by reads-again data-again Block 'head -c 50331648 /dev/data | sha256sum')" = "$expected" ] || fail "data-again went with its Restore"
restore going blocks gone 'size: 64Mi'
within 60 "the worker that fills gone" kubectl -n "$NS" wait --for=jsonpath='{.status.state}=InProgress' --timeout=1s tmr/going
kubectl -n "$NS" delete tmr going --wait --timeout=60s >>"$WORK/log"
nothing_left || fail "going was deleted in mid-restore, and the above is left"
! kubectl -n "$NS" get pvc gone >>"$WORK/log" 2>&1 || fail "gone was made by a Restore that was deleted"
# The retained volume is the user's: it goes by hand.
volume=$(kubectl -n "$NS" get pvc files-kept -o jsonpath='{.spec.volumeName}')
kubectl patch pv "$volume" -p '{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}' >>"$WORK/log"
