# shellcheck shell=bash disable=SC2154 # $cache and the helpers: from cache.sh
# 32-bit programs for the tests: Debian's v4l-utils and yavta with the libraries
# they need, and what gcc -m32 needs to link one, unpacked into $cache/i386.
# Nothing is installed, and dpkg does not learn of an architecture: apt works on
# lists of its own. Sourced, after cache.sh.

i386=$cache/i386

i386_setup() { i386_is_there || cache_lock i386 fetch_i386; }

i386_is_there() { [ "$(cat "$i386/made-by" 2>/dev/null)" = "$(i386_stamp)" ]; }

# libgcc.a must be of the compiler's own version.
i386_stamp() { echo "gcc $(gcc -dumpversion) $(cksum <"$repo/tests/vm/i386.sh")"; }

# i386_apt DIR COMMAND...: apt-get or apt-cache that knows i386, nothing that is
# installed, and no other folder than DIR; see i386_update.
i386_apt() {
    local dir=$1 command=$2
    shift 2
    "$command" -qq -o APT::Architecture=i386 -o APT::Architectures=i386 \
        -o Dir::State="$dir/state" -o Dir::State::status="$dir/status" \
        -o Dir::Cache="$dir/cache" -o Debug::NoLocking=1 -o APT::Sandbox::User= \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

# i386_update DIR [OPTIONS]: fresh lists in a new DIR.
i386_update() {
    local dir=$1
    shift
    rm -rf "$dir"
    mkdir -p "$dir"/state/lists/partial "$dir"/cache/archives/partial "$dir/tree"
    : >"$dir/status"
    # Not every archive of this machine has i386, and one with these packages is enough.
    i386_apt "$dir" apt-get "$@" update >/dev/null 2>&1 || true
}

fetch_i386() {
    i386_is_there && return # by the run that held the lock before us
    local work=$i386.work deb
    rm -rf "$i386"
    say "downloading 32-bit v4l-utils and yavta"
    i386_update "$work"
    # With all dependencies, since nothing is installed in an empty status file.
    i386_apt "$work" apt-get install -y --no-install-recommends --download-only v4l-utils yavta >&2 ||
        die "apt has no v4l-utils and yavta for i386"
    (cd "$work/cache/archives" && i386_apt "$work" apt-get download libc6-dev "libgcc-$(gcc -dumpversion)-dev") >&2 ||
        die "apt has no libc6-dev and libgcc-$(gcc -dumpversion)-dev for i386"
    for deb in "$work"/cache/archives/*.deb; do dpkg -x "$deb" "$work/tree"; done
    # Debian 13 has no /lib of its own, but libc.so may name it.
    [ -e "$work/tree/lib" ] || ln -s usr/lib "$work/tree/lib"
    i386_stamp >"$work/tree/made-by"
    mv -T "$work/tree" "$i386"
    rm -rf "$work"
}

# gcc for 32-bit programs and libraries: the compiler and the kernel's headers
# are this machine's own (asm/ is one for both), libc and libgcc the fetched ones,
# also where libc.so, a linker script, names its files by absolute paths.
i386_gcc() {
    local lib=$i386/usr/lib/i386-linux-gnu
    gcc -m32 -isystem "$i386/usr/include/i386-linux-gnu" -isystem "$i386/usr/include" \
        -idirafter "/usr/include/$(gcc -print-multiarch)" -Wl,--sysroot="$i386" \
        -B "$lib/" -L "$lib" -L "$i386/lib/i386-linux-gnu" \
        -B "$(echo "$i386"/usr/lib/gcc/i686-linux-gnu/*/)" "$@"
}

# i386_libraries DIR PROGRAM...: in DIR/i386 the libraries that 32-bit programs
# need, because a guest sees the tree but perhaps not the cache, and Debian's PROGRAMs.
i386_libraries() {
    local dir=$1 name file
    shift
    [ "$(cat "$dir/i386/made-by" 2>/dev/null)" != "$(i386_stamp)" ] || return 0
    rm -rf "$dir/i386" "$dir/i386.$$"
    mkdir -p "$dir/i386.$$"
    # No matter in which of these a library lies.
    for file in "$i386"/lib/i386-linux-gnu/*.so* "$i386"/usr/lib/i386-linux-gnu/*.so*; do
        [ ! -e "$file" ] || cp -L "$file" "$dir/i386.$$"
    done
    for name in "$@"; do cp "$i386/usr/bin/$name" "$dir/i386.$$"; done
    cp "$i386/made-by" "$dir/i386.$$"
    mv -T "$dir/i386.$$" "$dir/i386"
}

# i386_command DIR PROGRAM NAME: DIR/NAME, which runs DIR/i386/PROGRAM with the
# libraries there. It is one process, and LD_PRELOAD works as for any program.
i386_command() {
    local dir=$1 program=$2 name=$3
    # shellcheck disable=SC2016 # for that shell to expand
    printf '#!/bin/sh\nhere=${0%%/*}/i386\nexec "$here/ld-linux.so.2" --library-path "$here" "$here/%s" "$@"\n' \
        "$program" >"$dir/$name.$$"
    chmod +x "$dir/$name.$$"
    mv -T "$dir/$name.$$" "$dir/$name"
}
