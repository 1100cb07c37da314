//! Our nodes in the place of the real ones for a program without a mount namespace: `vidcompat run` tells in
//! `VIDCOMPAT_NODES` which real node has which of ours beside it, and where the program opens a real one, ours is opened.
//!
//! A node is known by its number and not by its name, so that the links of `/dev/v4l/by-id`, `/dev/v4l/by-path` and
//! `/dev/char` lead to ours as well. The number is asked for before the file is opened, because to open a real node may
//! wake a camera or be refused; and once more afterwards, because a link may lead elsewhere by then. Only paths that
//! begin with `/dev/` are looked at.
//!
//! At our node the program sees the real one's number ([`seen`]), also where a mount namespace has brought it there: by it
//! sysfs, udev and the media controller know the device. Our own code asks the kernel, not libc, and sees ours.
//!
//! Without the variable all of this is one load of an atomic. What it says is kept in atomics that every thread which
//! looks first fills with the same values: nothing is locked, and nothing allocated.

#[allow(unsafe_code)]
mod sys;

use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Stat, fstat, makedev, statat};
use rustix::io::Errno;

use crate::guard::guard;
use crate::sys::program_fd;

/// Longer than the name of any node of ours: `/dev/v4l-touch127`.
const PATH_BYTES: usize = 24;
/// As many nodes as `vidcompat run` tells of (daemon/src/run/mod.rs).
const MOST: usize = 128;

const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

/// A real node, and ours.
struct Entry {
    /// `st_rdev`; 0 is no entry.
    real: AtomicU64,
    /// `st_rdev`
    ours: AtomicU64,
    /// With a NUL at the end.
    path: [AtomicU64; PATH_BYTES / 8],
}

/// What the environment has said.
struct Table {
    state: AtomicU8,
    entries: [Entry; MOST],
}

static TABLE: Table = Table::new();

/// The path of a node of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OurPath([u8; PATH_BYTES]);

impl OurPath {
    /// For a system call; ends in a NUL.
    pub(crate) fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }
}

/// `81:0=81:256=/dev/video64`, `29:0=29:256=/dev/fb64`
fn entry(text: &[u8]) -> Option<(u64, u64, [u64; PATH_BYTES / 8])> {
    let mut parts = text.splitn(3, |byte| *byte == b'=');
    let (real, ours, path) = (number(parts.next()?)?, number(parts.next()?)?, parts.next()?);
    let mut bytes = [0; PATH_BYTES];
    let room = bytes.get_mut(..path.len()).filter(|_| path.len() < PATH_BYTES)?;
    if real == 0 || !path.starts_with(b"/dev/") {
        return None;
    }
    room.copy_from_slice(path);
    Some((real, ours, zerocopy::transmute!(bytes)))
}

/// `81:256`
fn number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

impl Table {
    const fn new() -> Self {
        Self {
            state: AtomicU8::new(UNKNOWN),
            entries: [const { Entry::new() }; MOST],
        }
    }

    /// Takes in what the environment says. Several threads may do so at a time, with the same text.
    fn fill(&self, text: &[u8]) {
        let told = text.split(|byte| *byte == b';').filter_map(entry);
        let mut any = false;
        for (place, (real, ours, path)) in self.entries.iter().zip(told) {
            any = true;
            for (word, value) in place.path.iter().zip(path) {
                word.store(value, Ordering::Relaxed);
            }
            place.ours.store(ours, Ordering::Relaxed);
            place.real.store(real, Ordering::Relaxed);
        }
        self.state.store(if any { ON } else { OFF }, Ordering::Release);
    }

    fn entries(&self) -> impl Iterator<Item = (u64, &Entry)> {
        let with_number = |entry| (Entry::real(entry), entry);
        self.entries
            .iter()
            .map(with_number)
            .take_while(|(real, _)| *real != 0)
    }

    /// Ours beside the real node of this number.
    fn ours(&self, number: u64) -> Option<OurPath> {
        let (_, entry) = self.entries().find(|(real, _)| *real == number)?;
        let mut path = [0; PATH_BYTES];
        for (bytes, word) in path.chunks_exact_mut(8).zip(&entry.path) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        Some(OurPath(path))
    }

    /// The real node's number for ours.
    fn real(&self, number: u64) -> Option<u64> {
        let found = self
            .entries()
            .find(|(_, entry)| entry.ours.load(Ordering::Relaxed) == number);
        found.map(|(real, _)| real)
    }
}

impl Entry {
    const fn new() -> Self {
        Self {
            real: AtomicU64::new(0),
            ours: AtomicU64::new(0),
            path: [const { AtomicU64::new(0) }; PATH_BYTES / 8],
        }
    }

    fn real(&self) -> u64 {
        self.real.load(Ordering::Relaxed)
    }
}

/// Is there anything to redirect?
#[inline]
pub(crate) fn is_on() -> bool {
    match TABLE.state.load(Ordering::Acquire) {
        UNKNOWN => look(),
        state => state == ON,
    }
}

#[cold]
#[inline(never)]
fn look() -> bool {
    match sys::environment(c"VIDCOMPAT_NODES") {
        // Before libc has begun: somebody's start-up code.
        None => false,
        Some(text) => {
            guard(|| TABLE.fill(text.map_or(b"", CStr::to_bytes)));
            TABLE.state.load(Ordering::Acquire) == ON
        }
    }
}

