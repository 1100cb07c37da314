//! A file in tokio's reactor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A file that epoll holds on to, closed with the last of its owners.
#[derive(Debug)]
pub struct SharedFile(Arc<File>);

impl AsRawFd for SharedFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Registers `file` for `interest` until the result is dropped. To be called in a runtime.
///
/// # Errors
/// What epoll says.
pub fn register(file: Arc<File>, interest: Interest) -> io::Result<AsyncFd<SharedFile>> {
    // SAFETY: `SharedFile` keeps the file open and always answers with its one descriptor.
    Ok(unsafe { AsyncFd::register_with_interest(SharedFile(file), interest) }?)
}
