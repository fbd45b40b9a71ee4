#!/usr/bin/env bash
# The scenarios of a real cluster: starts the node, an S3 server of this host and the operator by Helm, runs
# scenarios/*.sh, and takes all of it away. A node that ran before is used and left running.
#
#   tools/e2e/run.sh [--debug] [--built] [--keep] [NAME…]
#
# NAME    scenarios whose name contains it (quickstart, network, …); absent: all
# --debug a debug build of the image, quicker to build     --built the image as it was built last
# --keep  leaves everything up, to look at
#
# After each scenario nothing may be left over: see nothing_left in library.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tools/e2e/library.sh
. tools/e2e/library.sh
need_root e2e

keep='' profile='' is_built='' names=()
for argument; do
    case $argument in
    --keep) keep=yes ;;
    --debug) profile=--debug ;;
    --built) is_built=yes ;;
    -*) die "Unknown: $argument. Known: --debug, --built, --keep, or a part of a scenario's name" ;;
    *) names+=("$argument") ;;
    esac
done

selected() { # FILE
    local name
    [ ${#names[@]} -gt 0 ] || return 0
    for name in "${names[@]}"; do [[ $(basename "$1") != *"$name"* ]] || return 0; done
    return 1
}
files=()
for file in tools/e2e/scenarios/*.sh; do if selected "$file"; then files+=("$file"); fi; done
[ ${#files[@]} -gt 0 ] || die "No scenario is named so. There are: $(cd tools/e2e/scenarios && echo *.sh)"

take_away() {
    local status=$?
    trap - EXIT
    if [ -n "$keep" ]; then
        say "left up: kubectl --kubeconfig $KUBECONFIG; objects in $BUCKET; end: kill $store; rm -r $WORK; make e2e-down"
        exit $status
    fi
    set +e # whatever fails here, the rest is taken away
    if [ -z "$ran_before" ]; then
        tools/e2e/down.sh
    elif [ -n "$(node_pid)" ]; then
        { forget_faults; uninstall; } >>"$WORK/log" 2>&1 || say "not all of it could be uninstalled: make e2e-down takes the node away"
    fi
    # Told to end it waits for those who keep their connections, as the operator does on a node that stays.
    if [ -n "$store" ]; then kill -KILL "$store" 2>/dev/null || true; fi
    [ $status -ne 0 ] && [ -e "$WORK/log" ] && cp "$WORK/log" "${TMPDIR:-/tmp}/tidemark-e2e.log" && say "what was said by the programs: ${TMPDIR:-/tmp}/tidemark-e2e.log"
    rm -rf "$WORK"
    exit $status
}

ran_before=$(node_pid) store=''
trap take_away EXIT
trap 'exit 130' INT TERM
since=$SECONDS
say "programs"
E2E_PARTS=${TIDEMARK_E2E_PARTS:-$(tools/e2e/parts.sh)}
export TIDEMARK_E2E_PARTS=$E2E_PARTS PATH=$E2E_PARTS/bin:$PATH
gateway=$(tools/parts.sh)/versitygw
say "image"
image=${CARGO_TARGET_DIR:-target}/tidemark-image.tar
# shellcheck disable=SC2086
[ -n "$is_built" ] || image=$(tools/e2e/image.sh $profile)
cp "${CARGO_TARGET_DIR:-target}/$([ -n "$profile" ] && echo debug || echo release)/tidemark" "$WORK/tidemark"
built=$((SECONDS - since))

tools/e2e/up.sh >/dev/null
tools/e2e/enter.sh ctr images import - <"$image" >>"$WORK/log" 2>&1
echo "$gateway" >"$WORK/gateway"
start_store "$gateway" && store=$(cat "$WORK/store.pid")
install >>"$WORK/log" 2>&1 || { show_operator >&2; tail -n 20 "$WORK/log" >&2; die "The chart could not be installed (above)"; }
say "built in $built s; node, store and operator are up after $((SECONDS - since)) s"
nothing_left || die "Something of ours was there before the first scenario (above)"

passed=0 failed=()
for file in "${files[@]}"; do
    name=$(basename "$file" .sh)
    printf '\n%s  %s\n' "$name" "$(sed -n '2s/^# //p' "$file")"
    at=$SECONDS
    if scenario "$file"; then
        passed=$((passed + 1))
        printf 'ok      %4d s  %s\n' $((SECONDS - at)) "$name"
    else
        failed+=("$name")
        printf 'FAILED  %4d s  %s\n' $((SECONDS - at)) "$name"
    fi
done
echo
echo "$passed passed, ${#failed[@]} failed${failed[*]:+: ${failed[*]}}, in $((SECONDS - since)) s of which building took $built s"
[ ${#failed[@]} -eq 0 ]
