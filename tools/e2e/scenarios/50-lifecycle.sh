# shellcheck shell=bash
# Upgrade, uninstall, and the loss of namespace, target and CRD, each while blocks go up: nothing lost, nothing stuck
steady='upload: {maxBytesPerSecond: 4Mi}'
roll() { install --set-string "operator.podAnnotations.scenario=$1" >>"$WORK/log" 2>&1 || fail "the chart could not be installed: $(tail -n 5 "$WORK/log")"; }
lets_go() { with_helm uninstall tidemark --namespace "$SYSTEM" --wait --timeout 60s >>"$WORK/log" 2>&1 || fail "the chart could not be uninstalled: $(tail -n 5 "$WORK/log")"; }
record_of() { find "$BUCKET"/backupstore/volumes/*/*/"$1"/backups -name '*.cfg' 2>/dev/null | wc -l; } # VOLUME
has_record() { [ "$(record_of "$1")" -gt 0 ]; }
has_finalizer() { [ -n "$(field "$1" '.metadata.finalizers[0]')" ]; }
gone() { local left; left=$(kubectl get "$@" --ignore-not-found -o name) && [ -z "$left" ]; }
# begin NAME: a volume and a Backup of it, of which blocks go up.
begin() { # NAME [LINE…]
    local name=$1
    shift
    random_volume "$name" 48
    backup "$name" "$name" "$steady" "$@"
    point_in_time "$name" >"$WORK/$NS.sum-$name"
    uploading "$name"
}
well() { restored_is "$1" "$(cat "$WORK/$NS.sum-$1")"; }

random_volume kept 48
backup kept kept
point_in_time kept >"$WORK/$NS.sum-kept"
completed kept
well kept

# --- Upgrade from the chart of the commit before

before=$WORK/before
mkdir -p "$before"
if git -c safe.directory='*' archive HEAD~1 charts/tidemark 2>>"$WORK/log" | tar -x -C "$before" 2>>"$WORK/log"; then
    CHART=$before/charts/tidemark roll before
else
    tell "the commit before is not in this checkout: the chart is upgraded from itself"
    roll before
fi
begin upgraded
pod=$(field upgraded .status.attempt.podUID)
tell "the chart of the commit before is upgraded to this one"
roll after
[ "$(field upgraded .status.attempt.podUID)/$(field upgraded .status.attempt.number)" = "$pod/1" ] || fail "the upgrade changed the worker"
schema() { kubectl get crd "$1.tidemark.dev" -o jsonpath='{.spec.versions[0].schema.openAPIV3Schema}' | sha256sum; }
for kind in backups restores clusterbackuptargets; do
    upgraded=$(schema $kind)
    kubectl apply --server-side --force-conflicts --dry-run=server -f "charts/tidemark/files/crds/tidemark.dev_$kind.yaml" \
        -o jsonpath='{.spec.versions[0].schema.openAPIV3Schema}' | sha256sum | grep -qxF -- "$upgraded" || fail "the CRD $kind was not upgraded with the chart"
done
completed upgraded
never_an_error upgraded
[ "$(field upgraded .status.attempt.number)" = 1 ] || fail "the upgrade cost the worker: attempt $(field upgraded .status.attempt.number)"
well upgraded

# --- Uninstalled while blocks go up: the worker goes on, and the next installation finds what it did

begin found
volume=$(field found .status.store.volume)
lets_go
tell "uninstalled; $(field found .status.progress.acknowledgedBlocks) blocks are known, $(blocks_of "$volume") in the bucket"
within 60 "the record, which the worker writes alone" has_record "$volume"
[ "$(field found .status.state)" = InProgress ] || fail "nobody is there, and found is $(field found .status.state)"
roll again
completed found
never_an_error found
well found

# --- Uninstalled for good: docs/cluster.md, Uninstalling

