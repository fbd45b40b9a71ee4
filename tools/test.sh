#!/usr/bin/env bash
# Everything a change must pass: formatting, lints, units and laws, S3 over the wire, the operator against a real API
# server. The last line counts the tests. Arguments go to `cargo test`: tools/test.sh --test store packet_loss
#
# Two programs hold nearly all tests and mostly wait, for servers and for clocks; so they run side by side, with more
# threads than cores. All they say is in target/test-logs; here each test is a line, and what failed is shown whole.
set -euo pipefail
cd "$(dirname "$0")/.."
[ ! -t 1 ] || export CARGO_TERM_COLOR=always
since=$SECONDS
logs=target/test-logs
step() { printf '\n== %s (%d:%02d)\n' "$1" $(((SECONDS - since) / 60)) $(((SECONDS - since) % 60)); }

# The test programs, one a line: `name path`.
programs() {
    cargo test --no-run --message-format=json 2>/dev/null |
        sed -n '/"reason":"compiler-artifact"/{/"profile":{[^}]*"test":true/s/.*"kind":\["\([^"]*\)"\].*"executable":"\([^"]*\)-\([^"-]*\)".*/\1 \2 \3/p}' |
        while read -r kind path hash; do printf '%s %s-%s\n' "$([ "$kind" = test ] && basename "$path" || echo "$kind")" "$path" "$hash"; done
}

# Runs one program with so many threads; a program that died without a result counts as a failure.
run() {
    local name=$1 path=$2 threads=$3 log=$logs/$1.log status=0 began=$SECONDS
    "$path" --test-threads "$threads" 2>&1 | tee "$log" | grep --line-buffered -E '^test .* \.\.\. (ok|FAILED)$' | sed -u "s/^test /$name  /" ||
        true
    grep -q '^test result: ok' "$log" || status=1
    grep -q '^test result:' "$log" || echo "test result: FAILED. 0 passed; 1 failed; 0 ignored (died)" >>"$log"
    [ $status -eq 0 ] || sed -n '/^failures:$/,$p' "$log" | sed "s/^/$name | /"
    printf '== %s: %s, %d:%02d\n' "$name" "$(sed -n 's/^test result: \(.*\); 0 measured.*/\1/p' "$log" | tail -n 1)" \
        $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60))
    return $status
}

step "Formatting"
cargo fmt --check
step "Lints and builds, beside the control plane's programs"
tools/with_parts.sh sh -c 'cargo clippy --all-targets -- -D warnings && cargo test --no-run'
TIDEMARK_PARTS=$(cat target/parts)
export TIDEMARK_PARTS
rm -rf "$logs"
mkdir -p "$logs"
status=0
if [ $# -gt 0 ]; then
    step "Tests: $*"
    cargo test --no-fail-fast "$@" 2>&1 | tee "$logs/cargo.log" || status=$?
else
    step "Tests"
    declare -A path
    while read -r name file; do path[$name]=$file; done < <(programs)
    run operator "${path[operator]}" "${TIDEMARK_OPERATOR_THREADS:-4}" &
    operator=$!
    for name in project bin lib; do run $name "${path[$name]}" 2 || status=1; done
    run store "${path[store]}" "${TIDEMARK_STORE_THREADS:-3}" || status=1
    wait $operator || status=1
    cargo test --doc >"$logs/doc.log" 2>&1 || { status=1; cat "$logs/doc.log"; }
fi
step "Done"
cat "$logs"/*.log |
    awk '/^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1); if ($i ~ /^ignored/) s += $(i-1) } }
    END { if (s) printf "%d ignored\n", s; printf "%d passed, %d failed\n", p, f; exit !p }' || status=1
exit $status
