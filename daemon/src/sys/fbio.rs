//! The ioctls of a real framebuffer (linux/fb.h), each with the struct that the kernel reads or writes.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use vidcompat_proto::abi::fb::{ColorMap, Con2FbMap, FixScreenInfo, VarScreenInfo, Vblank};

/// `struct fb_cmap`
#[repr(C)]
struct Cmap {
    start: u32,
    len: u32,
    arrays: [*mut u16; 4],
}

/// `struct fb_dmabuf_export` of SoC vendors' kernels.
#[repr(C)]
struct DmaBufExport {
    fd: i32,
    flags: u32,
}

mod raw {
    use super::{Cmap, Con2FbMap, DmaBufExport, FixScreenInfo, VarScreenInfo, Vblank};

    nix::ioctl_read_bad!(get_vscreeninfo, 0x4600, VarScreenInfo);
    nix::ioctl_readwrite_bad!(put_vscreeninfo, 0x4601, VarScreenInfo);
    nix::ioctl_read_bad!(get_fscreeninfo, 0x4602, FixScreenInfo);
    nix::ioctl_readwrite_bad!(getcmap, 0x4604, Cmap);
    nix::ioctl_write_ptr_bad!(putcmap, 0x4605, Cmap);
    nix::ioctl_readwrite_bad!(pan_display, 0x4606, VarScreenInfo);
    nix::ioctl_readwrite_bad!(get_con2fbmap, 0x460f, Con2FbMap);
    nix::ioctl_write_ptr_bad!(put_con2fbmap, 0x4610, Con2FbMap);
    nix::ioctl_write_int_bad!(blank, 0x4611);
    nix::ioctl_read!(get_vblank, b'F', 0x12, Vblank);
    nix::ioctl_write_ptr!(waitforvsync, b'F', 0x20, u32);
    nix::ioctl_read!(get_dmabuf, b'F', 0x21, DmaBufExport);
}

