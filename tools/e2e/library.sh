# shellcheck shell=bash
# What the scenarios are told with. Sourced by run.sh, and by each scenario, which runs as a process of its own.
#
# The law is looked at all the time: `backup` starts a watch of the namespace's Backups, which prints every change and
# compares it with the bucket: the status is read first and the objects are counted after, so acknowledged <= objects must hold.

# shellcheck source=tools/e2e/env.sh
. tools/e2e/env.sh
# shellcheck source=tools/e2e/objects.sh
. tools/e2e/objects.sh
# shellcheck source=tools/e2e/faults.sh
. tools/e2e/faults.sh
SYSTEM=tidemark-system
STORE=$HOST_IP:9000
STORE_KEYS=(e2e-writer e2e-secret-of-the-writer)
export WORK=${WORK:-$(mktemp -d "${TMPDIR:-/tmp}/tidemark-e2e.XXXXXX")}
BUCKET=$WORK/store/objects/backups
NS=${NS:-}
export KUBECONFIG=$RUN/kubeconfig
[ -z "${TIDEMARK_E2E_PARTS:-}" ] || export PATH=$TIDEMARK_E2E_PARTS/bin:$PATH
export AWS_ACCESS_KEY_ID=${STORE_KEYS[0]} AWS_SECRET_ACCESS_KEY=${STORE_KEYS[1]}

# --- Telling and waiting

tell() { printf '  %5.1f s  %s\n' "$((($(milliseconds) - BEGAN) / 100))e-1" "$*"; }
milliseconds() { echo $(($(date +%s%N) / 1000000)); }
BEGAN=$(milliseconds)
fail() { tell "WRONG: $*" >&2; exit 1; } # also heard where output is taken

# within SECONDS WHAT COMMAND…: until the command succeeds
within() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >>"$WORK/log" 2>&1; do
        [ $SECONDS -lt $end ] || fail "waited in vain for: $what"
        sleep 0.2
    done
}

# The same for what is over in a moment: asked all the time.
at_once() { # SECONDS WHAT COMMAND…
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" 2>>"$WORK/log"; do
        [ $SECONDS -lt $end ] || fail "waited in vain for: $what"
        sleep 0.02
    done
}

# --- The S3 server of this host, with a directory behind it

start_store() { # PROGRAM
    ! (exec 3<>"/dev/tcp/${STORE%:*}/${STORE#*:}") 2>/dev/null || die "Somebody listens on $STORE already: a former run with --keep?"
    mkdir -p "$WORK"/store/{objects/backups,metadata,accounts}
    # 9: the node's lock is not for those who live on.
    (cd "$WORK/store" && exec "$1" --port "$STORE" --access "${STORE_KEYS[0]}" --secret "${STORE_KEYS[1]}" --keep-alive --quiet \
        --access-log "$WORK/store/requests" --iam-dir "$WORK/store/accounts" posix --sidecar "$WORK/store/metadata" "$WORK/store/objects") \
        >>"$WORK/log" 2>&1 9>&- &
    echo $! >"$WORK/store.pid"
    local end=$((SECONDS + 30))
    until (exec 3<>"/dev/tcp/${STORE%:*}/${STORE#*:}") 2>/dev/null; do
        [ $SECONDS -lt $end ] || die "versitygw does not listen on $STORE: $(tail -n 3 "$WORK/log")"
        sleep 0.1
    done
}

# The blocks of a volume, in whichever bucket.
blocks_of() { { find "$WORK"/store/objects/*/backupstore/volumes/*/*/"$1"/blocks -name '*.blk' 2>/dev/null || true; } | wc -l; }
# The blocks of a volume that the store acknowledged, a line for each PUT, and who sent it: each Pod has an address of its
# own. By the store's log: `KEY ADDRESS`.
puts() { # VOLUME
    awk -v volume="/$1/blocks/" '/ s3_PutObject / && / 200 / && match($0, /\] [0-9.]+ /) { address = substr($0, RSTART + 2, RLENGTH - 3)
        for (i = 1; i <= NF; i++) if ($i ~ /^backupstore/ && index($i, volume)) print $i, address }' "$WORK/store/requests"
}

