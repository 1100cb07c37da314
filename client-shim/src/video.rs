//! The ioctls that need more than the node, of cameras and of framebuffers: said in our own letter, so that the daemon knows
//! of us.

use std::ffi::c_int;

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::{FdFlags, dup, fcntl_dupfd_cloexec, fcntl_setfd};
use vidcompat_proto::Errno;
use vidcompat_proto::ioc::Command;
use vidcompat_proto::shim::{self, Answer, Ask, FBIOGET_DMABUF, MOVE_FIRST};

use crate::guard::guard;
use crate::link::Link;
use crate::{adopt, node, sys};

/// How often a QBUF may be told to move something first: a buffer has up to eight planes.
const MOST_ROUNDS: usize = 16;

/// `_IOC_NR` of `VIDIOC_*`.
mod nr {
    pub(super) const REQBUFS: u8 = 8;
    pub(super) const QBUF: u8 = 15;
    pub(super) const EXPBUF: u8 = 16;
    pub(super) const CREATE_BUFS: u8 = 92;
    pub(super) const PREPARE_BUF: u8 = 93;
    /// It frees buffers, like REQBUFS: that is all we have to do with it.
    pub(super) const REMOVE_BUFS: u8 = 104;
}

/// Bytes before `fd` in `struct v4l2_exportbuffer`, which is the same for 32 and 64 bits.
const EXPBUF_FD: usize = 16;

/// The same in the struct of FBIOGET_DMABUF.
const DMABUF_FD: usize = 0;

/// Is it one of the ioctls that we say in our letter, if the node is ours?
#[inline]
pub(crate) fn is_spoken(command: Command) -> bool {
    let is_videos = command.magic() == b'V'
        && matches!(
            command.number(),
            nr::REQBUFS | nr::QBUF | nr::EXPBUF | nr::CREATE_BUFS | nr::PREPARE_BUF | nr::REMOVE_BUFS
        );
    is_videos || is_get_dmabuf(command)
}

#[inline]
fn is_get_dmabuf(command: Command) -> bool {
    command == FBIOGET_DMABUF
}

/// How the program's ioctl is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As the program has made it.
    Plain,
    /// With this command instead.
    As(Command),
}

/// The program's ioctl `command` (see [`is_spoken`]) on `fd`, of the struct at its address `argument`; `call` makes it.
pub(crate) fn ioctl(fd: c_int, command: Command, argument: usize, call: impl Fn(Way) -> c_int) -> c_int {
    let ours = guard(|| sys::program_fd(fd).is_some_and(node::is_ours));
    if ours != Some(true) {
        return call(Way::Plain);
    }
    let fetch_at = |at| guard(|| fetch(&Link::of(sys::program_fd(fd)?)?, argument, at)).flatten();
    speak(command, &call, &|| obey(fd), &|| match command.number() {
        _ if is_get_dmabuf(command) => fetch_at(DMABUF_FD),
        nr::EXPBUF => fetch_at(EXPBUF_FD),
        nr::REQBUFS | nr::CREATE_BUFS | nr::REMOVE_BUFS if adopt::any() => {
            guard(adopt::reconcile);
            Some(Ok(()))
        }
        _ => Some(Ok(())),
    })
}

/// What a call in our letter comes to, with `obey` for what is to be moved first and `after` for what is to be done when
/// the daemon has said yes. Where either can do nothing, the plain call decides.
fn speak(
    command: Command,
    call: &impl Fn(Way) -> c_int,
    obey: &impl Fn() -> bool,
    after: &impl Fn() -> Option<Result<(), Errno>>,
) -> c_int {
    let before = sys::errno();
    let plain = || {
        sys::set_errno(before);
        call(Way::Plain)
    };
    for _ in 0..MOST_ROUNDS {
        sys::set_errno(before);
        let result = call(Way::As(shim::spoken(command)));
        if result >= 0 {
            return match after() {
                Some(Ok(())) => result,
                // What the call has left to be fetched has gone with the daemon that had it: the next one is called.
                Some(Err(Errno::ENOENT)) => continue,
                Some(Err(errno)) => {
                    sys::set_errno(errno.raw());
                    -1
                }
                None => plain(),
            };
        }
        match sys::errno() {
            MOVE_FIRST if guard(obey) == Some(true) => {}
            MOVE_FIRST | libc::ENOTTY => return plain(),
            _ => return result,
        }
    }
    plain()
}

/// Does what the daemon wants moved. Can it be?
fn obey(fd: c_int) -> bool {
    let Some(link) = sys::program_fd(fd).and_then(Link::of) else {
        return false;
    };
    adopt::obey(&link)
}

/// EXPBUF has left a ticket `at` bytes behind `argument`: fetches the fd for it and puts its number there. `None`: nobody
/// answers.
fn fetch(link: &Link, argument: usize, at: usize) -> Option<Result<(), Errno>> {
    let address = argument.wrapping_add(at);
    let ticket = match sys::read_program(address) {
        Ok(bytes) => u32::from_ne_bytes(bytes),
        Err(errno) => return Some(Err(errno)),
    };
    let (file, close_on_exec) = match link.ask(Ask::Fetch { ticket }) {
        Ok((Answer::File { close_on_exec }, Some(file))) => (file, close_on_exec),
        Ok((Answer::Errno(errno), _)) => return Some(Err(errno)),
        _ => return None,
    };
    let file = lowest(file, close_on_exec);
    // The kernel has just written there. If the program has taken the page away since, nobody gets the fd.
    let written = sys::write_program(address, file.as_raw_fd().to_ne_bytes());
    if written.is_ok() {
        // From here on it is the program's.
        std::mem::forget(file);
    }
    Some(written)
}

/// `file`, which has come beside a socket that is closed by now, under the lowest number that is free, as EXPBUF gives it.
fn lowest(file: OwnedFd, close_on_exec: bool) -> OwnedFd {
    let moved = if close_on_exec {
        fcntl_dupfd_cloexec(&file, 0)
    } else {
        dup(&file)
    };
    match moved {
        Ok(moved) if moved.as_raw_fd() < file.as_raw_fd() => moved,
        _ => {
            if !close_on_exec {
                // Cannot fail: the file is open.
                let _ = fcntl_setfd(&file, FdFlags::empty());
            }
            file
        }
    }
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests;