macro_rules! gets {
    ($($(#[$doc:meta])* $name:ident -> $result:ty;)*) => { $(
        $(#[$doc])*
        ///
        /// # Errors
        /// What the driver says.
        pub fn $name(framebuffer: &File) -> Result<$result, Errno> {
            let mut got = <$result>::default();
            // SAFETY: the struct is the kernel's, alive for the call, which only writes it.
            unsafe { raw::$name(framebuffer.as_raw_fd(), &raw mut got) }.map(|_| got)
        }
    )* };
}

gets! {
    /// `FBIOGET_VSCREENINFO`
    get_vscreeninfo -> VarScreenInfo;
    /// `FBIOGET_FSCREENINFO`
    get_fscreeninfo -> FixScreenInfo;
    /// `FBIOGET_VBLANK`
    get_vblank -> Vblank;
}

macro_rules! changes {
    ($($(#[$doc:meta])* $name:ident($given:ty);)*) => { $(
        $(#[$doc])*
        ///
        /// # Errors
        /// What the driver says.
        pub fn $name(framebuffer: &File, given: &mut $given) -> Result<(), Errno> {
            // SAFETY: the struct is the kernel's, borrowed for the call, without pointers.
            unsafe { raw::$name(framebuffer.as_raw_fd(), given) }.map(drop)
        }
    )* };
}

changes! {
    /// `FBIOPUT_VSCREENINFO`
    put_vscreeninfo(VarScreenInfo);
    /// `FBIOPAN_DISPLAY`
    pan_display(VarScreenInfo);
    /// `FBIOGET_CON2FBMAP`
    get_con2fbmap(Con2FbMap);
}

/// `FBIOPUT_CON2FBMAP`
///
/// # Errors
/// What the driver says.
pub fn put_con2fbmap(framebuffer: &File, map: &Con2FbMap) -> Result<(), Errno> {
    // SAFETY: the struct is the kernel's, borrowed for the call, which only reads it; without pointers.
    unsafe { raw::put_con2fbmap(framebuffer.as_raw_fd(), map) }.map(drop)
}

/// `FBIOBLANK`
///
/// # Errors
/// What the driver says.
pub fn blank(framebuffer: &File, level: u32) -> Result<(), Errno> {
    // SAFETY: the argument is a number.
    unsafe { raw::blank(framebuffer.as_raw_fd(), level.cast_signed()) }.map(drop)
}

/// `FBIO_WAITFORVSYNC`; `None`: with a null pointer in place of the argument.
///
/// # Errors
/// What the driver says; `EFAULT` for `None` from one that looks at its argument.
pub fn waitforvsync(framebuffer: &File, crtc: Option<u32>) -> Result<(), Errno> {
    let crtc = crtc.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the argument is a number that lives for the call, which only reads it, or null, at which the kernel fails.
    unsafe { raw::waitforvsync(framebuffer.as_raw_fd(), crtc) }.map(drop)
}

/// `FBIOGET_DMABUF`, where the kernel is a SoC vendor's. The fd is whatever the driver gives.
///
/// # Errors
/// `ENOTTY` from all others.
pub fn get_dmabuf(framebuffer: &File) -> Result<OwnedFd, Errno> {
    let mut export = DmaBufExport {
        fd: -1,
        flags: libc::O_CLOEXEC.cast_unsigned(),
    };
    // SAFETY: the struct is as long as the ioctl's number says, and alive for the call.
    unsafe { raw::get_dmabuf(framebuffer.as_raw_fd(), &raw mut export) }?;
    if export.fd < 0 {
        return Err(Errno::ENOTTY);
    }
    // SAFETY: the call has succeeded, so this is a new fd that nobody else knows of.
    Ok(unsafe { OwnedFd::from_raw_fd(export.fd) })
}

/// The arrays of a colour map as the kernel is told of them: as many entries as all of them have.
fn told(map: &mut ColorMap) -> Cmap {
    let arrays = [
        Some(&mut map.red),
        Some(&mut map.green),
        Some(&mut map.blue),
        map.transp.as_mut(),
    ];
    let len = arrays
        .iter()
        .flatten()
        .map(|array| array.len())
        .min()
        .unwrap_or_default();
    Cmap {
        start: map.start,
        len: u32::try_from(len).unwrap_or(u32::MAX),
        arrays: arrays.map(|array| array.map_or(std::ptr::null_mut(), Vec::as_mut_ptr)),
    }
}

/// `FBIOGETCMAP`: fills the arrays as far as there is something for them.
///
/// # Errors
/// What the driver says.
pub fn getcmap(framebuffer: &File, map: &mut ColorMap) -> Result<(), Errno> {
    let mut cmap = told(map);
    // SAFETY: each array has at least `len` entries of two bytes, which is as much as the kernel writes to it, or is null,
    // which it passes over or fails at. They are borrowed for the call through `map`.
    unsafe { raw::getcmap(framebuffer.as_raw_fd(), &raw mut cmap) }.map(drop)
}

/// `FBIOPUTCMAP`
///
/// # Errors
/// What the driver says.
pub fn putcmap(framebuffer: &File, map: &mut ColorMap) -> Result<(), Errno> {
    let cmap = told(map);
    // SAFETY: as in [`getcmap`]; the kernel only reads them.
    unsafe { raw::putcmap(framebuffer.as_raw_fd(), &raw const cmap) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::{ColorMap, told};
    use nix::errno::Errno;

    #[test]
    fn what_is_no_framebuffer_says_so() {
        let null = std::fs::File::open("/dev/null").expect("a null device");
        assert_eq!(super::get_vscreeninfo(&null), Err(Errno::ENOTTY));
        assert_eq!(
            super::getcmap(&null, &mut ColorMap::default()),
            Err(Errno::ENOTTY)
        );
        assert_eq!(super::waitforvsync(&null, Some(0)), Err(Errno::ENOTTY));
        assert_eq!(super::waitforvsync(&null, None), Err(Errno::ENOTTY));
        assert_eq!(super::get_dmabuf(&null).map(drop), Err(Errno::ENOTTY));
        assert_eq!(super::blank(&null, 0), Err(Errno::ENOTTY));
    }

    #[test]
    fn the_kernel_is_told_of_the_shortest_array_of_a_map() {
        let mut map = ColorMap {
            start: 3,
            red: vec![0; 5],
            green: vec![0; 4],
            blue: vec![0; 9],
            transp: None,
        };
        let cmap = told(&mut map);
        assert_eq!((cmap.start, cmap.len), (3, 4));
        assert!(cmap.arrays[3].is_null() && !cmap.arrays[2].is_null());
        map.transp = Some(Vec::new());
        assert_eq!(told(&mut map).len, 0);
    }
}
