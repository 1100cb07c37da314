//! Those structs of fbdev that a 32-bit program has in another layout (fb_chrdev.c, `fb_fix_screeninfo32`, `fb_cmap32`).
//! i386 and ARM have the same.

use std::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Cmap, FixScreenInfo};

/// `struct fb_fix_screeninfo` of a 32-bit program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FixScreenInfo32 {
    /// Who it says it is.
    pub id: [u8; 16],
    /// The low half of the address.
    pub smem_start: u32,
    /// Bytes that can be mapped.
    pub smem_len: u32,
    /// `FB_TYPE_*`
    pub kind: u32,
    /// Of interleaved planes.
    pub type_aux: u32,
    /// `FB_VISUAL_*`
    pub visual: u32,
    /// 0: cannot be panned so.
    pub xpanstep: u16,
    /// 0: cannot be panned so.
    pub ypanstep: u16,
    /// 0: does not wrap.
    pub ywrapstep: u16,
    /// Not written.
    pub padding: u16,
    /// Bytes from one line to the next.
    pub line_length: u32,
    /// The low half of the address.
    pub mmio_start: u32,
    /// Bytes of registers.
    pub mmio_len: u32,
    /// `FB_ACCEL_*`
    pub accel: u32,
    /// 0; `capabilities` are in its place in the header, but the kernel does not tell 32-bit programs of them.
    pub reserved: [u16; 2],
    /// Not written.
    pub padding_end: [u16; 2],
}

/// What the kernel writes of [`FixScreenInfo32`]: field by field, so what lies between is left as it was.
pub const FIX_WRITTEN: [Range<usize>; 2] = [0..42, 44..64];

impl From<FixScreenInfo> for FixScreenInfo32 {
    fn from(fix: FixScreenInfo) -> Self {
        Self {
            id: fix.id,
            smem_start: low(fix.smem_start),
            smem_len: fix.smem_len,
            kind: fix.kind,
            type_aux: fix.type_aux,
            visual: fix.visual,
            xpanstep: fix.xpanstep,
            ypanstep: fix.ypanstep,
            ywrapstep: fix.ywrapstep,
            padding: 0,
            line_length: fix.line_length,
            mmio_start: low(fix.mmio_start),
            mmio_len: fix.mmio_len,
            accel: fix.accel,
            reserved: fix.reserved,
            padding_end: [0; 2],
        }
    }
}

const fn low(address: u64) -> u32 {
    (address & 0xffff_ffff) as u32
}

/// `struct fb_cmap` of a 32-bit program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cmap32 {
    /// The first entry.
    pub start: u32,
    /// Entries of each array.
    pub len: u32,
    /// Where the arrays are: red, green, blue, transp.
    pub arrays: [u32; 4],
}

impl From<Cmap32> for Cmap {
    fn from(cmap: Cmap32) -> Self {
        Self {
            start: cmap.start,
            len: cmap.len,
            arrays: cmap.arrays.map(u64::from),
        }
    }
}

const _: () = assert!(size_of::<FixScreenInfo32>() == 68);
const _: () = assert!(size_of::<Cmap32>() == 24);

#[cfg(test)]
mod tests {
    use super::{FIX_WRITTEN, FixScreenInfo32};
    use crate::abi::fb::FixScreenInfo;
    use std::mem::offset_of;
    use zerocopy::FromBytes;

    #[test]
    fn what_is_written_is_all_fields_and_no_padding() {
        let [first, second] = FIX_WRITTEN;
        assert_eq!(first, 0..offset_of!(FixScreenInfo32, padding));
        assert_eq!(
            second,
            offset_of!(FixScreenInfo32, line_length)..offset_of!(FixScreenInfo32, padding_end)
        );
    }

    #[test]
    fn addresses_lose_their_upper_half() {
        let bytes: Vec<u8> = (0..80).collect();
        let fix = FixScreenInfo::read_from_bytes(&bytes).expect("80 bytes");
        let compat = FixScreenInfo32::from(fix);
        assert_eq!(compat.smem_start.to_ne_bytes(), [16, 17, 18, 19]);
        assert_eq!(compat.mmio_start.to_ne_bytes(), [56, 57, 58, 59]);
        assert_eq!((compat.line_length, compat.accel), (fix.line_length, fix.accel));
        assert_eq!(compat.reserved, fix.reserved);
    }
}
