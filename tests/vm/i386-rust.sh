# shellcheck shell=bash disable=SC2154 # $cache and the helpers: from cache.sh
# A Rust compiler that knows i386, for the 32-bit shim. rustup's and Debian's own
# come with the standard library of one architecture only; Debian's packages of
# two architectures, unpacked side by side into $cache/i386-rust, make one that
# compiles for both. Nothing is installed. Sourced, after cache.sh and i386.sh.

i386_rust=$cache/i386-rust
# client-shim's rust-version.
i386_rust_oldest=1.85

i386_rust_setup() { i386_rust_is_there || cache_lock i386-rust fetch_i386_rust; }

i386_rust_is_there() { [ "$(cat "$i386_rust/made-by" 2>/dev/null)" = "$(i386_rust_stamp)" ]; }

i386_rust_stamp() { cksum <"$repo/tests/vm/i386-rust.sh"; }

fetch_i386_rust() {
    i386_rust_is_there && return # by the run that held the lock before us
    local work=$i386_rust.work set name version deb both=(-o APT::Architectures=amd64,i386)
    rm -rf "$i386_rust"
    say "downloading a Rust compiler with the 32-bit standard library"
    i386_update "$work" "${both[@]}"
    # Debian 12's plain rustc is too old; what it builds its browsers with is not.
    for set in -web ''; do
        version=$(i386_rust_version "$set") && break
    done
    [ -n "$version" ] || die "apt has no Rust $i386_rust_oldest for amd64 with libstd for i386"
    # First all that the compiler and its own architecture's library need...
    i386_apt "$work" apt-get "${both[@]}" -o APT::Architecture=amd64 install -y --no-install-recommends \
        --download-only "libstd-rust$set-dev=$version" >&2 || die "apt has no libstd-rust$set-dev $version"
    # ... then without what they need: gcc and binutils are here already.
    (cd "$work/cache/archives" && i386_apt "$work" apt-get "${both[@]}" download \
        "rustc$set:amd64=$version" "libstd-rust$set-dev:i386=$version") >&2 ||
        die "apt has no rustc$set $version and libstd-rust$set-dev for i386"
    for deb in "$work"/cache/archives/*.deb; do
        name=${deb##*/}
        # All shall have the same libc, and that is the machine's: ld.so is its part.
        [ "${name%%_*}" = libc6 ] || dpkg -x "$deb" "$work/tree"
    done
    rm -rf "$work"/tree/usr/{share,bin/rustdoc}
    # Not LD_LIBRARY_PATH, which the linker would inherit.
    cat >"$work/tree/rustc" <<'END'
#!/bin/sh
here=${0%/*}
exec /lib64/ld-linux-x86-64.so.2 --library-path "$here/usr/lib/x86_64-linux-gnu:$here/lib/x86_64-linux-gnu" \
    "$here/usr/bin/rustc" --sysroot "$here/usr" "$@"
END
    chmod +x "$work/tree/rustc"
    "$work/tree/rustc" --version >/dev/null || die "Debian's rustc$set $version does not run"
    i386_rust_stamp >"$work/tree/made-by"
    mv -T "$work/tree" "$i386_rust"
    rm -rf "$work"
}

# The newest version of rustc$1 for amd64 that there is a standard library of for
# i386. (The archives of the two are not always in step.)
i386_rust_version() {
    local version known
    known=$(i386_rust_versions "rustc$1:amd64")
    for version in $(i386_rust_versions "libstd-rust$1-dev:i386"); do
        if grep -Fxq "$version" <<<"$known" && printf '%s\n' "$i386_rust_oldest" "$version" | sort -CV; then
            echo "$version"
            return
        fi
    done
    return 1
}

# Newest first.
i386_rust_versions() {
    i386_apt "$work" apt-cache "${both[@]}" madison "$1" 2>/dev/null |
        sed -n 's/^[^|]*| *\([^ |]*\) *|.*/\1/p' | sort -rVu
}

# cargo that compiles for i686-unknown-linux-gnu: cargo itself is the machine's.
# Not its flags: they are for another compiler.
i386_cargo() {
    local command=$1
    shift
    env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u RUSTC_WRAPPER RUSTC="$i386_rust/rustc" \
        CARGO_TARGET_I686_UNKNOWN_LINUX_GNU_LINKER="$repo/tests/vm/i386-cc" \
        cargo "$command" --target i686-unknown-linux-gnu --ignore-rust-version "$@"
}
