#!/usr/bin/env bash
# The numbers of the README: a volume with a real filesystem, backed up in full, backed up again unchanged, restored, by
# Tidemark and by others that are there, in turn within one run. Machines are noisy: read the ratios, not the seconds.
#
#   tools/bench.sh [SIZE_MIB] [directory|s3]
#
# SIZE_MIB   data in the volume, 2048 by default; needs four times that in /dev/shm
# directory  each tool writes into a directory in memory (the default)
# s3         each tool writes to the same versitygw (tools/parts.sh) over loopback: its CPU seconds are shown beside
#            ours, for both sides share this machine's cores
#
# After that, memory: 1 GiB full of random bytes, and 1 TiB with 1 GiB of them spread over it. And, if `perf` is installed
# (Debian: linux-perf), where the time of a full backup and of a restore goes, by function.
#
# Others: restic, if it is installed; Longhorn's library, if TIDEMARK_LONGHORN names a program around it (docs/longhorn.md),
# with 2 workers (its default) and with 8.
set -euo pipefail
cd "$(dirname "$0")/.."
size=${1:-2048}
mode=${2:-directory}
case $mode in directory | s3) ;; *) echo "The second argument is directory or s3, not $mode"; exit 1 ;; esac
cargo build --release --bin tidemark
tidemark=$PWD/${CARGO_TARGET_DIR:-target}/release/tidemark
for program in mkfs.ext4 debugfs; do command -v $program >/dev/null || { echo "$program is missing: apt-get install e2fsprogs"; exit 1; }; done
[ -x /usr/bin/time ] || { echo "/usr/bin/time is missing: apt-get install time"; exit 1; }
[ "$mode" = directory ] || parts=${TIDEMARK_PARTS:-$(tools/parts.sh)}

work=$(mktemp -d /dev/shm/tidemark-bench.XXXXXX)
server=
trap '[ -z "$server" ] || kill $server; rm -rf "$work"' EXIT
mkdir -p "$work"/{tree,store,out,state,cache,gateway/objects/backups,gateway/metadata,gateway/accounts}
echo "Collecting $size MiB of this machine's own files"
taken=0
while IFS= read -r -d '' file; do
    bytes=$(stat -c %s "$file")
    [ $((taken + bytes)) -le $((size * 1048576)) ] || break
    cp --parents "$file" "$work/tree" 2>/dev/null && taken=$((taken + bytes))
done < <(find /usr /opt "$HOME/.cargo/registry" "$HOME/.rustup" -xdev -type f -size +64k -print0 2>/dev/null)
mkfs.ext4 -q -d "$work/tree" "$work/disk.img" "$((size * 5 / 4 + 256))M"
# Longhorn's volumes are whole blocks.
truncate -s %2M "$work/disk.img"
rm -rf "$work/tree"
allocated=$(du -m "$work/disk.img" | cut -f1)
echo "Volume: $(du -m --apparent-size "$work/disk.img" | cut -f1) MiB, $allocated MiB allocated; load $(cut -d' ' -f1 /proc/loadavg)"

export XDG_STATE_HOME=$work/state RESTIC_PASSWORD=x RESTIC_CACHE_DIR=$work/cache
if [ "$mode" = s3 ]; then
    export AWS_ACCESS_KEY_ID=bench AWS_SECRET_ACCESS_KEY=bench-secret AWS_REGION=us-east-1
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    export AWS_ENDPOINTS=http://127.0.0.1:$port
    "$parts/versitygw" --quiet --keep-alive --port "127.0.0.1:$port" --access bench --secret bench-secret \
        --iam-dir "$work/gateway/accounts" posix --sidecar "$work/gateway/metadata" "$work/gateway/objects" >"$work/gateway/log" 2>&1 &
    server=$!
    for _ in $(seq 100); do ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break; sleep 0.1; done
    store=s3://backups@us-east-1/ours/
    elsewhere=s3://backups@us-east-1/elsewhere/
    objects=$work/gateway/objects/backups
    longhorn=s3://backups@us-east-1/longhorn
    RESTIC_REPOSITORY=s3:$AWS_ENDPOINTS/backups/restic
else
    mkdir "$work"/longhorn{2,8}
    store=$work/store
    elsewhere=$work/elsewhere
    objects=$work
    mkdir "$elsewhere"
    longhorn=vfs://$work/longhorn
    RESTIC_REPOSITORY=$work/restic
fi
export RESTIC_REPOSITORY

# CPU seconds of the server so far.
server_cpu() { if [ -z "$server" ]; then echo 0; else awk -v hz="$(getconf CLK_TCK)" '{ print ($14 + $15) / hz }' "/proc/$server/stat"; fi; }

