# shellcheck shell=bash disable=SC2154 # $cache and the helpers: from cache.sh
# 32-bit programs for the tests: Debian's v4l-utils and yavta with the libraries
# they need, and what gcc -m32 needs to link a static program, unpacked into
# $cache/i386. Nothing is installed, and dpkg does not learn of an architecture:
# apt works on lists of its own. Sourced, after cache.sh.

i386=$cache/i386

i386_setup() { i386_is_there || cache_lock i386 fetch_i386; }

i386_is_there() { [ "$(cat "$i386/made-by" 2>/dev/null)" = "$(i386_stamp)" ]; }

# libgcc.a must be of the compiler's own version.
i386_stamp() { echo "gcc $(gcc -dumpversion) $(cksum <"$repo/tests/vm/i386.sh")"; }

fetch_i386() {
    i386_is_there && return # by the run that held the lock before us
    local work=$i386.work deb
    rm -rf "$work" "$i386"
    mkdir -p "$work"/state/lists/partial "$work"/cache/archives/partial "$work/tree"
    : >"$work/status"
    i386_apt() {
        apt-get -qq -o APT::Architecture=i386 -o APT::Architectures=i386 \
            -o Dir::State="$work/state" -o Dir::State::status="$work/status" \
            -o Dir::Cache="$work/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User= \
            -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
    }
    say "downloading 32-bit v4l-utils and yavta"
    # Not every archive of this machine has i386, and one with these packages is enough.
    i386_apt update >/dev/null 2>&1 || true
    # With all dependencies, since nothing is installed in an empty status file.
    i386_apt install -y --no-install-recommends --download-only v4l-utils yavta >&2 ||
        die "apt has no v4l-utils and yavta for i386"
    (cd "$work/cache/archives" && i386_apt download libc6-dev "libgcc-$(gcc -dumpversion)-dev") >&2 ||
        die "apt has no libc6-dev and libgcc-$(gcc -dumpversion)-dev for i386"
    for deb in "$work"/cache/archives/*.deb; do dpkg -x "$deb" "$work/tree"; done
    i386_stamp >"$work/tree/made-by"
    mv -T "$work/tree" "$i386"
    rm -rf "$work"
}

# gcc that makes a static 32-bit program: the compiler and the kernel's headers
# are this machine's own (asm/ is one for both), libc and libgcc the fetched ones.
i386_gcc() {
    local lib=$i386/usr/lib/i386-linux-gnu
    gcc -m32 -static -isystem "$i386/usr/include/i386-linux-gnu" -isystem "$i386/usr/include" \
        -idirafter "/usr/include/$(gcc -print-multiarch)" -B "$lib/" -L "$lib" \
        -B "$(echo "$i386"/usr/lib/gcc/i686-linux-gnu/*/)" "$@"
}

# i386_programs DIR NAME...: DIR/NAME-i386 for each, which runs by itself: with its
# libraries in DIR/i386, because a guest sees the tree but perhaps not the cache.
i386_programs() {
    local dir=$1 name file
    shift
    if [ "$(cat "$dir/i386/made-by" 2>/dev/null)" != "$(i386_stamp)" ]; then
        rm -rf "$dir/i386" "$dir/i386.$$"
        mkdir -p "$dir/i386.$$"
        # No matter in which of these a library lies: Debian 13 has no /lib of its own.
        for file in "$i386"/lib/i386-linux-gnu/*.so* "$i386"/usr/lib/i386-linux-gnu/*.so*; do
            [ ! -e "$file" ] || cp -L "$file" "$dir/i386.$$"
        done
        for name in "$@"; do cp "$i386/usr/bin/$name" "$dir/i386.$$"; done
        cp "$i386/made-by" "$dir/i386.$$"
        mv -T "$dir/i386.$$" "$dir/i386"
    fi
    for name in "$@"; do
        # shellcheck disable=SC2016 # for that shell to expand
        printf '#!/bin/sh\nhere=${0%%/*}/i386\nexec "$here/ld-linux.so.2" --library-path "$here" "$here/%s" "$@"\n' \
            "$name" >"$dir/$name-i386.$$"
        chmod +x "$dir/$name-i386.$$"
        mv -T "$dir/$name-i386.$$" "$dir/$name-i386"
    done
}