# --- The operator, by its chart

# $CHART: another chart than this checkout's.
install() { # VALUES…
    kubectl create namespace "$SYSTEM" --dry-run=client -o yaml | kubectl apply -f - &&
        kubectl -n "$SYSTEM" create secret generic s3-primary --from-literal="AWS_ACCESS_KEY_ID=${STORE_KEYS[0]}" \
            --from-literal="AWS_SECRET_ACCESS_KEY=${STORE_KEYS[1]}" --dry-run=client -o yaml | kubectl apply -f - &&
        with_helm upgrade --install tidemark "${CHART:-charts/tidemark}" --namespace "$SYSTEM" --wait --timeout 90s \
            --set image.repository=tidemark.local/tidemark --set image.tag="${IMAGE_TAG:-dev}" --set image.pullPolicy=Never "$@" &&
        target s3-primary | kubectl apply -f - &&
        kubectl wait --for=condition=Ready --timeout=60s clusterbackuptarget/s3-primary
}
with_helm() { HELM_CACHE_HOME=$WORK/helm HELM_CONFIG_HOME=$WORK/helm HELM_DATA_HOME=$WORK/helm helm "$@"; }
uninstall() {
    kubectl delete clusterbackuptarget s3-primary --wait --timeout=60s
    with_helm uninstall tidemark --namespace "$SYSTEM" --wait --timeout 60s
    kubectl delete crd -l app.kubernetes.io/part-of=tidemark --wait --timeout=60s
    kubectl delete namespace "$SYSTEM" --wait --timeout=60s
}
operators() { kubectl -n "$SYSTEM" get pods -l app.kubernetes.io/component=operator -o "jsonpath={range .items[*]}{$1}{\"\n\"}{end}"; }
# The Pod of the operator that leads: its identity is the Pod's name and a random number.
leader() { kubectl -n "$SYSTEM" get lease tidemark-operator -o jsonpath='{.spec.holderIdentity}' | sed 's/-[0-9a-f]*$//'; }
somebody_else_leads() { local now; now=$(leader) && [ -n "$now" ] && [ "$now" != "$1" ]; } # POD
somebody_leads() { [ -n "$(leader)" ]; }
target() { # NAME
    cat <<YAML
apiVersion: tidemark.dev/v1alpha1
kind: ClusterBackupTarget
metadata: {name: $1}
spec:
  s3: {endpoint: "http://$STORE", bucket: backups, region: us-east-1}
  credentials: {secretName: s3-primary}
  allowedNamespaces: {from: All}
  default: true
YAML
}
# --- Volumes and Backups of the scenario's namespace

# A block volume of random bytes: MIB of it written, in blocks of which none is like another.
random_volume() { # NAME MIB
    claim "$1" "$2" Block | kubectl apply -f - >>"$WORK/log"
    pod "write-$1" "$1" Block "dd if=/dev/urandom of=/dev/data bs=1M count=$2 conv=fsync,notrunc" | kubectl apply -f - >>"$WORK/log"
    kubectl -n "$NS" wait --for=jsonpath='{.status.phase}=Succeeded' --timeout=60s "pod/write-$1" >>"$WORK/log"
    kubectl -n "$NS" delete pod "write-$1" --wait >>"$WORK/log"
}

