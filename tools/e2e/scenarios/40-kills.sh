# shellcheck shell=bash
# Kills while blocks go up: worker in each phase, leader, kubelet, containerd, API server, etcd; each is Completed and restores
quick='upload: {maxBytesPerSecond: 4Mi}' # 24 blocks in 12 s
# Looked for each time: the folder is not there before the first request.
volume_of() { kubectl -n "$NS" get pvc "$1" -o jsonpath='{.spec.volumeName}'; }
found() { find "$BUCKET"/backupstore/volumes/*/*/"$1"/"$2" -name "$3" 2>/dev/null || true; } # VOLUME FOLDER NAME
has_blocks() { [ "$(found "$1" blocks '*.blk' | wc -l)" -ge "$2" ]; } # VOLUME COUNT
has_lock() { [ -n "$(found "$1" locks '*.lck')" ]; }
# Not the marker of an unfinished one, `backup_tidemark-…`.
has_record() { [ -n "$(found "$1" backups 'backup_backup-*.cfg')" ]; }

# round NAME KILL…: a volume, a Backup of it, the kill, and then everything must be well.
round() {
    local name=$1 checksum
    shift
    random_volume "$name" 48
    backup "$name" "$name" "$quick" 'retry: {backoff: 1s, maxBackoff: 2s}'
    checksum=$(point_in_time "$name")
    "$@" "$name"
    completed "$name" 180
    [ "$(field "$name" .status.progress.acknowledgedBlocks)" = 24 ] || fail "$name is Completed with $(field "$name" .status.progress)"
    restored_is "$name" "$checksum"
    nothing_left || fail "left over after $name (above)"
    kubectl -n "$NS" delete pvc "$name" --wait >>"$WORK/log"
}
# What an attempt acknowledged is not sent again by the next.
resumed() { # BACKUP
    completed "$1" 180
    [ "$(field "$1" .status.attempt.number)" -ge 2 ] || fail "$1 needed no second attempt: nothing was killed"
    local twice
    twice=$(puts "$(field "$1" .status.store.volume)" | sort | uniq -d)
    [ -z "$twice" ] || fail "sent twice after the first attempt of $1: $twice"
}

# --- The worker, in each of its phases

in_starting() {
    within 60 "the worker's Pod" has_worker "$1"
    delete_worker "$1"
    tell "the worker's Pod is deleted before anybody heard it"
    resumed "$1"
}
in_planning() {
    at_once 60 "the worker's lock" has_lock "$(volume_of "$1")"
    kill_worker "$1" # it waits two seconds before it believes in its lock
    tell "the worker is killed while it plans"
    resumed "$1"
}
in_uploading() {
    uploading "$1"
    kill_worker "$1"
    tell "the worker is killed while it uploads"
    resumed "$1"
}
deleted_in_uploading() {
    uploading "$1"
    delete_worker "$1"
    tell "the worker's Pod is deleted by force while it uploads"
    resumed "$1"
}
# The store's answers come so slowly that the moment cannot be missed, and then it is paused: the worker gets no further.
stopped_at() { # BACKUP COMMAND…
    local name=$1 wire
    shift
    uploading "$name"
    wire=$(wire_of "$(worker_of "$name")")
    slow_answers "$wire" 32kbit # as the blocks' pace
    at_once 60 "18 blocks of $name" has_blocks "$(volume_of "$name")" 18
    slow_answers "$wire" 6kbit
    at_once 60 "the moment to kill the worker of $name" "$@"
    pause_store
    kill_worker "$name"
}
at_the_last_block() {
    local volume
    volume=$(volume_of "$1")
    stopped_at "$1" has_blocks "$volume" 24
    ! has_record "$volume" || fail "the record was written before the worker was killed"
    resume_store
    tell "the worker is killed after its last block, before its record"
    resumed "$1"
}
at_the_record() {
    stopped_at "$1" has_record "$(volume_of "$1")"
    resume_store
    tell "the worker is killed after its record, before it had read it back"
    resumed "$1"
}

# --- The cluster

the_leader() {
    local first
    uploading "$1"
    first=$(leader)
    kubectl -n "$SYSTEM" delete pod "$first" --force --grace-period=0 >>"$WORK/log" 2>&1
    tell "$first, which leads, is deleted by force"
    within 45 "another leader" somebody_else_leads "$first"
}
program() { # PROGRAM BACKUP
    uploading "$2"
    kill_program "$1"
    tell "$1 is killed and started again"
}
whole_operators() { kubectl -n "$SYSTEM" rollout status deployment/tidemark --timeout=1s; }

round starting in_starting
round planning in_planning
round uploading in_uploading
round deleted deleted_in_uploading
round last-block at_the_last_block
round record at_the_record
round leader the_leader
within 60 "two operators again" whole_operators
round kubelet program kubelet
round containerd program containerd
round apiserver program kube-apiserver
round etcd program etcd
