//! The few ioctls of a DRM node by which a GEM object is found and exported (drm/drm.h, drm/drm_mode.h). The layouts are
//! the same for 32 and 64 bits.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

#[repr(C)]
#[derive(Default)]
struct MapDumb {
    handle: u32,
    pad: u32,
    offset: u64,
}

#[repr(C)]
#[derive(Default)]
struct PrimeHandle {
    handle: u32,
    flags: u32,
    fd: i32,
}

#[repr(C)]
#[derive(Default)]
struct GemClose {
    handle: u32,
    pad: u32,
}

/// `struct drm_mode_fb_cmd2`
#[repr(C)]
#[derive(Default)]
struct FbCommand {
    fb_id: u32,
    width: u32,
    height: u32,
    pixel_format: u32,
    flags: u32,
    handles: [u32; 4],
    pitches: [u32; 4],
    offsets: [u32; 4],
    modifier: [u64; 4],
}

const _: () = assert!(size_of::<FbCommand>() == 104);

mod raw {
    nix::ioctl_write_ptr!(gem_close, b'd', 0x09, super::GemClose);
    nix::ioctl_none!(drop_master, b'd', 0x1f);
    nix::ioctl_readwrite!(prime_handle_to_fd, b'd', 0x2d, super::PrimeHandle);
    nix::ioctl_readwrite!(mode_map_dumb, b'd', 0xb3, super::MapDumb);
    nix::ioctl_readwrite!(mode_getfb2, b'd', 0xce, super::FbCommand);
}

/// A framebuffer of one plane, as `DRM_IOCTL_MODE_GETFB2` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrmFramebuffer {
    /// pixels
    pub width: u32,
    /// pixels
    pub height: u32,
    /// Bytes from one line to the next.
    pub pitch: u32,
    /// Where in the object the first line begins, bytes.
    pub offset: u32,
    /// A handle of the file that asked, to be given back by [`gem_close`].
    pub handle: u32,
}

/// The offset at which the object can be mapped (`DRM_IOCTL_MODE_MAP_DUMB`).
///
/// # Errors
/// `ENOENT`: no such handle. Others for objects that cannot be mapped.
pub fn map_offset(drm: impl AsFd, handle: u32) -> Result<u64, Errno> {
    let mut map = MapDumb {
        handle,
        ..MapDumb::default()
    };
    // SAFETY: the struct is the kernel's of 16 bytes, alive for the call, without pointers.
    unsafe { raw::mode_map_dumb(drm.as_fd().as_raw_fd(), &raw mut map) }?;
    Ok(map.offset)
}

/// The object as a dma-buf that can be read and written (`DRM_IOCTL_PRIME_HANDLE_TO_FD`).
///
/// # Errors
/// `ENOSYS` from a driver that exports nothing, `ENOENT` without such a handle.
pub fn prime_export(drm: impl AsFd, handle: u32) -> Result<OwnedFd, Errno> {
    let mut prime = PrimeHandle {
        handle,
        flags: libc::O_CLOEXEC.cast_unsigned() | libc::O_RDWR.cast_unsigned(),
        fd: -1,
    };
    // SAFETY: the struct is the kernel's of 12 bytes, alive for the call, without pointers.
    unsafe { raw::prime_handle_to_fd(drm.as_fd().as_raw_fd(), &raw mut prime) }?;
    // SAFETY: the call has succeeded, so this is a new fd that nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(prime.fd) })
}

/// Gives a handle back.
///
/// # Errors
/// `EINVAL`: there is none.
pub fn gem_close(drm: impl AsFd, handle: u32) -> Result<(), Errno> {
    let close = GemClose { handle, pad: 0 };
    // SAFETY: the struct is the kernel's of 8 bytes, alive for the call, without pointers; the kernel only reads it.
    unsafe { raw::gem_close(drm.as_fd().as_raw_fd(), &raw const close) }.map(drop)
}

/// Whoever opens a card while nobody is its master becomes it (drm_auth.c, `drm_master_open`); this ends that.
///
/// # Errors
/// `EINVAL`: we were not.
pub fn drop_master(drm: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the call has no argument.
    unsafe { raw::drop_master(drm.as_fd().as_raw_fd()) }.map(drop)
}

/// The framebuffer `id`, with a handle for its memory, which is given to the master and to CAP_SYS_ADMIN only.
///
/// # Errors
/// `ENOENT`: there is none; `EOPNOTSUPP`: it has several planes, or no handle was given.
pub fn framebuffer(drm: impl AsFd, id: u32) -> Result<DrmFramebuffer, Errno> {
    let mut command = FbCommand {
        fb_id: id,
        ..FbCommand::default()
    };
    // SAFETY: the struct is the kernel's of 104 bytes, alive for the call, without pointers.
    unsafe { raw::mode_getfb2(drm.as_fd().as_raw_fd(), &raw mut command) }?;
    if command.handles[0] == 0 || command.handles[1] != 0 {
        for (at, handle) in command.handles.iter().enumerate() {
            if *handle != 0 && !command.handles[..at].contains(handle) {
                let _ = gem_close(&drm, *handle);
            }
        }
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(DrmFramebuffer {
        width: command.width,
        height: command.height,
        pitch: command.pitches[0],
        offset: command.offsets[0],
        handle: command.handles[0],
    })
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    #[test]
    fn what_is_no_drm_node_says_so() {
        let null = std::fs::File::open("/dev/null").expect("a null device");
        assert_eq!(super::map_offset(&null, 1), Err(Errno::ENOTTY));
        assert_eq!(super::prime_export(&null, 1).map(drop), Err(Errno::ENOTTY));
        assert_eq!(super::gem_close(&null, 1), Err(Errno::ENOTTY));
        assert_eq!(super::drop_master(&null), Err(Errno::ENOTTY));
        assert_eq!(super::framebuffer(&null, 1), Err(Errno::ENOTTY));
    }
}