# A Backup of a claim. Lines of YAML for its spec may follow. The first one starts the watch of them all.
backup() { # NAME CLAIM [LINE…]
    local name=$1 claim=$2
    shift 2
    { cat <<YAML
apiVersion: tidemark.dev/v1alpha1
kind: Backup
metadata: {name: $name, namespace: $NS}
spec:
  source: {persistentVolumeClaim: {name: $claim}}
YAML
        printf '  %s\n' "$@"; } | kubectl apply -f - >>"$WORK/log"
    [ -e "$WORK/$NS.watched" ] || { touch "$WORK/$NS.watched"; watch_backups & }
}
# A Restore of a Backup into a new claim. Lines of YAML for the claim may follow; $DOWNLOAD: for its spec.
restore() { # NAME BACKUP CLAIM LINE…
    local name=$1 backup=$2 claim=$3
    shift 3
    { cat <<YAML
apiVersion: tidemark.dev/v1alpha1
kind: Restore
metadata: {name: $name, namespace: $NS}
spec:
  backupRef: {name: $backup}
  ${DOWNLOAD:+download: $DOWNLOAD}
  persistentVolumeClaim:
    name: $claim
YAML
        printf '    %s\n' "$@"; } | kubectl apply -f - >>"$WORK/log"
}
restored_at_least() { [ "$(KIND=tmr field "$1" .status.progress.restoredBlocks || echo 0)" -ge "$2" ] 2>/dev/null; }
# What a Pod prints that has the claim.
said_by() { # NAME CLAIM MODE SCRIPT
    pod "$1" "$2" "$3" "$4" | kubectl apply -f - >>"$WORK/log"
    kubectl -n "$NS" wait --for=jsonpath='{.status.phase}=Succeeded' --timeout=90s "pod/$1" >>"$WORK/log" ||
        fail "the Pod $1 with $2 did not succeed: $(kubectl -n "$NS" logs "$1" 2>&1 | tail -n 3)"
    kubectl -n "$NS" logs "$1"
    kubectl -n "$NS" delete pod "$1" --wait >>"$WORK/log"
}
# Enough time to get hold of it, and short deadlines: 8 blocks a second, 5 s until a stall, a retry after 2 s.
SLOW=('upload: {maxBytesPerSecond: 8Mi}' 'deadlines: {stall: 5s}' 'retry: {backoff: 2s, maxBackoff: 4s}')

# Of a Backup, or where $KIND is tmr of a Restore.
field() { kubectl -n "$NS" get "${KIND:-tmb}" "$1" -o "jsonpath={$2}" 2>>"$WORK/log"; }
is() { [ "$(field "$1" .status.state)" = "$2" ]; }
acknowledged_at_least() { [ "$(field "$1" .status.progress.acknowledgedBlocks || echo 0)" -ge "$2" ] 2>/dev/null; }
attempt_is_at_least() { [ "$(field "$1" .status.attempt.number || echo 0)" -ge "$2" ] 2>/dev/null; }
failed_in_attempt() { is "$1" Error && [ "$(field "$1" .status.failure.attempt)" -ge "$2" ]; }
uploading() { within "${2:-60}" "$1 with blocks acknowledged" acknowledged_at_least "$1" "${3:-4}"; }
completed() { within "${2:-120}" "$1 Completed" is "$1" Completed; }

# Every change of status, with what the bucket held right after it was read. Two things must never be seen: more blocks
# acknowledged than there are, and a count that falls within an attempt. An API server that is away says nothing wrong.
watch_backups() {
    local columns='{.metadata.name}|{.status.state}|{.status.reason}|{.status.attempt.number}|{.status.progress.acknowledgedBlocks}|{.status.progress.totalBlocks}|{.status.store.volume}{"\n"}'
    local name state reason attempt acknowledged total volume objects line pipe=$WORK/$NS.watch
    local -A told before of
    mkfifo "$pipe"
    trap 'kill $watching 2>/dev/null; exit 0' TERM
    while :; do
        kubectl -n "$NS" get tmb --watch -o "jsonpath=$columns" >"$pipe" 2>/dev/null &
        watching=$!
        while IFS='|' read -r name state reason attempt acknowledged total volume; do
            acknowledged=${acknowledged:-0}
            objects=0
            [ -z "$volume" ] || objects=$(blocks_of "$volume")
            echo "$name $state $reason $attempt $acknowledged $objects" >>"$WORK/$NS.samples"
            [ "$attempt" = "${of[$name]-}" ] || before[$name]=0 of[$name]=$attempt
            if [ "$acknowledged" -gt "$objects" ]; then echo "$name: $acknowledged acknowledged, $objects in the bucket" >>"$WORK/$NS.broken"; fi
            if [ "$acknowledged" -lt "${before[$name]-0}" ]; then echo "$name: $acknowledged after ${before[$name]} in attempt $attempt" >>"$WORK/$NS.broken"; fi
            before[$name]=$acknowledged
            line="$name $state${reason:+/$reason}${attempt:+, attempt $attempt}${volume:+: $acknowledged of ${total:-?} blocks, $objects in the bucket}"
            if [ "$line" != "${told[$name]-}" ]; then tell "$line"; told[$name]=$line; fi
        done <"$pipe"
        sleep 0.2
    done
}
# Was the Backup ever seen in this state or with this reason?
was_seen() { grep -qE "^$1 ($2 |[A-Za-z]* $2 )" "$WORK/$NS.samples"; }
never_an_error() { ! was_seen "$1" Error || fail "$1 was an Error: $(grep "^$1 Error" "$WORK/$NS.samples" | head -n 1)"; }

