# shellcheck shell=bash disable=SC2154 # $cache and the helpers: from cache.sh
# Programs of Debian of which the tests need one file only, unpacked into
# $cache/programs: fbset, whose package wants udev, GStreamer's fbdevsink, whose
# package wants 40 others, SDL 1.2's headers, which want 18; and fbset and fbcat
# for 32 bits. Nothing is installed. Sourced, after cache.sh and i386.sh.

programs=$cache/programs

programs_setup() { programs_are_there || cache_lock programs fetch_programs; }

programs_are_there() { [ "$(cat "$programs/made-by" 2>/dev/null)" = "$(programs_stamp)" ]; }

# A plug-in must be of its core's own release.
programs_stamp() { echo "GStreamer $(dpkg-query -W -f '${Version}' libgstreamer1.0-0) $(cksum <"$repo/tests/vm/programs.sh")"; }

fetch_programs() {
    programs_are_there && return # by the run that held the lock before us
    local work=$programs.work deb
    rm -rf "$programs" "$work"
    mkdir -p "$work/tree/gstreamer"
    fetch_package fbset "$work/fbset"
    fetch_package gstreamer1.0-plugins-bad "$work/gstreamer"
    fetch_package libsdl1.2-dev "$work/sdl"
    cp -r "$work/sdl/usr/include" "$work/tree/include"
    cp "$work/fbset/bin/fbset" "$work/tree"
    cp "$work"/gstreamer/usr/lib/*/gstreamer-1.0/libgstfbdevsink.so "$work/tree/gstreamer"
    # What these need besides themselves is what the other 32-bit programs need.
    i386_update "$work/i386"
    (cd "$work/i386/cache/archives" && i386_apt "$work/i386" apt-get download fbset fbcat) >&2 ||
        die "apt has no fbset and fbcat for i386"
    for deb in "$work"/i386/cache/archives/*.deb; do dpkg -x "$deb" "$work/i386/tree"; done
    mkdir "$work/tree/i386"
    cp "$work/i386/tree/bin/fbset" "$work/i386/tree/usr/bin/fbcat" "$work/tree/i386"
    programs_stamp >"$work/tree/made-by"
    mv -T "$work/tree" "$programs"
    rm -rf "$work"
}

# programs_copy DIR: in DIR what is unpacked, because a guest sees the tree but
# perhaps not the cache: DIR/fbset, DIR/gstreamer for GST_PLUGIN_PATH.
programs_copy() {
    local dir=$1
    [ "$(cat "$dir/gstreamer/made-by" 2>/dev/null)" != "$(programs_stamp)" ] || return 0
    rm -rf "$dir/gstreamer" "$dir/gstreamer.$$"
    cp -r "$programs/gstreamer" "$dir/gstreamer.$$"
    cp "$programs/fbset" "$dir/fbset.$$"
    mv -T "$dir/fbset.$$" "$dir/fbset"
    programs_stamp >"$dir/gstreamer.$$/made-by"
    mv -T "$dir/gstreamer.$$" "$dir/gstreamer"
}
