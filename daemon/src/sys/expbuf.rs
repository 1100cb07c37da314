//! `VIDIOC_EXPBUF` (linux/videodev2.h): an MMAP buffer of a V4L2 queue as a dma-buf.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

#[repr(C)]
#[derive(Default)]
struct ExportBuffer {
    buf_type: u32,
    index: u32,
    plane: u32,
    flags: u32,
    fd: i32,
    reserved: [u32; 11],
}

const _: () = assert!(size_of::<ExportBuffer>() == 64);

nix::ioctl_readwrite!(vidioc_expbuf, b'V', 16, ExportBuffer);

/// Exports a plane of a buffer, to be read and written.
///
/// # Errors
/// `EBUSY`: the queue belongs to another open file; `EACCES`: this file is open for reading only; `EINVAL`: there is no
/// such buffer, or it is none of the device's own; `ENOTTY`: the driver exports nothing.
pub fn export_buffer(node: impl AsFd, buf_type: u32, index: u32, plane: u32) -> Result<OwnedFd, Errno> {
    let mut export = ExportBuffer {
        buf_type,
        index,
        plane,
        flags: libc::O_CLOEXEC.cast_unsigned() | libc::O_RDWR.cast_unsigned(),
        ..ExportBuffer::default()
    };
    // SAFETY: the struct is the kernel's of 64 bytes, alive for the call, without pointers.
    unsafe { vidioc_expbuf(node.as_fd().as_raw_fd(), &raw mut export) }?;
    // SAFETY: the call has succeeded, so this is a new fd that nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(export.fd) })
}
