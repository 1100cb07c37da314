//! `UDMABUF_CREATE` (linux/udmabuf.h): a dma-buf of a memfd's pages, which stay pinned as long as it lives.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

#[repr(C)]
struct UdmabufCreate {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

const FLAGS_CLOEXEC: u32 = 1;

// Declared as `_IOW`.
nix::ioctl_write_ptr!(udmabuf_create, b'u', 0x42, UdmabufCreate);

/// A dma-buf of `size` bytes from `offset` of `memfd`, both whole pages; `device` is an open `/dev/udmabuf`.
///
/// # Errors
/// `EINVAL` for a memfd without F_SEAL_SHRINK or with a seal against writing, for more than the module's `size_limit_mb`
/// and for what lies behind its end; `EBADFD` for what is no memfd.
pub fn udmabuf(device: impl AsFd, memfd: impl AsFd, offset: u64, size: u64) -> io::Result<OwnedFd> {
    let create = UdmabufCreate {
        memfd: memfd.as_fd().as_raw_fd().cast_unsigned(),
        flags: FLAGS_CLOEXEC,
        offset,
        size,
    };
    // SAFETY: the struct is the kernel's of 24 bytes, alive for the call; the kernel only reads it.
    let fd = unsafe { udmabuf_create(device.as_fd().as_raw_fd(), &raw const create) }?;
    // SAFETY: the kernel has just given this fd to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const _: () = assert!(size_of::<UdmabufCreate>() == 24);
