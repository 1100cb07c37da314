//! `DMA_BUF_IOCTL_SYNC` (linux/dma-buf.h): what the CPU reads between the two calls is what the device wrote, and what
//! it writes the device sees afterwards.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

const SYNC_END: u64 = 4;

/// What the CPU does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuUse {
    /// `DMA_BUF_SYNC_READ`
    Read,
    /// `DMA_BUF_SYNC_WRITE`
    Write,
}

impl CpuUse {
    const fn flag(self) -> u64 {
        match self {
            CpuUse::Read => 1,
            CpuUse::Write => 2,
        }
    }
}

nix::ioctl_write_ptr!(dma_buf_sync, b'b', 0, u64);

/// `DMA_BUF_SYNC_START`: the CPU is going to use the buffer so.
///
/// # Errors
/// What the exporter says; an interrupted call is repeated.
pub fn sync_start(buffer: impl AsFd, cpu: CpuUse) -> io::Result<()> {
    sync(buffer, cpu.flag())
}

/// `DMA_BUF_SYNC_END`.
///
/// # Errors
/// As [`sync_start`].
pub fn sync_end(buffer: impl AsFd, cpu: CpuUse) -> io::Result<()> {
    sync(buffer, cpu.flag() | SYNC_END)
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
