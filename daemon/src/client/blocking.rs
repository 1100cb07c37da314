//! Is the file of a waiting call non-blocking *now*? CUSE does not say: the flag is not in IOCTL requests, and
//! fcntl(F_SETFL) is never forwarded (KERNEL.md A2).

use std::fs;
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

/// Does thread `tid`, blocked in the ioctl `call`, have its file in non-blocking mode? `None` where that cannot be
/// found out: the daemon may not look, or the call came by a way other than ioctl(2).
pub fn is_nonblocking(tid: u32, call: CallShape) -> Option<bool> {
    let fd = fd_of_call(tid, call)?;
    let info = fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim();
    let flags = libc::c_int::from_str_radix(flags, 8).ok()?;
    Some(flags & libc::O_NONBLOCK != 0)
}

/// The fd number that the thread passed. `/proc/TID/syscall` says "running" until the thread has gone to sleep, which
/// can be a moment after we have read its request.
fn fd_of_call(tid: u32, call: CallShape) -> Option<u32> {
    for patience in 0..200 {
        let text = fs::read_to_string(format!("/proc/{tid}/syscall")).ok()?;
        if text.trim() != "running" {
            return parse(&text, call);
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
    use super::{CallShape, parse};

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
}
