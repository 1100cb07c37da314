# shellcheck shell=bash disable=SC2154 # $cache and the helpers: from cache.sh
# The disk of tests/systemd-guest: a Debian of its own with systemd as init, udev, dbus and a few video programs, of this
# machine's release, because what is built here must run there. Made by debootstrap once and kept in $cache; a guest
# writes into a layer that QEMU throws away. Sourced, after cache.sh.

systemd_root=$cache/systemd-root

# v4l-utils, yavta, ustreamer: USERPTR; fswebcam: MMAP; acl: getfacl; procps: ps, pgrep.
systemd_root_packages='systemd-sysv udev dbus libpam-systemd kmod procps acl v4l-utils yavta ustreamer fswebcam'

systemd_root_setup() { systemd_root_is_there || cache_lock systemd-root make_systemd_root; }

systemd_root_is_there() { [ "$(cat "$systemd_root/made-by" 2>/dev/null)" = "$(systemd_root_stamp)" ]; }

systemd_root_release() { (. /etc/os-release && echo "$VERSION_CODENAME"); }

systemd_root_stamp() { echo "$(systemd_root_release) $(cksum <"$repo/tests/vm/systemd-root.sh")"; }

make_systemd_root() {
    systemd_root_is_there && return # by the run that held the lock before us
    local release mirror work=$systemd_root.work tree=$systemd_root.work/tree p missing=()
    release=$(systemd_root_release)
    [ -n "$release" ] || die "/etc/os-release names no release of Debian"
    for p in debootstrap e2fsprogs; do installed "$p" || missing+=("$p"); done
    [ ${#missing[@]} = 0 ] || { apt_update && say "installing ${missing[*]}" && apt_install "${missing[@]}"; }
    # Where apt fetches this release from; a mirror may be nearer than Debian's own.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $release" 'Created-By: Packages' 'Component: main' 2>/dev/null | grep '/debian/*$' | head -n 1) || true
    mirror=${mirror:-http://deb.debian.org/debian}

    as_root rm -rf "$systemd_root" "$work"
    mkdir -p "$work"
    say "making a Debian $release with systemd for guests, 250 MB (log: $work/log)"
    as_root debootstrap --variant=minbase --include="${systemd_root_packages// /,}" "$release" "$tree" "$mirror" \
        >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" >&2
        die "debootstrap failed"
    }
    systemd_root_settle "$tree"
    # Sparse, and with room for what a guest installs.
    truncate -s 1500M "$work/disk"
    as_root env PATH="$PATH" mkfs.ext4 -q -F -m 0 -d "$tree" "$work/disk" ||
        die "mkfs.ext4 failed"
    as_root rm -rf "$tree"
    systemd_root_stamp >"$work/made-by"
    mv -T "$work" "$systemd_root"
}

# What makes a machine of TREE that boots quickly, and into the command of tests/systemd-guest.
systemd_root_settle() {
    local tree=$1 unit
    as_root rm -rf "$tree"/var/cache/apt/archives "$tree"/var/lib/apt/lists "$tree"/usr/share/{locale,doc,man,info}
    as_root mkdir -p "$tree"/{out,var/cache/apt/archives/partial,var/lib/apt/lists/partial}
    as_root tee "$tree/etc/hostname" >/dev/null <<<systemd-guest
    as_root tee "$tree/etc/fstab" >/dev/null <<<''
    # What it would do at its first boot takes time; an id of its own it may have.
    as_root tee "$tree/etc/machine-id" >/dev/null <<<0123456789abcdef0123456789abcdef
    # A checkout may lie in /tmp, which this would empty.
    as_root ln -sf /dev/null "$tree/etc/tmpfiles.d/tmp.conf"
    # Of no use in a machine that lives for a minute.
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
        e2scrub_reap.service systemd-pstore.service systemd-random-seed.service systemd-update-utmp.service \
        systemd-update-utmp-runlevel.service systemd-networkd.service systemd-timesyncd.service \
        getty@tty1.service serial-getty@ttyS0.service systemd-fsck-root.service systemd-remount-fs.service \
        systemd-rfkill.socket dev-hugepages.mount dev-mqueue.mount sys-kernel-tracing.mount \
        modprobe@{configfs,dm_mod,drm,loop}.service; do
        as_root ln -sf /dev/null "$tree/etc/systemd/system/$unit"
    done
    # The emulated machine's hardware that nobody here needs: udev would load these for ten seconds.
    printf 'blacklist %s\n' ahci kvm_amd kvm_intel ccp i2c_i801 i2c_smbus iTCO_wdt lpc_ich psmouse serio_raw evdev \
        joydev pcspkr button qemu_fw_cfg powernow_k8 acpi_cpufreq rapl intel_rapl_common intel_rapl_msr aesni_intel \
        cryptd ghash_clmulni_intel polyval_clmulni sha1_ssse3 sha256_ssse3 sha512_ssse3 crc32_pclmul crct10dif_pclmul |
        as_root tee "$tree/etc/modprobe.d/guest.conf" >/dev/null
    as_root tee "$tree/etc/systemd/system/guest.target" >/dev/null <<'UNIT'
[Unit]
Description=The command of tests/systemd-guest
Requires=multi-user.target
After=multi-user.target
Wants=guest.service
UNIT
    as_root tee "$tree/etc/systemd/system/guest.service" >/dev/null <<'UNIT'
[Unit]
Description=The command of tests/systemd-guest
After=multi-user.target
[Service]
Type=exec
# Not when the command stops or starts other units, nor when somebody leaves.
KillMode=process
ExecStart=/run/guest/busybox sh /run/guest/init command
StandardOutput=journal+console
UNIT
}
