# shellcheck shell=bash disable=SC2034 # what is set here is for those who source it
# Sourced by tests/setup and tests/vm/vm.sh: the download cache and the few
# apt helpers both need. Everything the scripts fetch lives in $cache, outside
# the tree, so that `git clean` does not cost another download.

repo=$(cd "${BASH_SOURCE[0]%/*}/../.." && pwd -P)
cache=${VIDCOMPAT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vidcompat}
export DEBIAN_FRONTEND=noninteractive
# Debian's /etc/profile leaves these out for ordinary users; depmod is there.
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 125; }

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# The version apt would install, or nothing.
candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p' | grep -vx '(none)' || true
}

# Fresh package lists, once per run: a container image has none at all, and
# old ones name versions that are gone from the mirror.
apt_update() {
    [ -z "${apt_updated:-}" ] || return 0
    say "apt-get update"
    as_root apt-get -qq update >/dev/null || say "apt-get update failed, going on with the old lists"
    apt_updated=1
}

# apt and dpkg chat on stdout; what goes wrong they say on stderr.
apt_install() { as_root apt-get -qq install -y --no-install-recommends "$@" >/dev/null; }

# One writer at a time in the cache, whoever else runs: cache_lock NAME COMMAND...
cache_lock() {
    local name=$1
    shift
    mkdir -p "$cache"
    # The subshell closes the descriptor, and so drops the lock, however it ends.
    (
        flock 9
        "$@"
    ) 9>"$cache/.lock-$name"
}

# Unpack a Debian package without installing it: fetch_package PACKAGE DIRECTORY
# The directory appears in one rename, so an interrupted run leaves only a
# .tmp folder that the next one clears away.
fetch_package() {
    local package=$1 dir=$2 tmp=$2.tmp
    rm -rf "$tmp"
    mkdir -p "$tmp/tree"
    say "downloading $package"
    if ! (cd "$tmp" && apt-get -qq download "$package") 2>/dev/null; then
        apt_update
        (cd "$tmp" && apt-get -qq download "$package") >&2 || die "cannot download $package"
    fi
    dpkg -x "$tmp"/*.deb "$tmp/tree"
    mv -T "$tmp/tree" "$dir"
    rm -rf "$tmp"
}
