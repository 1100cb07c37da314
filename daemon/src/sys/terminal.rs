//! What the kernel says of the virtual terminal that is active (linux/kd.h).

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// `KD_GRAPHICS`
const GRAPHICS: libc::c_int = 1;

nix::ioctl_read_bad!(kdgetmode, 0x4b3b, libc::c_int);

/// Is it in graphics mode: does a program draw there, and the kernel no text? No, where there are no terminals.
#[must_use]
pub fn is_in_graphics_mode() -> bool {
    let tty = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open("/dev/tty0");
    let Ok(tty) = tty else { return false };
    let mut mode: libc::c_int = 0;
    // SAFETY: the kernel writes one int, and `mode` is one that lives for the call.
    let said = unsafe { kdgetmode(tty.as_raw_fd(), &raw mut mode) };
    said.is_ok() && mode == GRAPHICS
}
