#!/usr/bin/env bash
# Takes the e2e node away: its processes, and with them mounts and network; then loop devices, control groups, files.
# Repeatable, and right after a crash at any point.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tools/e2e/env.sh
. tools/e2e/env.sh
need_root e2e-down
[ "${1:-}" = --locked ] || lock

# within SECONDS COMMAND…: until it succeeds
within() {
    local until=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $until ] || return 1
        sleep 0.1
    done
}

end_processes() {
    local pid child
    pid=$(node_pid)
    [ -n "$pid" ] || return 0
    child=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null || true)
    # Process 1 of a namespace takes all others with it. unshare is its parent, and holds the namespaces' mounts.
    # shellcheck disable=SC2086
    kill -KILL $child "$pid" 2>/dev/null || true
    within 30 test ! -e "/proc/$pid" || die "Process $pid does not end"
}

# Loop devices of ours: the pool's, those of volumes in the pool, and those that the kubelet puts above a volume's to
# hold it. They are found by the inode behind each, because the mounts by which they had names are gone.
our_loops() {
    local known=$1 table name device inode
    table=$(losetup --list --noheadings --output NAME,BACK-MAJ:MIN,BACK-INO)
    [ -n "$table" ] && [ -n "$known" ] || return 0
    while read -r name device inode; do
        [ "$device $inode" = "$known" ] || continue
        our_volumes "$table" "$(cat "/sys/block/${name#/dev/}/dev")"
        echo "$name"
    done <<<"$table"
}

our_volumes() {
    local table=$1 pool=$2 name device inode above above_inode
    while read -r name device inode; do
        [ "$device" = "$pool" ] || continue
        while read -r above _ above_inode; do
            [ "$above_inode" != "$(stat -c %i "$name")" ] || echo "$above"
        done <<<"$table"
        echo "$name"
    done <<<"$table"
}

detach_loops() {
    local loop known
    known=$(cat "$RUN/pool" 2>/dev/null || true)
    for loop in $(our_loops "$known"); do losetup --detach "$loop" 2>/dev/null || true; done
    [ -z "$(our_loops "$known")" ]
}

remove_groups() {
    local group left=0
    for group in /sys/fs/cgroup/"$CGROUP" /sys/fs/cgroup/*/"$CGROUP"; do
        [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
    done
    return $left
}

since=$SECONDS
there=''
[ ! -e "$RUN" ] || there=yes
end_processes
# The wire goes with the node's network namespace; if a process of somebody else holds that, we cut it.
ip link delete "$LINK" 2>/dev/null || true
within 20 detach_loops || die "Loop devices are left, see losetup --list: $(our_loops "$(cat "$RUN/pool")" | tr '\n' ' ')"
within 20 remove_groups || die "Control groups $CGROUP are left below /sys/fs/cgroup"
rm -rf --one-file-system "$RUN"
[ -z "$there" ] || say "the node is gone ($((SECONDS - since)) s)"
