# shellcheck shell=bash
# What a stolen worker can do in cluster and bucket, pod security, and who waits: kubectl and Helm
slow='upload: {maxBytesPerSecond: 1Mi}'
worker_file() { tools/e2e/enter.sh cat "/proc/$pid/root$1"; }
# tidemark with the keys that are in the worker's Pod
as_worker() {
    AWS_ACCESS_KEY_ID=$(worker_file /etc/tidemark/credentials/AWS_ACCESS_KEY_ID) \
        AWS_SECRET_ACCESS_KEY=$(worker_file /etc/tidemark/credentials/AWS_SECRET_ACCESS_KEY) "$WORK/tidemark" "$@" --endpoint "http://$STORE" 2>&1
}
may() { kubectl auth can-i --list --no-headers -n "$1" --as "system:serviceaccount:$1:$2" --as-group system:serviceaccounts --as-group "system:serviceaccounts:$1" --as-group system:authenticated | sort; }

# --- Pod security: the namespace takes nothing below baseline, and operators and workers are made anew in it

kubectl label namespace "$SYSTEM" pod-security.kubernetes.io/enforce=baseline pod-security.kubernetes.io/enforce-version=latest >>"$WORK/log"
install --set-string operator.podAnnotations.scenario=baseline >>"$WORK/log" 2>&1 || fail "no operator under baseline: $(tail -n 5 "$WORK/log")"

outer=$NS NS=$NS-other
kubectl create namespace "$NS" >>"$WORK/log"
within 20 "the service account of $NS" kubectl -n "$NS" get serviceaccount default
random_volume theirs 16
backup theirs theirs
completed theirs
others=$(field theirs .status.store.volume)
NS=$outer

random_volume mine 48
backup mine mine "$slow"
checksum=$(point_in_time mine)
uploading mine
worker=$(worker_of mine)
pid=$(process_of "$worker")
tell "baseline: operators and workers are admitted"
warned=$(kubectl label --dry-run=server --overwrite namespace "$SYSTEM" pod-security.kubernetes.io/enforce=restricted 2>&1)
grep -q "^Warning: $worker" <<<"$warned" || fail "the worker, which is root, is no breach of restricted: $warned"
! grep -q '^Warning: tidemark-' <<<"$warned" || fail "the operators are: $warned"
tell "restricted: operators fit; workers are uid 0 without capabilities, unless worker.user is NonRoot"

# --- A worker is stolen: its process is ours. The cluster

status=$(tools/e2e/enter.sh cat "/proc/$pid/status")
for line in 'CapEff:	0000000000000000' 'CapBnd:	0000000000000000' 'NoNewPrivs:	1' 'Seccomp:	2'; do
    grep -qxF "$line" <<<"$status" || fail "the worker's process is not held: no '$line' in $status"
done
! tools/e2e/enter.sh grep -E 'serviceaccount|docker.sock|containerd.sock' "/proc/$pid/mounts" || fail "the worker has a way out (above)"
! tools/e2e/enter.sh cat "/proc/$pid/environ" | tr '\0' '\n' | grep -E 'AWS|TOKEN|SECRET' || fail "the worker's environment tells (above)"
if said=$(in_pod "$worker" kubectl --kubeconfig /dev/null --token made-up --server "https://$API_IP" --certificate-authority "$RUN/pki/ca.crt" get --raw "/api/v1/namespaces/$SYSTEM/secrets" 2>&1); then
    fail "with a token of its own making the API server answered the worker: $said"
fi
grep -qE 'Unauthorized|provide credentials|Forbidden|forbidden' <<<"$said" || fail "the worker was not refused but: $said"
kubectl -n "$NS" create serviceaccount nobody >>"$WORK/log"
[ "$(may "$SYSTEM" default)" = "$(may "$NS" nobody)" ] || fail "the workers' account may more than nobody: $(may "$SYSTEM" default)"
tell "in the cluster: no token, no capability, and its account may what every account may"

# --- The bucket: what its key opens, here all that this target has (docs/cluster.md)

as_worker ls s3://backups@us-east-1/ >"$WORK/seen" || fail "the keys in the worker do not open the bucket: $(cat "$WORK/seen")"
grep -q "$others" "$WORK/seen" || fail "the other tenant's volume $others is not seen: $(cat "$WORK/seen")"
tell "in the bucket: with one target for two tenants, the other's backups too"
# With a bucket and a key of its own for each tenant, it is the tenant's alone.
gateway() { "$(cat "$WORK/gateway")" admin --access "${STORE_KEYS[0]}" --secret "${STORE_KEYS[1]}" --endpoint-url "http://$STORE" "$@" >>"$WORK/log" 2>&1; }
gateway create-user --access tenant --secret e2e-secret-of-the-tenant --role user || fail "no user: $(tail -n 3 "$WORK/log")"
mkdir -p "$WORK/store/objects/tenant-only"
gateway change-bucket-owner --bucket tenant-only --owner tenant || fail "no bucket: $(tail -n 3 "$WORK/log")"
kubectl -n "$SYSTEM" create secret generic tenant --from-literal=AWS_ACCESS_KEY_ID=tenant --from-literal=AWS_SECRET_ACCESS_KEY=e2e-secret-of-the-tenant >>"$WORK/log"
target tenant | sed "s/bucket: backups/bucket: tenant-only/; s/secretName: s3-primary/secretName: tenant/; s/{from: All}/{from: Names, names: [$NS]}/; /default: true/d" |
    kubectl apply -f - >>"$WORK/log"
