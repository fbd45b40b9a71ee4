#!/usr/bin/env bash
# Everything a change must pass: formatting, lints, units and laws, S3 over the wire, the operator against a real API
# server. The last line counts the tests. Arguments go to `cargo test`: tools/test.sh --test faults packet_loss
#
# Most tests wait for servers and clocks, so the test binaries run side by side in lanes, the longest of the last run
# first; their words are in target/test-logs, and shown here when one fails. Lanes: TIDEMARK_TEST_LANES, 2 by default.
set -euo pipefail
cd "$(dirname "$0")/.."
[ ! -t 1 ] || export CARGO_TERM_COLOR=always
since=$SECONDS
logs=target/test-logs
times=target/test-times
step() { printf '\n== %s (%d:%02d)\n' "$1" $(((SECONDS - since) / 60)) $(((SECONDS - since) % 60)); }

# Paths of the test binaries, one a line.
binaries() {
    cargo test --no-run --message-format=json 2>/dev/null |
        sed -n '/"reason":"compiler-artifact"/{/"profile":{[^}]*"test":true/s/.*"executable":"\([^"]*\)".*/\1/p}'
}

# Adds to each path its seconds in the last run; one that is new may be long.
with_times() {
    local path
    while read -r path; do
        printf '%s %s\n' "$(awk -v n="$(name_of "$path")" '$2 == n { t = $1 } END { print t == "" ? 60 : t }' "$times")" "$path"
    done
}

# operator_faults of target/debug/deps/operator_faults-0123456789abcdef
name_of() {
    local file=${1##*/}
    printf '%s' "${file%-*}"
}

# Runs one test binary; its log is kept, its result is one line here.
run_one() {
    local path=$1 name log began=$SECONDS status=0
    name=$(name_of "$path")
    log=$logs/${path##*/}.log
    "$path" >"$log" 2>&1 || status=$?
    printf '%d %s\n' $((SECONDS - began)) "$name" >>"$times.new"
    [ $status -eq 0 ] || sed "s/^/$name | /" "$log"
    printf '%-24s %s, %d:%02d\n' "$name" "$(sed -n 's/^test result: \(.*\); 0 measured.*/\1/p' "$log" | tail -n 1)" \
        $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60))
    # A binary that died without a result counts as a failure.
    grep -q '^test result:' "$log" || echo "test result: FAILED. 0 passed; 1 failed; 0 ignored (died)" >>"$log"
    return $status
}
export -f run_one name_of

step "Formatting"
cargo fmt --check
step "Lints and builds, beside the control plane's programs"
tools/with_parts.sh sh -c 'cargo clippy --all-targets -- -D warnings && cargo test --no-run'
TIDEMARK_PARTS=$(cat target/parts)
export TIDEMARK_PARTS logs times
rm -rf "$logs"
mkdir -p "$logs"
touch "$times"
status=0
if [ $# -gt 0 ]; then
    step "Tests: $*"
    cargo test --no-fail-fast "$@" 2>&1 | tee "$logs/cargo.log" || status=$?
else
    step "Tests"
    rm -f "$times.new"
    binaries | with_times | sort -rn | cut -d ' ' -f 2- |
        xargs -P "${TIDEMARK_TEST_LANES:-2}" -I '{}' bash -c 'run_one "$1"' run_one '{}' || status=1
    [ ! -f "$times.new" ] || mv "$times.new" "$times"
    cargo test --doc >"$logs/doc.log" 2>&1 || { status=1; cat "$logs/doc.log"; }
fi
step "Done"
cat "$logs"/*.log |
    awk '/^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1); if ($i ~ /^ignored/) s += $(i-1) } }
    END { if (s) printf "%d ignored\n", s; printf "%d passed, %d failed\n", p, f; exit !p }' || status=1
exit $status