run() { # NAME COMMAND…: wall seconds, CPU seconds and the same per GiB allocated, peak memory, the server's CPU seconds
    local name=$1 before
    shift
    before=$(server_cpu)
    /usr/bin/time -o "$work/time" -f '%e %U %S %M' "$@" >"$work/said" 2>&1 || { cat "$work/said"; echo "$name failed"; exit 1; }
    awk -v n="$name" -v gib="$allocated" -v server="$(server_cpu)" -v before="$before" -v s="$server" \
        '{printf "%-34s %7.1f s wall %7.1f s CPU (%.1f user, %.1f system; %.2f per GiB) %5d MiB%s\n", n, $1, $2 + $3, $2, $3, ($2 + $3) * 1024 / gib, $4 / 1024, s == "" ? "" : sprintf("   server %.1f s CPU", server - before)}' "$work/time"
}
target=(--target "$store" --volume bench)
run "tidemark full backup" "$tidemark" backup "$work/disk.img" "${target[@]}" --quiet
url=$(tail -1 "$work/said")
run "tidemark unchanged" "$tidemark" backup "$work/disk.img" "${target[@]}" --quiet
run "tidemark restore" "$tidemark" restore "$url" "$work/out/disk.img"
cmp "$work/disk.img" "$work/out/disk.img"
rm -f "$work/out/disk.img"

if command -v perf >/dev/null; then
    where() { # NAME COMMAND…: the functions that take most of the time
        local name=$1
        shift
        perf record -q -F 999 -e cpu-clock -o "$work/perf" "$@" >"$work/said" 2>&1 || { cat "$work/said"; exit 1; }
        echo "Where the time goes, $name:"
        perf report -i "$work/perf" --stdio --no-children --sort dso,symbol --percent-limit 1.5 2>/dev/null |
            sed -n '/^ *[0-9].*%/{s/^ */    /;s/<[^>]*>/<…>/g;p}' | cut -c 1-120 | head -n 14
        rm -f "$work/perf"
    }
    where "full backup" "$tidemark" backup "$work/disk.img" --target "$elsewhere" --volume bench --quiet
    rm -rf "$objects"/elsewhere/*
    where "restore" "$tidemark" restore "$url" "$work/out/disk.img"
    rm -f "$work/out/disk.img"
else
    echo "perf is not installed: not shown where the time goes (apt-get install linux-perf)"
fi
if [ -n "${TIDEMARK_LONGHORN:-}" ]; then
    for workers in 2 8; do
        create=("$TIDEMARK_LONGHORN" create -target "$longhorn$workers/" -volume bench -image "$work/disk.img" -workers "$workers")
        run "longhorn $workers workers, full" "${create[@]}" -backup backup-full -snapshot snap
        # The same snapshot again: it compares every byte.
        run "longhorn $workers workers, unchanged" "${create[@]}" -backup backup-again -snapshot snap
        run "longhorn $workers workers, restore" "$TIDEMARK_LONGHORN" restore -url "$longhorn$workers/?backup=backup-full&volume=bench" \
            -out "$work/out/disk.img" -workers "$workers"
        cmp "$work/disk.img" "$work/out/disk.img"
        rm -f "$work/out/disk.img"
        [ "$mode" = s3 ] || rm -rf "$work/longhorn$workers"
    done
else
    echo "TIDEMARK_LONGHORN names no program around Longhorn's library: no comparison (docs/longhorn.md)"
fi
if command -v restic >/dev/null; then
    restic init -q
    run "restic full backup" restic backup -q "$work/disk.img"
    run "restic unchanged (--force)" restic backup -q --force "$work/disk.img"
    run "restic restore" restic restore -q latest --target "$work/out"
    cmp "$work/disk.img" "$work/out$work/disk.img"
else
    echo "restic is not installed: no comparison (apt-get install restic)"
fi

# The volume is not needed any more, and its room is.
rm -rf "$work/disk.img" "$work/out" "$objects"/longhorn* "$objects"/restic
echo "Memory of a worker (the program alone: $(/usr/bin/time -f %M "$tidemark" --version 2>&1 >/dev/null | awk '{ printf "%d", $1 / 1024 }') MiB):"
head -c 1G /dev/urandom >"$work/full.img"
truncate -s 1T "$work/sparse.img"
# 512 pieces of 2 MiB, 2 GiB apart.
for piece in $(seq 0 511); do
    dd if="$work/full.img" of="$work/sparse.img" bs=2M count=1 skip="$piece" seek=$((piece * 1024)) conv=notrunc status=none
done
allocated=1024
run "1 GiB full" "$tidemark" backup "$work/full.img" --target "$store" --volume memory-full --quiet
run "1 TiB, 1 GiB in it" "$tidemark" backup "$work/sparse.img" --target "$store" --volume memory-sparse --quiet
