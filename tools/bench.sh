#!/usr/bin/env bash
# The numbers of the README: a volume with a real filesystem, backed up in full, backed up again unchanged, restored, by
# Tidemark and (if it is installed) by restic, each through its own S3 client to the same server on this machine, in turn
# within one run. Machines are noisy: read the ratios, not the seconds.
#
#   tools/bench.sh [SIZE_MIB]      data in the volume, 4096 by default; needs three times that in /dev/shm
set -euo pipefail
cd "$(dirname "$0")/.."
size=${1:-4096}
cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}
server=$cache/bench/bin/s3s-fs
[ -x "$server" ] || cargo install s3s-fs --version 0.14.1 --features binary --locked --root "$cache/bench"
cargo build --release --bin tidemark
tidemark=$PWD/${CARGO_TARGET_DIR:-target}/release/tidemark
for program in mkfs.ext4 debugfs; do command -v $program >/dev/null || { echo "$program is missing: apt-get install e2fsprogs"; exit 1; }; done
[ -x /usr/bin/time ] || { echo "/usr/bin/time is missing: apt-get install time"; exit 1; }

work=$(mktemp -d /dev/shm/tidemark-bench.XXXXXX)
trap 'kill "${served:-0}" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir -p "$work"/{tree,s3/backups,s3/restic,out,state,cache}
echo "Collecting $size MiB of this machine's own files"
taken=0
while IFS= read -r -d '' file; do
    bytes=$(stat -c %s "$file")
    [ $((taken + bytes)) -le $((size * 1048576)) ] || break
    cp --parents "$file" "$work/tree" 2>/dev/null && taken=$((taken + bytes))
done < <(find /usr /opt "$HOME/.cargo/registry" "$HOME/.rustup" -xdev -type f -size +64k -print0 2>/dev/null)
mkfs.ext4 -q -d "$work/tree" "$work/disk.img" "$((size * 5 / 4 + 256))M"
rm -rf "$work/tree"
echo "Volume: $(du -m --apparent-size "$work/disk.img" | cut -f1) MiB, $(du -m "$work/disk.img" | cut -f1) MiB allocated"

port=$((20000 + RANDOM % 20000))
"$server" --access-key bench-key --secret-key bench-secret --host 127.0.0.1 --port $port "$work/s3" >"$work/server.log" 2>&1 &
served=$!
sleep 1
export AWS_ACCESS_KEY_ID=bench-key AWS_SECRET_ACCESS_KEY=bench-secret AWS_REGION=us-east-1
export XDG_STATE_HOME=$work/state RESTIC_PASSWORD=x RESTIC_CACHE_DIR=$work/cache
export RESTIC_REPOSITORY=s3:http://127.0.0.1:$port/restic

run() { # NAME COMMAND…: wall seconds, CPU seconds, CPU seconds of the server, peak memory
    local name=$1 before after
    shift
    before=$(awk '{print ($14 + $15) / 100}' /proc/$served/stat)
    /usr/bin/time -o "$work/time" -f '%e %U %S %M' "$@" >"$work/said" 2>&1 || { cat "$work/said"; echo "$name failed"; exit 1; }
    after=$(awk '{print ($14 + $15) / 100}' /proc/$served/stat)
    awk -v n="$name" -v s="$after" -v b="$before" \
        '{printf "%-34s %7.1f s wall %7.1f s CPU %7.1f s CPU of the server %5d MiB\n", n, $1, $2 + $3, s - b, $4 / 1024}' "$work/time"
}
target=(--target "s3://backups@us-east-1/" --endpoint "http://127.0.0.1:$port" --volume bench)
run "tidemark full backup" "$tidemark" backup "$work/disk.img" "${target[@]}" --quiet
url=$(tail -1 "$work/said")
run "tidemark unchanged" "$tidemark" backup "$work/disk.img" "${target[@]}" --quiet
run "tidemark restore" "$tidemark" restore "$url" "$work/out/disk.img" --endpoint "http://127.0.0.1:$port"
cmp "$work/disk.img" "$work/out/disk.img"
rm -f "$work/out/disk.img"
if command -v restic >/dev/null; then
    restic init -q
    run "restic full backup" restic backup -q "$work/disk.img"
    run "restic unchanged (--force)" restic backup -q --force "$work/disk.img"
    run "restic restore" restic restore -q latest --target "$work/out"
    cmp "$work/disk.img" "$work/out$work/disk.img"
else
    echo "restic is not installed: no comparison (apt-get install restic)"
fi
