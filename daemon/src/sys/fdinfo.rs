//! `/proc/self/fdinfo`: what the kernel tells of an open file (Documentation/filesystems/proc.rst, 3.8).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The value of a line of fdinfo, such as `exp_name: system`.
#[must_use]
pub fn field<'a>(fdinfo: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':').map(str::trim);
    fdinfo.lines().find_map(value)
}

/// What fdinfo says of an fd of ours.
///
/// # Errors
/// What reading it says.
pub fn own_fdinfo(file: impl AsFd) -> io::Result<String> {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd()))
}
