//! `SO_PASSRIGHTS` (asm-generic/socket.h, Linux 6.16): may files be sent along to a unix socket?

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// Everywhere but on parisc and sparc.
const SO_PASSRIGHTS: libc::c_int = 83;

/// From now on who sends a file along to `socket`, or to what it accepts, gets `EPERM`.
///
/// # Errors
/// `ENOPROTOOPT`: the kernel is older than 6.16; `EOPNOTSUPP`: this is no unix socket.
pub fn refuse_files(socket: impl AsFd) -> Result<(), Errno> {
    let no: libc::c_int = 0;
    // SAFETY: the kernel reads as many bytes as it is told from `no`, which is alive for the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const no).cast(),
            4,
        )
    };
    Errno::result(set).map(drop)
}
