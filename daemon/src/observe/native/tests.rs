use super::{Backing, Facts, Native, SECRETMEM, backing, flags, flags_in, framebuffer_in, version_of};
use crate::resolve::Access;
use crate::sys::Vma;

const EXT4: u64 = 0xef53;
const TMPFS: u64 = 0x0102_1994;

/// Is a mapping of these permissions pinned on Linux 6.1 and 6.12?
fn pinned(permissions: &str, flags: &[&str], backing: &Backing, access: Access) -> (bool, bool) {
    let vma = Vma {
        start: 0x1000,
        end: 0x2000,
        readable: permissions.contains('r'),
        writable: permissions.contains('w'),
        shared: permissions.contains('s'),
        offset: 0,
        device: (0, 1),
        inode: 1,
        name: Vec::new(),
    };
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let on = |kernel| {
        let facts = Facts {
            vma: &vma,
            flags: &flags,
            backing,
            access,
            kernel,
        };
        Native::of(&facts).ok
    };
    (on((6, 1)), on((6, 12)))
}

/// The table of FACTS.md section 2, as it was measured.
#[test]
fn every_kind_of_memory_is_pinned_or_refused_as_was_measured() {
    let write = |permissions, flags: &[&str], backing| pinned(permissions, flags, &backing, Access::Write);
    let fb = |driver: &str| Backing::Framebuffer(driver.to_owned());
    assert_eq!(
        write("rw-p", &["rd", "wr"], Backing::None),
        (true, true),
        "malloc"
    );
    assert_eq!(
        write("rw-s", &["rd", "wr", "sh"], Backing::File(TMPFS)),
        (true, true),
        "memfd"
    );
    assert_eq!(
        write("rw-p", &["rd", "wr"], Backing::File(EXT4)),
        (true, true),
        "private file"
    );
    assert_eq!(write("r--p", &["rd"], Backing::None), (true, false), "read-only");
    assert_eq!(
        write("r--s", &["rd", "sh"], Backing::File(TMPFS)),
        (false, false),
        "read-only, shared"
    );
    assert_eq!(
        write("rw-s", &["sh", "mm"], fb("Virtual FB")),
        (true, true),
        "vfb"
    );
    assert_eq!(
        write("rw-s", &["sh"], fb("bochs-drmdrmfb")),
        (true, false),
        "fb of a DRM driver"
    );
    assert_eq!(
        write("rw-s", &["sh", "io", "pf"], fb("VESA VGA")),
        (false, false),
        "vesafb"
    );
    assert_eq!(
        write("rw-s", &["sh", "mm"], Backing::Other),
        (true, true),
        "V4L2 buffer, vmalloc"
    );
    assert_eq!(
        write("rw-s", &["sh", "io", "pf"], Backing::Other),
        (false, false),
        "dma-contig"
    );
    assert_eq!(
        write("rw-s", &["sh", "pf"], Backing::Other),
        (false, false),
        "dma-buf"
    );
    assert_eq!(
        write("rw-s", &["sh"], Backing::File(EXT4)),
        (true, false),
        "shared file"
    );
    assert_eq!(
        write("rw-s", &["sh"], Backing::File(SECRETMEM)),
        (false, false),
        "secret memory"
    );
}

#[test]
fn what_is_only_read_may_be_read_only() {
    assert_eq!(
        pinned("r--p", &["rd"], &Backing::None, Access::Read),
        (true, true)
    );
    // 6.1 always asks to write.
    assert_eq!(
        pinned("r--s", &["rd"], &Backing::File(EXT4), Access::Read),
        (false, true)
    );
    assert_eq!(pinned("---p", &[], &Backing::None, Access::Read), (true, false));
    assert_eq!(
        pinned("rw-s", &["io"], &Backing::Other, Access::Read),
        (false, false)
    );
}

#[test]
fn flags_are_those_of_the_mapping_that_was_asked_for() {
    let text = "1000-2000 rw-p 00000000 00:00 0\nSize: 4 kB\nVmFlags: rd wr mr\n\
        2000-3000 rw-s 00000000 00:05 7 /dev/fb0\nVmFlags: rd wr sh io pf \n";
    assert_eq!(
        flags_in(text.as_bytes(), 0x2000).ok(),
        Some(["rd", "wr", "sh", "io", "pf"].map(str::to_owned).into())
    );
    assert!(flags_in(text.as_bytes(), 0x3000).is_err());
}

#[test]
fn a_mapping_of_our_own_is_found_and_what_it_maps() {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("our own");
    let line = maps
        .lines()
        .find(|line| line.ends_with("[stack]"))
        .expect("a stack");
    let start = u64::from_str_radix(line.split('-').next().expect("a range"), 16).expect("hex");
    let flags = flags(std::process::id(), start).expect("a mapping");
    assert!(
        flags.iter().any(|flag| flag == "gd"),
        "a stack grows down: {flags:?}"
    );
    let nothing = Vma {
        start: 0x1000,
        end: 0x2000,
        readable: true,
        writable: true,
        shared: true,
        offset: 0,
        device: (0, 1),
        inode: 1,
        name: Vec::new(),
    };
    assert_eq!(backing(std::process::id(), &nothing), Backing::None);
}

#[test]
fn names_and_versions_are_read() {
    assert_eq!(framebuffer_in("0 VESA VGA\n1 Virtual FB\n", 1), "Virtual FB");
    assert_eq!(framebuffer_in("0 VESA VGA\n", 1), "its driver");
    assert_eq!(version_of("6.12.117+deb12-amd64\n"), Some((6, 12)));
    assert_eq!(version_of("7.0-rc1"), Some((7, 0)));
    assert_eq!(version_of(""), None);
}