/// An open of `path` by the program, with the `O_*` of it that we know; `call` makes it for any path. The result is an fd, or
/// negative.
pub(crate) fn open(path: *const c_char, flags: c_int, call: impl Fn(*const c_char) -> c_int) -> c_int {
    let Some(device) = device(path) else {
        return call(path);
    };
    if let Some(Some(ours)) = guard(|| ours_at(device, flags & libc::O_NOFOLLOW == 0)) {
        return call(ours.as_ptr());
    }
    let fd = call(path);
    match guard(|| ours_instead(fd)) {
        Some(Some(ours)) => call(ours.as_ptr()),
        _ => fd,
    }
}

/// The same of functions whose result is no fd. What they have opened is not looked at once more.
pub(crate) fn open_other<T>(path: *const c_char, call: impl Fn(*const c_char) -> T) -> T {
    let ours = device(path).and_then(|device| guard(|| ours_at(device, true)));
    match ours {
        Some(Some(ours)) => call(ours.as_ptr()),
        _ => call(path),
    }
}

/// The path, if it is one below `/dev` and there is anything to redirect.
fn device<'a>(path: *const c_char) -> Option<&'a CStr> {
    is_on().then(|| sys::program_path(path, b"/dev/")).flatten()
}

fn ours_at(path: &CStr, follow: bool) -> Option<OurPath> {
    let flags = if follow {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    };
    instead_of(statat(CWD, path, flags))
}

/// The link has changed in the meantime: the real node, which `fd` is, is closed again.
fn ours_instead(fd: c_int) -> Option<OurPath> {
    let file = program_fd(fd)?;
    let ours = instead_of(fstat(file))?;
    sys::close(file);
    Some(ours)
}

fn instead_of(found: Result<Stat, Errno>) -> Option<OurPath> {
    let found = found.ok()?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::CharacterDevice => TABLE.ours(found.st_rdev),
        _ => None,
    }
}

/// The number that the program is to see for a character device's number: the real node's for ours.
pub(crate) fn seen(number: u64) -> u64 {
    TABLE.real(number).unwrap_or(number)
}

#[cfg(test)]
mod tests {
    use super::{MOST, OFF, ON, OurPath, PATH_BYTES, Table, UNKNOWN, entry};
    use rustix::fs::makedev;
    use std::sync::atomic::Ordering;

    fn filled(text: &[u8]) -> Box<Table> {
        let table = Box::new(Table::new());
        assert_eq!(table.state.load(Ordering::Relaxed), UNKNOWN);
        table.fill(text);
        table
    }

    fn path(text: &str) -> OurPath {
        let mut bytes = [0; PATH_BYTES];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        OurPath(bytes)
    }

    #[test]
    fn a_real_node_leads_to_ours_and_ours_shows_the_real_ones_number() {
        let table = filled(b"81:0=81:256=/dev/video64;81:9=81:1287=/dev/v4l-touch71");
        assert_eq!(table.state.load(Ordering::Relaxed), ON);
        assert_eq!(table.ours(makedev(81, 0)), Some(path("/dev/video64")));
        assert_eq!(table.ours(makedev(81, 9)), Some(path("/dev/v4l-touch71")));
        assert_eq!(table.ours(makedev(81, 256)), None);
        assert_eq!(table.real(makedev(81, 1287)), Some(makedev(81, 9)));
        assert_eq!(table.real(makedev(81, 0)), None);
        let table = filled(b"29:0=29:256=/dev/fb64;29:1=29:257=/dev/fb65");
        assert_eq!(table.ours(makedev(29, 1)), Some(path("/dev/fb65")));
        assert_eq!(table.real(makedev(29, 256)), Some(makedev(29, 0)));
        // No entry is a zero, and neither is what is looked for.
        assert_eq!((table.ours(0), table.real(0)), (None, None));
    }

    #[test]
    fn nothing_and_nonsense_switch_it_off() {
        for text in [
            &b""[..],
            b";",
            b"81:0",
            b"81:0=81:256",
            b"=/dev/video64",
            b"\xff=\xff=\xff",
        ] {
            assert_eq!(filled(text).state.load(Ordering::Relaxed), OFF, "{text:?}");
        }
        assert_eq!(entry(b"0:0=81:256=/dev/video64"), None);
        assert_eq!(entry(b"81:0=81:256=/tmp/video64"), None);
        assert_eq!(entry(b"81:0=81:256=/dev/a-name-of-24-bytes.."), None);
        assert_eq!(entry(b"81:0=81:-1=/dev/video64"), None);
        assert!(entry(b"81:0=81:256=/dev/a-name-of-23-bytes").is_some());
        // What is well said counts all the same.
        assert!(
            filled(b"x;81:0=81:256=/dev/video64")
                .ours(makedev(81, 0))
                .is_some()
        );
    }

    #[test]
    fn more_than_there_is_room_for_are_not_taken() {
        let text: Vec<String> = (0..MOST + 5)
            .map(|at| format!("81:{at}=81:{}=/dev/video64", 256 + at))
            .collect();
        let table = filled(text.join(";").as_bytes());
        assert_eq!(table.entries().count(), MOST);
        assert!(table.ours(makedev(81, 127)).is_some() && table.ours(makedev(81, 128)).is_none());
    }
}