# What the volume was at the point in time that a Backup reads: the checksum of the driver's own snapshot.
point_in_time() { # BACKUP
    local content
    within 60 "the snapshot of $1" has_snapshot "$1"
    content=$(kubectl -n "$NS" get volumesnapshot "tm-$(field "$1" .metadata.uid)" -o jsonpath='{.status.boundVolumeSnapshotContentName}')
    tools/e2e/enter.sh sha256sum "$STATE/pool/snapshots/$(kubectl get volumesnapshotcontent "$content" -o jsonpath='{.status.snapshotHandle}')/disk" | cut -d' ' -f1
}
has_snapshot() { [ "$(kubectl -n "$NS" get volumesnapshot "tm-$(field "$1" .metadata.uid)" -o jsonpath='{.status.readyToUse}')" = true ]; }

# Where a Backup is in the bucket; known when its object is gone.
url_of() { # BACKUP
    local file=$WORK/$NS.url-$1
    [ -s "$file" ] || echo "s3://backups@us-east-1/?backup=$(field "$1" .status.store.backup)&volume=$(field "$1" .status.store.volume)" >"$file"
    cat "$file"
}
# The Backup is restored by the command line and compared with that checksum.
restored_is() { # BACKUP CHECKSUM
    "$WORK/tidemark" restore "$(url_of "$1")" "$WORK/restored" --endpoint "http://$STORE" --force >>"$WORK/log" 2>&1 ||
        fail "$1 cannot be restored: $(tail -n 3 "$WORK/log")"
    [ "$(sha256sum <"$WORK/restored" | cut -d' ' -f1)" = "$2" ] || fail "$1 was restored as something else"
    rm "$WORK/restored"
    tell "$1 was restored by the command line and is equal to the snapshot"
}

# --- Nothing is left

