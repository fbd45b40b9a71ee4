#!/usr/bin/env bash
# Builds tidemark as one static program and packs it as the image that the Dockerfile makes, without a daemon or a
# network beyond cargo's. Prints the image's file. If the node runs, the image is loaded into it too.
#
#   tools/e2e/image.sh [--debug]      release by default; --debug is quicker to build and larger
#
# Static by glibc: the standard library's musl target is not needed, and the dependencies are those of any other build
# (the flag is for the last step, which links). Names are resolved by glibc's own `files` and `dns`, which are in it.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tools/e2e/env.sh
. tools/e2e/env.sh
NAME=tidemark.local/tidemark:dev
profile=release
[ "${1:-}" != --debug ] || profile=dev
directory=${CARGO_TARGET_DIR:-target}/${profile/dev/debug}
nice -n "${TIDEMARK_BUILD_NICE:-0}" cargo rustc --locked --profile "$profile" --bin tidemark \
    ${TIDEMARK_BUILD_JOBS:+-j "$TIDEMARK_BUILD_JOBS"} -- -C target-feature=+crt-static >&2
case $(file -bL "$directory/tidemark" 2>/dev/null || readelf -d "$directory/tidemark") in
*NEEDED* | *"dynamically linked"*) die "$directory/tidemark is not static" ;;
esac

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/usr/local/bin "$tree"/etc/ssl/certs "$tree"/tmp
chmod 1777 "$tree/tmp"
install -m 755 --strip "$directory/tidemark" "$tree/usr/local/bin/tidemark"
# The root certificates for stores with public ones.
cp -L /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/" 2>/dev/null ||
    say "no /etc/ssl/certs/ca-certificates.crt here: the image trusts no public certificate (Debian: apt install ca-certificates)"
printf 'tidemark:x:65532:65532::/:\n' >"$tree/etc/passwd"
image=${CARGO_TARGET_DIR:-target}/tidemark-image.tar
tools/e2e/oci.sh "$NAME" "$tree" '["/usr/local/bin/tidemark"]' 65532:65532 >"$image.new"
mv "$image.new" "$image"
say "$NAME: $(($(stat -c %s "$tree/usr/local/bin/tidemark") >> 20)) MiB program, $(($(stat -c %s "$image") >> 20)) MiB image"
if [ -n "$(node_pid)" ] && [ "$(id -u)" -ne 0 ]; then
    say "to load it into the node: sudo tools/e2e/enter.sh ctr images import - <$image"
elif [ -n "$(node_pid)" ]; then
    tools/e2e/enter.sh ctr images import - <"$image" >&2
fi
echo "$image"
