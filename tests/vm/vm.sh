# shellcheck shell=bash disable=SC2154 # $repo, $cache: from cache.sh
# The virtual machine of tests/guest: a Debian kernel, a small initramfs, and
# this machine's own files as the guest's root. Sourced, after cache.sh.

# shellcheck source=tests/vm/modules.sh
. "${BASH_SOURCE[0]%/*}/modules.sh"

# What the guest needs before it can see any file of the host.
boot_modules='virtio_pci 9pnet_virtio 9p overlay'

# vm_kernel SERIES MODULES: sets $kernel_dir (an unpacked package: boot/,
# lib/modules/) and $kernel_release. A kernel that is in the cache is used as it
# is, so that work goes on without a network; delete $cache/kernels to get a newer
# one. Of MODULES, the guest's --modules, those that Debian leaves out are built.
vm_kernel() {
    local series=$1 modules=$2
    cached_kernel "$series" || {
        cache_lock kernel fetch_kernel "$series"
        cached_kernel "$series"
    }
    kernel_release=${kernel_dir##*/}
    built_modules "$modules"
    cache_lock kernel extra_modules
}

cached_kernel() {
    kernel_dir=$(compgen -G "$cache/kernels/$1.*" | grep -v '\.tmp$' | sort -V | tail -n 1) || true
    [ -n "$kernel_dir" ]
}

fetch_kernel() {
    local series=$1 package dir release
    cached_kernel "$series" && return # by the run that held the lock before us
    package=$(kernel_package "$series")
    [ -n "$package" ] || { apt_update; package=$(kernel_package "$series"); }
    [ -n "$package" ] || die "apt knows no Linux $series (Debian 12 has 6.1, and 6.12 in bookworm-security)"
    release=${package#linux-image-}
    mkdir -p "$cache/kernels"
    # The tree gets its final name only after depmod, so whatever cached_kernel
    # finds is complete.
    dir=$cache/kernels/unpacked.tmp
    rm -rf "$dir"
    fetch_package "$package" "$dir"
    depmod -b "$dir" "$release"
    mv -T "$dir" "$cache/kernels/$release"
}

# The package with the kernel itself: linux-image-6.12-amd64 and
# linux-image-amd64 are empty and depend on the current one of their series.
kernel_package() {
    apt-cache depends "linux-image-$1-amd64" linux-image-amd64 2>/dev/null |
        sed -n "s/^ *Depends: \(linux-image-${1//./\\.}\..*\)/\1/p" | head -n 1
}

# Modules built by modules.sh, or by hand, into
# $cache/modules-extra/RELEASE become modprobe's like any other.
extra_modules() {
    local extra=$cache/modules-extra/$kernel_release modules=$kernel_dir/lib/modules/$kernel_release
    [ -d "$extra" ] && ! diff -rq "$extra" "$modules/updates" >/dev/null 2>&1 || return 0
    rm -rf "$modules/updates"
    cp -r "$extra" "$modules/updates"
    depmod -b "$kernel_dir" "$kernel_release"
}

# vm_initramfs DIR: packs DIR/initramfs: busybox, init, and the boot modules in
# loading order. Uncompressed, because unpacking costs more than reading here.
vm_initramfs() {
    local root=$1/initramfs.d n=100 path m
    mkdir -p "$root"/{bin,modules,host,share,rw,root}
    cp "$(command -v busybox)" "$root/bin/busybox"
    cp "$repo/tests/vm/init" "$root/init"
    chmod +x "$root/init"
    # kmod knows the dependencies; it prints each module after what it needs.
    for m in $boot_modules; do
        modprobe -d "$kernel_dir" -S "$kernel_release" --show-depends "$m"
    done | sed -n 's/^insmod \(.*[^ ]\) *$/\1/p' | awk '!seen[$0]++' >"$root/list"
    while read -r path; do
        n=$((n + 1))
        case $path in
        *.xz) xz -dc "$path" ;;
        *.zst) zstd -dc "$path" ;;
        *) cat "$path" ;;
        esac >"$root/modules/$n.ko"
    done <"$root/list"
    (cd "$root" && find . | cpio --quiet -o -H newc) >"$1/initramfs"
    rm -r "$root"
}

# vm_start DIR OUT SECONDS APPEND QEMU_ARGS...: starts QEMU in the background
# and sets $vm_pid. DIR is the harness's own share (see init), OUT the caller's.
vm_start() {
    local dir=$1 out=$2 seconds=$3 append=$4
    shift 4
    # From inside $out, because a socket's path may be no longer than 107 bytes
    # and QEMU would take a comma in a path for the next option.
    cd "$out" || return
    rm -f monitor.sock
    # erms and fsrm off: QEMU emulates `rep movsb` byte by byte. Not above
    # 1800 MiB: DMA would go through bounce buffers. panic=-1 with -no-reboot
    # ends QEMU at once, and init lifts oops=panic before the command.
    # no_timer_check: on a busy machine the timer that the kernel tries at boot
    # comes too late, and it panics ("IO-APIC + timer doesn't work!").
    timeout -k 5 "$seconds" qemu-system-x86_64 \
        -machine q35 -accel tcg,thread=multi -cpu max,-erms,-fsrm -smp 2 -m 1800 \
        -display none -no-reboot -nic none -nodefaults -vga none \
        -kernel "$kernel_dir/boot/vmlinuz-$kernel_release" -initrd "$dir/initramfs" \
        -append "console=ttyS0 panic=-1 oops=panic no_timer_check $append" \
        -serial file:console.log \
        -monitor unix:monitor.sock,server=on,wait=off \
        -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
        -virtfs "local,path=$dir/share,mount_tag=vm,security_model=none,multidevs=remap" \
        -virtfs local,path=.,mount_tag=out,security_model=none,multidevs=remap \
        "$@" </dev/null >"$dir/qemu.log" 2>&1 &
    # shellcheck disable=SC2034 # for the caller
    vm_pid=$!
    cd "$OLDPWD" || return
}
