//! Is the file of a waiting call non-blocking *now*? CUSE does not say: the flag is not in IOCTL requests, and
//! fcntl(F_SETFL) is never forwarded (KERNEL.md A2).
//!
//! The fd number stands in `/proc/TID/syscall`, the flag in `/proc/TID/fdinfo/FD`. The first costs a wait until the
//! thread has gone to sleep, so the number is remembered as long as it surely means the same file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

/// What the blocked thread must be found doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallShape {
    /// Is the client a 32-bit process?
    pub compat: bool,
    /// The ioctl's command.
    pub command: u32,
    /// Its argument, as passed.
    pub client_arg: u64,
}

/// Where the flags of one open file were last found.
#[derive(Debug, Default)]
pub struct FileFlags(Option<Found>);

#[derive(Debug)]
struct Found {
    tid: u32,
    generation: u64,
    fdinfo: File,
    inode: u64,
}

impl FileFlags {
    /// Does thread `tid`, blocked in the ioctl `call` on this file, have it in non-blocking mode? `None` where that
    /// cannot be found out: the daemon may not look, or the call came by a way other than ioctl(2).
    ///
    /// `generation` changes whenever any file of this node is opened or closed: until then a number that still leads
    /// to this node's inode leads to the same file. (A process that has two files of one node open and swaps their
    /// numbers by dup2 alone can deceive itself.)
    pub fn is_nonblocking(&mut self, tid: u32, call: CallShape, generation: u64) -> Option<bool> {
        let remembered = self
            .0
            .as_ref()
            .filter(|found| found.tid == tid && found.generation == generation);
        if let Some(found) = remembered
            && let Some(info) = read_info(&found.fdinfo)
            && info.inode == found.inode
        {
            return Some(info.nonblocking);
        }
        let fd = fd_of_call(tid, call)?;
        let fdinfo = File::open(format!("/proc/{tid}/fdinfo/{fd}")).ok()?;
        let info = read_info(&fdinfo)?;
        self.0 = Some(Found {
            tid,
            generation,
            fdinfo,
            inode: info.inode,
        });
        Some(info.nonblocking)
    }
}

/// What `/proc/TID/fdinfo/FD` says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Info {
    nonblocking: bool,
    inode: u64,
}

fn read_info(fdinfo: &File) -> Option<Info> {
    // The first lines are `pos`, `flags`, `mnt_id`, `ino`; longer files have more that is not looked at.
    let mut buffer = [0; 512];
    let count = fdinfo.read_at(&mut buffer, 0).ok()?;
    parse_info(std::str::from_utf8(&buffer[..count]).ok()?)
}

fn parse_info(text: &str) -> Option<Info> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let flags = libc::c_int::from_str_radix(field("flags:")?, 8).ok()?;
    Some(Info {
        nonblocking: flags & libc::O_NONBLOCK != 0,
        inode: field("ino:")?.parse().ok()?,
    })
}

/// The fd number that the thread passed.
fn fd_of_call(tid: u32, call: CallShape) -> Option<u32> {
    parse(&blocked_call(tid)?, call)
}

/// What `/proc/TID/syscall` says of a thread that waits for our answer. It says "running" until the thread has gone to
/// sleep, which can be a moment after we have read its request.
pub(super) fn blocked_call(tid: u32) -> Option<String> {
    for patience in 0..200 {
        let text = fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
        if text.trim() != "running" {
            return Some(text);
        }
        match patience {
            0..10 => thread::yield_now(),
            _ => thread::sleep(Duration::from_micros(100)),
        }
    }
    None
}

const fn ioctl_number(compat: bool) -> u64 {
    match (cfg!(target_arch = "x86_64"), compat) {
        (true, false) => 16,
        (_, true) => 54,
        (false, false) => 29,
    }
}

fn parse(text: &str, call: CallShape) -> Option<u32> {
    let mut words = text.split_ascii_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    let mut argument = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let (fd, command, client_arg) = (argument()?, argument()?, argument()?);
    // The upper half of the command may be anything: old callers sign-extend it.
    let same = number == ioctl_number(call.compat)
        && command & 0xffff_ffff == u64::from(call.command)
        && client_arg == call.client_arg;
    if same {
        u32::try_from(fd & 0xffff_ffff).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{CallShape, FileFlags, Info, parse, parse_info};

    const CALL: CallShape = CallShape {
        compat: false,
        command: 0xc058_5611,
        client_arg: 0x7ffd_0000_1000,
    };

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_fd_is_read_from_the_very_call_and_from_no_other() {
        let text = "16 0x5 0xffffffffc0585611 0x7ffd00001000 0x0 0x0 0x0 0x7ffd0000 0x7f00";
        assert_eq!(parse(text, CALL), Some(5));
        assert_eq!(
            parse(
                text,
                CallShape {
                    client_arg: 1,
                    ..CALL
                }
            ),
            None
        );
        assert_eq!(parse(text, CallShape { command: 1, ..CALL }), None);
        assert_eq!(parse(text, CallShape { compat: true, ..CALL }), None);
        assert_eq!(parse("-1 0x7ffd 0x7f00", CALL), None);
        assert_eq!(parse("running", CALL), None);
    }

    #[test]
    fn flags_and_inode_are_read_and_half_a_file_says_nothing() {
        let text = "pos:\t0\nflags:\t02104002\nmnt_id:\t6\nino:\t287\n";
        assert_eq!(
            parse_info(text),
            Some(Info {
                nonblocking: true,
                inode: 287
            })
        );
        assert_eq!(
            parse_info("flags:\t0100002\nino:\t9\n"),
            Some(Info {
                nonblocking: false,
                inode: 9
            })
        );
        assert_eq!(parse_info("flags:\t0100002\n"), None);
        assert_eq!(parse_info(""), None);
    }

    #[test]
    fn a_thread_that_is_not_in_the_call_says_nothing() {
        assert_eq!(FileFlags::default().is_nonblocking(1, CALL, 0), None);
        assert_eq!(FileFlags::default().is_nonblocking(u32::MAX, CALL, 0), None);
    }
}
