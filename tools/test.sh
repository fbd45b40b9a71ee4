#!/usr/bin/env bash
# Everything a change must pass: formatting, lints, units and laws, S3 over the wire, the operator against a real API
# server. The last line counts the tests. Arguments go to `cargo test`: tools/test.sh --test s3_faults
set -euo pipefail
cd "$(dirname "$0")/.."
[ ! -t 1 ] || export CARGO_TERM_COLOR=always
since=$SECONDS
step() { printf '\n== %s (%d:%02d)\n' "$1" $(((SECONDS - since) / 60)) $(((SECONDS - since) % 60)); }

step "Formatting"
cargo fmt --check
step "Lints and builds, beside the control plane's programs"
tools/with_parts.sh sh -c 'cargo clippy --all-targets -- -D warnings && cargo test --no-run'
step "Tests"
TIDEMARK_PARTS=$(cat target/parts)
export TIDEMARK_PARTS
status=0
cargo test --no-fail-fast "$@" 2>&1 | tee target/test.log || status=$?
step "Done"
awk '/^test result:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1); if ($i ~ /^ignored/) s += $(i-1) } }
    END { if (s) printf "%d ignored\n", s; printf "%d passed, %d failed\n", p, f; exit !p }' target/test.log || status=1
exit $status
