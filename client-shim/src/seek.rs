//! lseek on a framebuffer of ours: CUSE has none, and the kernel says 0 to every call. The daemon keeps the position.

use std::ffi::c_int;

use vidcompat_proto::Errno;
use vidcompat_proto::shim::Seek;

use crate::guard::guard;
use crate::{node, sys};

/// The program's lseek, which has given 0: what it gives. `None`: 0 it is, for the file is none of ours, or its daemon is an
/// old one.
///
/// Who has moved to the start of another file pays for one fstat.
pub(crate) fn told(fd: c_int, offset: i64, whence: c_int) -> Option<Result<i64, Errno>> {
    let seek = || {
        let fd = sys::program_fd(fd).filter(|fd| node::is_our_framebuffer(*fd))?;
        let seek = Seek {
            offset,
            whence: sys::bits(whence),
            reserved: 0,
        };
        match sys::seek(fd, seek) {
            Ok(seek) => Some(Ok(seek.offset)),
            Err(Errno::ENOTTY) => None,
            Err(errno) => Some(Err(errno)),
        }
    };
    guard(seek).flatten()
}

#[cfg(test)]
mod tests {
    use super::told;
    use crate::testing::without_allocating;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn other_files_are_where_the_kernel_says() {
        let null = File::open("/dev/null").unwrap();
        for fd in [null.as_raw_fd(), 1_000_000, -1] {
            assert_eq!(without_allocating(|| told(fd, 0, 0)), None);
        }
    }
}
