//! `DMA_BUF_IOCTL_SYNC` (linux/dma-buf.h): CPU access to a dma-buf between the two calls sees what the device wrote.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

const SYNC_READ: u64 = 1;
const SYNC_END: u64 = 4;

nix::ioctl_write_ptr!(dma_buf_sync, b'b', 0, u64);

/// `DMA_BUF_SYNC_START`: the CPU is going to read.
///
/// # Errors
/// What the exporter says; an interrupted call is repeated.
pub fn sync_start(buffer: impl AsFd) -> io::Result<()> {
    sync(buffer, SYNC_READ)
}

/// `DMA_BUF_SYNC_END`.
///
/// # Errors
/// As [`sync_start`].
pub fn sync_end(buffer: impl AsFd) -> io::Result<()> {
    sync(buffer, SYNC_READ | SYNC_END)
}

fn sync(buffer: impl AsFd, flags: u64) -> io::Result<()> {
    loop {
        // SAFETY: the argument is a `struct dma_buf_sync`, which is one u64, alive for the call; the kernel only
        // reads it.
        match unsafe { dma_buf_sync(buffer.as_fd().as_raw_fd(), &raw const flags) } {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