begin left
volume=$(field left .status.store.volume)
lets_go
kubectl -n "$NS" delete tmb left --wait=false >>"$WORK/log"
has_finalizer left || fail "left has no finalizer while its worker runs"
tell "uninstalled and deleted: its finalizer waits for an operator, and a person removes it"
ours_are='-l app.kubernetes.io/managed-by=tidemark'
# shellcheck disable=SC2086
{
    kubectl -n "$SYSTEM" delete jobs,secrets $ours_are --wait --timeout=60s
    kubectl -n "$SYSTEM" delete persistentvolumeclaims $ours_are --wait --timeout=60s
    kubectl -n "$SYSTEM" delete volumesnapshots $ours_are --wait --timeout=60s
    kubectl delete volumesnapshots -A $ours_are --wait --timeout=60s
    kubectl delete volumesnapshotcontents $ours_are --wait --timeout=60s
    kubectl -n "$NS" patch tmb left --type=merge -p '{"metadata":{"finalizers":null}}'
} >>"$WORK/log" 2>&1 || fail "docs/cluster.md's way out does not work: $(tail -n 5 "$WORK/log")"
within 30 "left gone" gone tmb left -n "$NS"
nothing_left || fail "left over after the way out (above)"
tell "it is gone, and nothing is left; $(blocks_of "$volume") blocks stay in the bucket until they are swept"
roll "for-good"

# --- The namespace goes, with Backups whose data was to go with them: nobody deleted those

outer=$NS NS=$NS-lost
kubectl create namespace "$NS" >>"$WORK/log"
within 20 "the service account of $NS" kubectl -n "$NS" get serviceaccount default
random_volume whole 48
backup whole whole 'deletionPolicy: Delete'
point_in_time whole >"$WORK/$NS.sum-whole"
completed whole
url_of whole >>"$WORK/log"
begin half 'deletionPolicy: Delete'
volume=$(field half .status.store.volume)
held=$(blocks_of "$volume")
kubectl delete namespace "$NS" --wait --timeout=120s >>"$WORK/log" 2>&1 || fail "namespace $NS is stuck: $(kubectl get namespace "$NS" -o jsonpath='{.status.conditions}')"
tell "the namespace is deleted while half is uploaded"
[ "$(blocks_of "$volume")" -ge "$held" ] || fail "of $held blocks in the bucket $(blocks_of "$volume") are left"
well whole
NS=$outer
nothing_left || fail "left over after the namespace went (above)"

# --- The target goes: what runs on it goes on, and it stays as long as a Backup names it

begin aimed
kubectl delete clusterbackuptarget s3-primary --wait=false >>"$WORK/log"
completed aimed
well aimed
reason=$(kubectl get clusterbackuptarget s3-primary -o jsonpath='{.status.conditions[?(@.type=="Ready")].reason}')
[ "$reason" = StillReferenced ] || fail "the target is deleted and referenced, and its Ready says ${reason:-nothing}"
for name in kept upgraded found aimed; do url_of $name >>"$WORK/log"; done
kubectl -n "$NS" delete tmb --all --wait --timeout=60s >>"$WORK/log"
within 30 "the target gone after its Backups" gone clusterbackuptarget s3-primary
tell "the target went with the last Backup that named it"
roll new-target # it makes the target again

# --- The CRD goes: the workers end, the objects go, the data stays

begin bare
volume=$(field bare .status.store.volume)
held=$(blocks_of "$volume")
kubectl delete crd backups.tidemark.dev --wait --timeout=120s >>"$WORK/log" 2>&1 || fail "the CRD is stuck: $(kubectl get crd backups.tidemark.dev -o jsonpath='{.status.conditions}')"
tell "the CRD of Backups is deleted while bare is uploaded"
nothing_left || fail "left over after the CRD went (above)"
[ "$(blocks_of "$volume")" -ge "$held" ] || fail "of $held blocks in the bucket $(blocks_of "$volume") are left"
roll new-crd # it brings the CRD back
backup anew bare
checksum=$(point_in_time anew)
completed anew
[ "$(field anew .status.progress.reusedBlocks)" -ge "$held" ] || fail "of $held blocks in the bucket only $(field anew .status.progress.reusedBlocks) were reused"
restored_is anew "$checksum"
for name in kept upgraded found aimed; do well $name; done
"$WORK/tidemark" verify s3://backups@us-east-1/ --endpoint "http://$STORE" --full >>"$WORK/log" 2>&1 ||
    fail "the bucket has damage: $(tail -n 5 "$WORK/log")"
tell "every backup in the bucket is whole, by tidemark verify --full"
