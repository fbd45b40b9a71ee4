#!/usr/bin/env bash
# Builds what the demo needs, Rust and Go side by side, and shows it. Arguments go to the demo: --size 512Mi --keep
set -euo pipefail
cd "$(dirname "$0")/.."
tools/with_parts.sh cargo build --bin tidemark --example demo
TIDEMARK_PARTS=$(cat target/parts)
export TIDEMARK_PARTS
exec "${CARGO_TARGET_DIR:-target}/debug/examples/demo" "$@"
