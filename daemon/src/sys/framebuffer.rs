//! What a framebuffer device says of its memory (linux/fb.h).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

#[repr(C)]
#[derive(Default)]
struct FixScreenInfo {
    id: [u8; 16],
    smem_start: libc::c_ulong,
    smem_len: u32,
    kind: u32,
    type_aux: u32,
    visual: u32,
    xpanstep: u16,
    ypanstep: u16,
    ywrapstep: u16,
    line_length: u32,
    mmio_start: libc::c_ulong,
    mmio_len: u32,
    accel: u32,
    capabilities: u16,
    reserved: [u16; 2],
}

nix::ioctl_read_bad!(get_fscreeninfo, 0x4602, FixScreenInfo);

/// Of `struct fb_fix_screeninfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScreenMemory {
    /// Who it says it is: `VESA VGA`, `virtio_gpudrmfb`.
    pub id: String,
    /// Bytes that can be mapped, from the start of the page in which the memory begins.
    pub mappable: u64,
    /// Bytes from one line to the next.
    pub pitch: u32,
    /// Has it registers that can be mapped behind the memory?
    pub has_registers: bool,
}

/// `FBIOGET_FSCREENINFO`
///
/// # Errors
/// `ENODEV`: its driver is gone.
pub fn screen_memory(framebuffer: impl AsFd) -> Result<ScreenMemory, Errno> {
    let mut fix = FixScreenInfo::default();
    // SAFETY: the struct is the kernel's `struct fb_fix_screeninfo`, alive for the call, which only writes it.
    unsafe { get_fscreeninfo(framebuffer.as_fd().as_raw_fd(), &raw mut fix) }?;
    let page = super::page_size().map_err(|_| Errno::ENOSYS)? as u64;
    // `c_ulong` has 32 bits on some machines.
    #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)]
    let in_page = u64::try_from(fix.smem_start).map_err(|_| Errno::EOVERFLOW)? % page;
    let id = fix.id.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(ScreenMemory {
        id: String::from_utf8_lossy(id).into_owned(),
        mappable: (in_page + u64::from(fix.smem_len)).next_multiple_of(page),
        pitch: fix.line_length,
        has_registers: fix.mmio_len != 0,
    })
}

#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<FixScreenInfo>() == 80);
