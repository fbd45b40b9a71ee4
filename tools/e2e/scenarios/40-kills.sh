# shellcheck shell=bash
# Kills: the worker in each phase, the programs of the cluster while blocks go up and while they come down (in soak: each in each)
quick='upload: {maxBytesPerSecond: 4Mi}' # 24 blocks in 12 s
# Looked for each time: the folder is not there before the first request.
volume_of() { kubectl -n "$NS" get pvc "$1" -o jsonpath='{.spec.volumeName}'; }
found() { find "$BUCKET"/backupstore/volumes/*/*/"$1"/"$2" -name "$3" 2>/dev/null || true; } # VOLUME FOLDER NAME
has_blocks() { [ "$(found "$1" blocks '*.blk' | wc -l)" -ge "$2" ]; } # VOLUME COUNT
has_lock() { [ -n "$(found "$1" locks '*.lck')" ]; }
# Not the marker of an unfinished one, `backup_tidemark-…`.
has_record() { [ -n "$(found "$1" backups 'backup_backup-*.cfg')" ]; }

# --- Moments of a Backup

# reach PHASE BACKUP. The store then answers nothing any more: the moment lasts as long as we like.
reach() {
    local volume
    case $1 in
    starting) within 60 "the worker's Pod" has_worker "$2" ;;
    planning) at_once 60 "the worker's lock" has_lock "$(volume_of "$2")" ;; # it waits two seconds before it believes in it
    uploading) uploading "$2" ;;
    last-block)
        volume=$(volume_of "$2")
        stopped_at "$2" has_blocks "$volume" 24
        ! has_record "$volume" || fail "the record was written before the kill"
        ;;
    record) stopped_at "$2" has_record "$(volume_of "$2")" ;;
    esac
    pause_store
}
# The store's answers come so slowly that the moment cannot be missed, and then it is paused: the worker gets no further.
stopped_at() { # BACKUP COMMAND…
    local name=$1
    shift
    uploading "$name"
    pause_store
    slowed=$(wire_of "$(worker_of "$name")")
    slow_answers "$slowed" 32kbit # as the blocks' pace
    resume_store
    at_once 60 "18 blocks of $name" has_blocks "$(volume_of "$name")" 18
    slow_answers "$slowed" 6kbit
    at_once 150 "the moment for $name" "$@" # an answer takes half a second, to the operators too
    pause_store
}
slowed=
as_fast_as_before() {
    resume_store
    [ -z "$slowed" ] || quick_answers "$slowed"
    slowed=
}

# --- Who is killed

first=
hit() { # VICTIM BACKUP
    case $1 in
    worker) if has_process "$2"; then kill_worker "$2"; else delete_worker "$2"; fi ;;
    pod) delete_worker "$2" ;;
    leader)
        first=$(leader)
        kubectl -n "$SYSTEM" delete pod "$first" --force --grace-period=0 >>"$WORK/log" 2>&1
        ;;
    *) kill_program "$1" ;;
    esac
}
has_process() { [ -n "$(process_of "$(worker_of "$1")")" ]; } # BACKUP
all_there_again() { # VICTIM
    [ "$1" = leader ] || return 0
    within 45 "another leader" somebody_else_leads "$first"
    within 60 "two operators again" kubectl -n "$SYSTEM" rollout status deployment/tidemark --timeout=1s
}

# --- Rounds

# A volume, a Backup of it, the kill at that moment, and then everything must be well.
round() { # VICTIM PHASE
    local name=$1-$2 checksum
    random_volume "$name" 48
    backup "$name" "$name" "$quick" 'retry: {backoff: 1s, maxBackoff: 2s}'
    checksum=$(point_in_time "$name")
    reach "$2" "$name"
    hit "$1" "$name"
    tell "$1 is killed: $2"
    as_fast_as_before
    all_there_again "$1"
    completed "$name" 180
    [ "$(field "$name" .status.progress.acknowledgedBlocks)" = 24 ] || fail "$name is Completed with $(field "$name" .status.progress)"
    case $1 in
    worker | pod) resumed "$name" ;;
    *) [ "$(field "$name" .status.attempt.number)" = 1 ] || fail "$name needed another attempt, and nobody touched its worker" ;;
    esac
    restored_is "$name" "$checksum"
    nothing_left || fail "left over after $name (above)"
    kubectl -n "$NS" delete pvc "$name" --wait >>"$WORK/log"
}
# What an attempt sent is not sent again by the next. (It may itself have sent a block twice, when the answer came too slowly.)
resumed() { # BACKUP
    [ "$(field "$1" .status.attempt.number)" -ge 2 ] || fail "$1 needed no second attempt: nothing was killed"
    local sent twice
    sent=$(puts "$(field "$1" .status.store.volume)" | sort -u)
    twice=$(cut -d' ' -f1 <<<"$sent" | uniq -d)
    [ -z "$twice" ] || fail "sent by two attempts of $1: $twice"
    case $1 in
    *-uploading) [ "$(cut -d' ' -f2 <<<"$sent" | sort -u | wc -l)" -ge 2 ] || fail "blocks of $1 came from one address only: $sent" ;;
    esac
}

# The way back: a Backup becomes a new claim, and in the midst of it somebody is killed.
round_back() { # VICTIM
    local name=$1-back KIND=tmr attempts
    DOWNLOAD='{maxBytesPerSecond: 4Mi}' restore "$name" source "$name" 'size: 48Mi'
    at_once 60 "$name with blocks restored" restored_at_least "$name" 4
    pause_store
    hit "$1" "$name"
    resume_store
    tell "$1 is killed: restoring"
    all_there_again "$1"
    completed "$name" 180
    attempts=$(field "$name" .status.attempt.number)
    case $1 in
    worker | pod) [ "$attempts" -ge 2 ] || fail "$name needed no second attempt: nothing was killed" ;;
    *) [ "$attempts" = 1 ] || fail "$name needed another attempt, and nobody touched its worker" ;;
    esac
    [ "$(said_by "reads-$name" "$name" Block 'head -c 50331648 /dev/data | sha256sum')" = "$expected" ] || fail "$name is not what source was"
    tell "$name is equal to its source: $(field "$name" .status.progress)"
    nothing_left || fail "left over after $name (above)"
    kubectl -n "$NS" delete "tmr/$name" "pvc/$name" --wait >>"$WORK/log"
}

rounds="worker-starting worker-planning worker-uploading pod-uploading worker-last-block worker-record
    leader-uploading kubelet-uploading containerd-uploading kube-apiserver-uploading etcd-uploading"
back="worker leader"
victims="worker pod leader kubelet containerd kube-apiserver etcd"
if [ -n "${TIDEMARK_SOAK:-}" ]; then
    back=$victims rounds=
    for victim in $victims; do
        for phase in starting planning uploading last-block record; do rounds+=" $victim-$phase"; done
    done
fi
for each in $rounds; do
    case $each in
    kube-apiserver-*) round kube-apiserver "${each#kube-apiserver-}" ;;
    *) round "${each%%-*}" "${each#*-}" ;;
    esac
done
random_volume source 48
backup source source
completed source
expected=$(said_by reads-source source Block 'head -c 50331648 /dev/data | sha256sum')
for victim in $back; do round_back "$victim"; done
