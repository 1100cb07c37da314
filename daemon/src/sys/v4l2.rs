//! Ioctl and poll on a V4L2 node.

use std::os::fd::{AsFd, AsRawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use vidcompat_proto::Errno;
use vidcompat_proto::ioctl::Row;

/// Runs the ioctl of `row` on `file` with `argument`, which is read and written in place.
///
/// `argument` must have exactly the size of the row's struct; bytes that the row knows as pointers are zeroed
/// first. Returns what the driver returned, which is 0 or positive.
///
/// # Errors
/// What the kernel answers; `EINVAL` for an argument of the wrong size.
pub fn ioctl(file: impl AsFd, row: &Row, argument: &mut [u8]) -> Result<i32, Errno> {
    if argument.len() != row.command.size() {
        return Err(Errno::EINVAL);
    }
    row.scrub(argument);
    // `Ioctl` is c_ulong with glibc and c_int with musl; the kernel looks at 32 bits.
    #[allow(clippy::useless_conversion)]
    let request: libc::Ioctl = row.command.0.into();
    // SAFETY: the kernel copies exactly `_IOC_SIZE` bytes in and out of `argument`, which is that long. Rows exist in
    // the table of vidcompat-proto only, and each has left no pointer in it that the kernel could follow.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, argument.as_mut_ptr()) };
    if result < 0 { Err(last_errno()) } else { Ok(result) }
}

/// What is ready on `file` now, of `events` and of what poll always reports. Never waits.
pub fn poll(file: impl AsFd, events: PollFlags) -> PollFlags {
    let mut fds = [PollFd::new(file.as_fd(), events)];
    match nix::poll::poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => fds[0].revents().unwrap_or(PollFlags::empty()),
        Err(_) => PollFlags::POLLERR,
    }
}

pub(super) fn last_errno() -> Errno {
    Errno::from_raw(
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}

#[cfg(test)]
mod tests {
    use super::ioctl;
    use vidcompat_proto::Errno;
    use vidcompat_proto::ioctl::V4L2;

    #[test]
    fn an_argument_of_the_wrong_size_never_reaches_the_kernel() {
        let null = std::fs::File::open("/dev/null").expect("a null device");
        let row = &V4L2[0];
        assert_eq!(ioctl(&null, row, &mut [0; 3]), Err(Errno::EINVAL));
        assert_eq!(
            ioctl(&null, row, &mut vec![0; row.command.size()]),
            Err(Errno::ENOTTY)
        );
    }
}