# What we make is gone when a Backup has ended: the user's own things may still be there.
ours() {
    kubectl -n "$SYSTEM" get jobs,pods,secrets,configmaps,persistentvolumeclaims -l app.kubernetes.io/managed-by=tidemark \
        -o jsonpath='{range .items[*]}{.kind} {.metadata.name}{"\n"}{end}'
    kubectl get volumesnapshots -A -l app.kubernetes.io/managed-by=tidemark -o jsonpath='{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}'
    kubectl get volumesnapshotcontents -o jsonpath='{range .items[*]}{.kind} {.metadata.name} of {.spec.volumeSnapshotRef.name}{"\n"}{end}' | grep ' of tm-' || true
    kubectl get pv -o jsonpath='{range .items[*]}{.kind} {.metadata.name} of {.spec.claimRef.namespace}{"\n"}{end}' | grep " of $SYSTEM\$" || true
}
none_of_ours() { local left; left=$(ours) && echo "$left" >"$WORK/left" && [ -z "$left" ]; }
# Everything that the driver holds is somebody's: each volume of a PV, each snapshot of a content.
all_owned() {
    local owned held
    owned=$(kubectl get pv -o jsonpath='{range .items[*]}{.spec.csi.volumeHandle}{"\n"}{end}'
        kubectl get volumesnapshotcontents -o jsonpath='{range .items[*]}{.status.snapshotHandle}{"\n"}{end}') || return 1
    held=$(tools/e2e/enter.sh find "$STATE/pool/volumes" "$STATE/pool/snapshots" -mindepth 1 -maxdepth 1 -printf '%f\n')
    comm -13 <(sort -u <<<"$owned") <(sort -u <<<"$held") | sed '/^$/d; s/^/in the CSI driver: /' >"$WORK/left"
    [ ! -s "$WORK/left" ]
}
nothing_left() {
    local end=$((SECONDS + 60))
    until none_of_ours && all_owned; do
        if [ $SECONDS -ge $end ]; then tell "left over:"; sed 's/^/           /' "$WORK/left"; return 1; fi
        sleep 0.5
    done 2>>"$WORK/log"
}
# At the end of a scenario: all objects of its namespace go, and then there must be nothing at all.
namespace_gone() {
    kubectl -n "$NS" delete tmb,tmr,pods --all --wait --timeout=90s &&
        kubectl delete namespace "$NS" --ignore-not-found --wait --timeout=90s
}
# The API server's rules refuse a count that falls and the like: the operators must never have tried.
no_write_was_refused() {
    local address metrics
    for address in $(operators .status.podIP); do
        metrics=$(busybox wget -qO- "http://$address:8080/metrics" | grep '^tidemark_status_writes_refused_total') ||
            { tell "the operator at $address tells no metrics"; return 1; }
        [[ $metrics = *" 0" ]] || { tell "a status was written that the API server's rules refused: $metrics"; return 1; }
    done
}
driver_is_empty() { [ -z "$(kubectl get pv,volumesnapshotcontents -o name)" ] && all_owned; }

# --- One scenario

# The file in a process and a namespace of its own; then the laws, and that nothing is left.
scenario() { # FILE
    local status=0
    NS=e2e-$(basename "$1" .sh | sed 's/^[0-9]*-//')
    export NS
    rm -f "$WORK/$NS".*
    kubectl create namespace "$NS" >>"$WORK/log"
    within 20 "the service account of $NS" kubectl -n "$NS" get serviceaccount default
    bash -euo pipefail -c '. tools/e2e/library.sh; trap "jobs -p | xargs -r kill 2>/dev/null" EXIT; . "$1"' scenario "$1" || status=1
    forget_faults
    if cat "$WORK/$NS"*.broken >"$WORK/broken" 2>/dev/null; then tell "A LAW WAS BROKEN"; sed 's/^/           /' "$WORK/broken"; status=1; fi
    if [ $status -eq 0 ]; then (after) || status=1; fi
    if [ $status -ne 0 ]; then
        show
        namespace_gone >>"$WORK/log" 2>&1 || kubectl get all,tmb,pvc -n "$NS" || true
    fi
    return $status
}
after() {
    BEGAN=$(milliseconds)
    nothing_left && no_write_was_refused && namespace_gone >>"$WORK/log" && { within 60 "an empty driver" driver_is_empty; } &&
        tell "$(wc -l <"$WORK/$NS.samples") samples: acknowledged was never more than what the bucket held; nothing is left"
}

show_operator() {
    kubectl -n "$SYSTEM" get pods -o wide || true
    kubectl -n "$SYSTEM" describe pods -l app.kubernetes.io/component=operator | tail -n 25
    kubectl -n "$SYSTEM" logs -l app.kubernetes.io/component=operator --tail=40 --prefix || true
}
# What a person would look at first.
show() {
    echo "--- kubectl describe tmb"
    kubectl -n "$NS" describe tmb || true
    echo "--- events"
    kubectl get events -A --sort-by=.metadata.creationTimestamp | tail -n 25 || true
    echo "--- pods and volumes"
    kubectl get pods,jobs,pvc,volumesnapshots,volumesnapshotcontents,pv -A || true
    echo "--- workers"
    kubectl -n "$SYSTEM" logs -l app.kubernetes.io/component=worker --tail=15 --prefix || true
    echo "--- operators"
    show_operator
}
