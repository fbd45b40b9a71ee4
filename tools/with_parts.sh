#!/usr/bin/env bash
# Runs a command (a cargo build) beside tools/parts.sh: the Rust and the Go build share the machine, and a cold start
# takes as long as the longer of the two, not their sum. If either fails the other is stopped.
# The directory of the parts is left in target/parts.
#
#   tools/with_parts.sh cargo build
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p target
set -m # each in a process group of its own, so that stopping one stops its compilers too

tools/parts.sh >target/parts.new &
parts=$!
"$@" &
build=$!

stop() {
    local group
    for group in $parts $build; do kill -TERM -- "-$group" 2>/dev/null; done
    wait
}
trap 'stop; exit 130' INT TERM

for _ in 1 2; do
    wait -n || { status=$?; stop 2>/dev/null; exit $status; }
done
mv target/parts.new target/parts
