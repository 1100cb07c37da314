//! `VIDIOC_EXPBUF` (linux/videodev2.h): an MMAP buffer of a V4L2 queue as a dma-buf.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use vidcompat_proto::abi::v4l2::V4l2ExportBuffer;

nix::ioctl_readwrite!(vidioc_expbuf, b'V', 16, V4l2ExportBuffer);

/// Exports the plane of the buffer that `request` names; its flags count, and our own fd is close-on-exec.
///
/// # Errors
/// `EBUSY`: the queue belongs to another open file; `EACCES`: this file is open for reading only; `EINVAL`: there is no
/// such buffer, or it is none of the device's own, or flags that there are not; `ENOTTY`: the driver exports nothing.
pub fn export_buffer(node: impl AsFd, request: &V4l2ExportBuffer) -> Result<OwnedFd, Errno> {
    let mut export = V4l2ExportBuffer {
        flags: request.flags | libc::O_CLOEXEC.cast_unsigned(),
        ..*request
    };
    // SAFETY: the struct is the kernel's of 64 bytes, alive for the call, without pointers.
    unsafe { vidioc_expbuf(node.as_fd().as_raw_fd(), &raw mut export) }?;
    // SAFETY: the call has succeeded, so this is a new fd that nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(export.fd) })
}