kubectl wait --for=condition=Ready --timeout=30s clusterbackuptarget/tenant >>"$WORK/log" || fail "the tenant's target is not ready: $(kubectl get clusterbackuptarget tenant -o jsonpath='{.status.conditions}')"
completed mine
restored_is mine "$checksum"
random_volume own 48
backup alone own "$slow" 'targetRef: {name: tenant}'
uploading alone
worker=$(worker_of alone)
pid=$(process_of "$worker")
as_worker ls s3://tenant-only@us-east-1/ >"$WORK/seen" || fail "the keys in the worker do not open its bucket: $(cat "$WORK/seen")"
! as_worker ls s3://backups@us-east-1/ >"$WORK/seen" || fail "the tenant's key opens the other bucket: $(cat "$WORK/seen")"
grep -q AccessDenied "$WORK/seen" || fail "the other bucket was not refused but: $(cat "$WORK/seen")"
tell "with a bucket and a key of its own: nothing but its own"

# --- Who waits

kubectl -n "$NS" wait tmb/alone --for=condition=Reconciling --timeout=5s >>"$WORK/log" || fail "alone is uploaded and not Reconciling"
! kubectl -n "$NS" wait tmb/alone --for=condition=Ready --timeout=1s >>"$WORK/log" 2>&1 || fail "alone is Ready while it is uploaded"
kubectl -n "$NS" patch tmb alone --type=merge -p '{"spec":{"cancel":true}}' >>"$WORK/log"
kubectl -n "$NS" wait tmb/alone --for=condition=Stalled --timeout=60s >>"$WORK/log" || fail "alone is cancelled and not Stalled"
is alone Cancelled || fail "alone is $(field alone .status.state)"

# A chart with a Backup in it.
mkdir -p "$WORK/shop/templates"
printf 'apiVersion: v2\nname: shop\nversion: 1.0.0\n' >"$WORK/shop/Chart.yaml"
cat >"$WORK/shop/templates/backup.yaml" <<'YAML'
apiVersion: tidemark.dev/v1alpha1
kind: Backup
metadata: {name: "{{ .Release.Name }}"}
spec:
  source: {persistentVolumeClaim: {name: mine}}
  targetRef: {name: "{{ .Values.target }}"}
  mode: Full
  upload: {maxBytesPerSecond: 8Mi}
YAML
with_helm install charted "$WORK/shop" -n "$NS" --set target=s3-primary --wait --timeout 120s >>"$WORK/log" 2>&1 ||
    fail "Helm did not wait for the Backup: $(tail -n 5 "$WORK/log")"
is charted Completed || fail "Helm waited, and the Backup is $(field charted .status.state)"
tell "helm install --wait returned when the Backup was Completed"
kubectl patch clusterbackuptarget tenant --type=merge -p '{"spec":{"allowedNamespaces":{"names":["somebody-else"]}}}' >>"$WORK/log"
at=$SECONDS
! with_helm install refused "$WORK/shop" -n "$NS" --set target=tenant --wait --timeout 120s >>"$WORK/log" 2>&1 || fail "Helm is content with a Backup that is refused"
[ $((SECONDS - at)) -lt 60 ] || fail "Helm waited $((SECONDS - at)) s for a Backup that is Stalled"
kubectl -n "$NS" wait tmb/refused --for=condition=Stalled --timeout=5s >>"$WORK/log" || fail "refused is $(field refused .status.conditions)"
tell "helm install --wait failed $((SECONDS - at)) s after a Backup that is not allowed: $(field refused .status.reason)"

with_helm uninstall charted refused -n "$NS" >>"$WORK/log" 2>&1
kubectl -n "$NS" delete tmb --all --wait --timeout=60s >>"$WORK/log"
kubectl delete clusterbackuptarget tenant --wait --timeout=60s >>"$WORK/log"
kubectl -n "$SYSTEM" delete secret tenant >>"$WORK/log"
kubectl delete namespace "$NS-other" --wait --timeout=90s >>"$WORK/log"
kubectl label namespace "$SYSTEM" pod-security.kubernetes.io/enforce- pod-security.kubernetes.io/enforce-version- >>"$WORK/log"
