# shellcheck shell=bash disable=SC2154 # work is the caller's
# Sourced by the scripts that get programs: Debian's packages, unpacked and not installed. No root is needed, nothing is
# changed in the system, and no daemon that a package brings is started.
#
# The caller has set $work (removed at the end), and defines say and die.

# deb_unpack PACKAGE…: into $work/debian/tree
deb_unpack() {
    local debs=$work/debian private file
    command -v apt-get >/dev/null || die "$*: missing, and this is no Debian to take it from"
    mkdir -p "$debs/tree"
    say "$*: downloading from Debian"
    if ! (cd "$debs" && apt-get download -q "$@") >"$work/apt.log" 2>&1; then
        # The system's package lists are missing or old. Ours are private.
        say "$*: fetching package lists (this machine's are missing or old)"
        mkdir -p "$debs/lists/partial" "$debs/archives/partial"
        private=(-o "Dir::State::Lists=$debs/lists" -o "Dir::Cache=$debs" -o "Dir::Cache::Archives=$debs/archives" -o Debug::NoLocking=1)
        { apt-get "${private[@]}" -q update && (cd "$debs" && apt-get "${private[@]}" download -q "$@"); } \
            >>"$work/apt.log" 2>&1 || { cat "$work/apt.log" >&2; die "$*: apt-get failed (above)"; }
    fi
    for file in "$debs"/*.deb; do dpkg-deb -x "$file" "$debs/tree"; done
    rm -f "$debs"/*.deb
}
