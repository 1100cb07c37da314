//! Which fds are our nodes.

use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, fstat, major, minor};
use vidcompat_proto::shim;

/// Is it one of ours, at this moment? One system call.
pub(crate) fn is_ours(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && shim::is_ours(major(stat.st_rdev), minor(stat.st_rdev))
    })
}

/// Is it one of our framebuffers, at this moment? One system call.
pub(crate) fn is_our_framebuffer(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && shim::is_our_framebuffer(major(stat.st_rdev), minor(stat.st_rdev))
    })
}

#[cfg(test)]
mod tests {
    use super::is_ours;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn files_and_other_devices_are_not_ours() {
        for path in ["/", "/dev/null", "/proc/self/exe"] {
            assert!(!is_ours(File::open(path).unwrap().as_fd()), "{path}");
        }
        assert!(!is_ours(crate::sys::program_fd(1_000_000).unwrap()));
    }
}
