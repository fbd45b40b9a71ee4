#!/usr/bin/env bash
# Gets the Lua interpreter that docs/gitops.md is tested with, and prints its path: gopher-lua, which Argo CD itself uses,
# built from the Go module that tools/lua pins (5 CPU seconds, once). Cached below
# ${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/lua.
#
# stdout: the path, and nothing else. stderr: what is being done.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${TIDEMARK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tidemark}/lua
work=$cache/.work-$$
final=$cache/glua-$(cat tools/lua.sh tools/go.sh tools/lua/go.mod tools/lua/go.sum <(uname -m) | sha256sum | cut -c1-12)

say() { printf 'lua  %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# shellcheck source=tools/go.sh
. tools/go.sh

if [ ! -x "$final" ]; then
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work"
    find_go
    say "building gopher-lua with Go $(go_version "$go")"
    go_build tools/lua "$work/" "-s -w" github.com/yuin/gopher-lua/cmd/glua
    mv "$work/glua" "$final"
fi
echo "$final"
