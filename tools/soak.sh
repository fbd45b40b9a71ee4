#!/usr/bin/env bash
# What takes long, by hand: every late delivery instead of each third, 500 seeds of chaos instead of 6, minutes of zeros,
# slow sources, slow limits, an API server that is away for long. Needs root for the throttled devices.
# Arguments go to the tests: tools/soak.sh soak_ten_minutes
set -euo pipefail
cd "$(dirname "$0")/.."
tools/with_parts.sh cargo test --no-run
TIDEMARK_PARTS=$(cat target/parts)
export TIDEMARK_PARTS TIDEMARK_SOAK=1
if [ $# -eq 0 ]; then
    cargo test --test store -- laws:: damage:: longhorn::beside:: --nocapture
    cargo test --test operator -- law_9_many_backups an_api_server_that_is_away --nocapture
    set -- soak_
fi
cargo test --no-fail-fast -- --ignored --nocapture --test-threads 1 "$@"
