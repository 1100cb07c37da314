# shellcheck shell=bash disable=SC2154 # $cache, $kernel_dir...: from cache.sh and vm.sh
# The drivers that Debian's kernels leave out and the tests need: vim2m and
# vicodec from Debian's kernel source, v4l2loopback from its dkms package.
# Built once per kernel into $cache/modules-extra/RELEASE. Sourced, after vm.sh.

built_names='v4l2-mem2mem vim2m vicodec v4l2loopback'

# built_modules WANTED: builds them for $kernel_release if WANTED, the guest's
# --modules, names one of them.
built_modules() {
    local name wanted=
    for name in $built_names; do
        [[ ! $1 =~ (^|;)[[:space:]]*${name//-/[-_]}([[:space:];]|$) ]] || wanted=1
    done
    [ -z "$wanted" ] || modules_are_built || cache_lock modules build_modules
}

# Of this very kernel, and by this very script?
modules_are_built() {
    [ "$(cat "$cache/modules-extra/$kernel_release/built-for" 2>/dev/null)" = "$(modules_stamp)" ]
}

modules_stamp() { echo "$(kernel_version) $(cksum <"$repo/tests/vm/modules.sh")"; }

# Debian's version of the kernel in $kernel_dir, from the kernel itself: what it
# is built of must match to the last digit. (The boot protocol has, at 0x20e, the
# place of a text such as "6.1.0-56-amd64 (...) #1 SMP Debian 6.1.192-2 (2026-11-16)".)
kernel_version() {
    local image=$kernel_dir/boot/vmlinuz-$kernel_release at
    at=$(od -An -tu2 -j $((0x20e)) -N 2 "$image")
    dd if="$image" bs=1 skip=$((at + 0x200)) count=250 2>/dev/null | tr '\0' '\n' |
        sed -n '1s/.* Debian \([^ ]*\) .*/\1/p'
}

build_modules() {
    modules_are_built && return # by the run that held the lock before us
    local version series work=$cache/modules-work target=$cache/modules-extra/$kernel_release
    version=$(kernel_version)
    [ -n "$version" ] || die "cannot tell the version of $kernel_dir"
    series=$(cut -d. -f1,2 <<<"$version")
    rm -rf "$work" "$target.tmp"
    mkdir -p "$work" "$target.tmp"
    modules_tools
    modules_headers "$version"
    modules_sources "$version" "$series"

    say "building ${built_names// /, } for Linux $kernel_release (log: $work/log)"
    printf 'obj-m += %s\n' "${built_names// /.o }.o" >"$work/src/Kbuild"
    printf 'vicodec-y := vicodec-core.o codec-fwht.o codec-v4l2-fwht.o\n' >>"$work/src/Kbuild"
    # No BTF: it would need the kernel's own uncompressed file.
    make -C "$work/tree/usr/src/linux-headers-$kernel_release" -j "$(nproc)" CC="${CC:-gcc}" \
        CONFIG_DEBUG_INFO_BTF_MODULES= M="$work/src" modules >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        die "building modules for Linux $kernel_release failed"
    }
    for module in $built_names; do
        strip --strip-debug "$work/src/$module.ko" -o "$target.tmp/$module.ko"
    done
    modules_stamp >"$target.tmp/built-for"
    rm -rf "$target"
    mv -T "$target.tmp" "$target"
    rm -rf "$work"
}

modules_tools() {
    local p missing=()
    # libelf1 and libssl3: what the kernel's own build tools are linked to.
    for p in make gcc binutils libelf1 libssl3 xz-utils; do installed "$p" || missing+=("$p"); done
    [ ${#missing[@]} = 0 ] && return
    apt_update
    say "installing ${missing[*]}"
    apt_install "${missing[@]}"
}

# The headers and build tools of this kernel, together in $work/tree.
modules_headers() {
    local version=$1 package packages tree=$work/tree
    packages=$(apt-cache show "linux-headers-$kernel_release=$version" 2>/dev/null |
        sed -n 's/^Depends: //p' | tr ',' '\n' | sed -n 's/^ *\(linux-\(headers\|kbuild\)-[^ ]*\).*/\1/p')
    [ -n "$packages" ] ||
        die "apt has no linux-headers-$kernel_release $version: delete $cache/kernels to get a current kernel"
    mkdir -p "$tree"
    for package in "linux-headers-$kernel_release" $packages; do
        fetch_package "$package=$version" "$work/package"
        cp -a "$work/package/." "$tree"
        rm -rf "$work/package"
    done
    # They are made to be installed.
    sed -i "s,/usr/src/,$tree&," "$tree/usr/src/linux-headers-$kernel_release/Makefile"
}

# The sources, together in $work/src.
modules_sources() {
    local version=$1 series=$2 media=linux-source-$2/drivers/media
    mkdir "$work/src"
    fetch_package "linux-source-$series=$version" "$work/package"
    say "unpacking three drivers of it"
    xz -dc -T0 "$work/package/usr/src/linux-source-$series.tar.xz" | tar -x -C "$work" \
        "$media/test-drivers/vim2m.c" "$media/test-drivers/vicodec" "$media/v4l2-core/v4l2-mem2mem.c"
    cp "$work/$media"/*/*.c "$work/$media"/test-drivers/vicodec/*.[ch] "$work/src"
    rm -rf "$work/package"
    fetch_package v4l2loopback-dkms "$work/package"
    # 6.8 took strlcpy away; strscpy does the same where the result is not used.
    sed 's/\<strlcpy\>/strscpy/' "$work/package"/usr/src/v4l2loopback-*/v4l2loopback.c >"$work/src/v4l2loopback.c"
    cp "$work/package"/usr/src/v4l2loopback-*/*.h "$work/src"
    rm -rf "$work/package" "$work/linux-source-$series"
}
