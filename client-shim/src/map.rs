//! mmap on a node of ours: the daemon says what to map instead.

use std::ffi::{c_int, c_void};

use rustix::fd::{AsRawFd, OwnedFd};
use vidcompat_proto::Errno;
use vidcompat_proto::shim::{Answer, Ask};

use crate::guard::guard;
use crate::link::Link;
use crate::sys;

/// What the program wants mapped; where to is its own affair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) fd: c_int,
    /// Bytes.
    pub(crate) offset: u64,
    /// Bytes, as asked: not whole pages.
    pub(crate) length: usize,
    /// `PROT_*`
    pub(crate) prot: c_int,
    /// `MAP_*`
    pub(crate) flags: c_int,
}

/// mmap of `wanted`, where `call` is the program's own mmap, of any fd and offset.
///
/// The kernel is asked first. It has its own reasons to refuse (an address, a length, an fd that is not open for it), the
/// same as for the real node, and only then finds that a CUSE node has no mmap: `ENODEV`, before it has unmapped anything
/// (`do_mmap`, mm/mmap.c). So nobody else's mmap costs more than a comparison.
pub(crate) fn map(wanted: Wanted, call: impl Fn(c_int, u64) -> *mut c_void) -> *mut c_void {
    let before = sys::errno();
    let mapped = call(wanted.fd, wanted.offset);
    if mapped != libc::MAP_FAILED || sys::errno() != libc::ENODEV {
        return mapped;
    }
    match guard(|| instead(wanted)) {
        Some(Some(Ok((file, offset)))) => {
            sys::set_errno(before);
            let mapped = call(file.as_raw_fd(), offset);
            guard(|| drop(file));
            mapped
        }
        Some(Some(Err(errno))) => {
            sys::set_errno(errno.raw());
            libc::MAP_FAILED
        }
        // As without us: ENODEV.
        Some(None) | None => mapped,
    }
}

/// What to map instead, and from where; or why not. `None`: not our affair.
fn instead(wanted: Wanted) -> Option<Result<(OwnedFd, u64), Errno>> {
    ask(&Link::of(sys::program_fd(wanted.fd)?)?, wanted)
}

fn ask(link: &Link, wanted: Wanted) -> Option<Result<(OwnedFd, u64), Errno>> {
    let ask = Ask::Map {
        offset: wanted.offset,
        length: wanted.length as u64,
        prot: sys::bits(wanted.prot),
        flags: sys::bits(wanted.flags),
    };
    match link.ask(ask) {
        Ok((Answer::Map { offset }, Some(file))) => Some(Ok((file, offset))),
        Ok((Answer::Errno(errno), _)) => Some(Err(errno)),
        _ => None,
    }
}
