//! fbdev structs with the 64-bit layout (`linux/fb.h`). That of 32-bit programs is in [`compat`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub mod compat;

/// `struct fb_bitfield`: where in a pixel a colour is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Bitfield {
    /// Bits below it.
    pub offset: u32,
    /// Bits.
    pub length: u32,
    /// Not 0: the most significant bit is the rightmost.
    pub msb_right: u32,
}

/// `struct fb_var_screeninfo`, the same for 32 and 64 bits: what a program may ask to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VarScreenInfo {
    /// Pixels that are shown.
    pub xres: u32,
    /// Lines that are shown.
    pub yres: u32,
    /// Pixels of a line in memory.
    pub xres_virtual: u32,
    /// Lines in memory.
    pub yres_virtual: u32,
    /// Pixels left of what is shown.
    pub xoffset: u32,
    /// Lines above what is shown.
    pub yoffset: u32,
    /// Of a pixel.
    pub bits_per_pixel: u32,
    /// 0: colour; 1: grey; else a V4L2 fourcc (`FB_TYPE_FOURCC`).
    pub grayscale: u32,
    /// Red.
    pub red: Bitfield,
    /// Green.
    pub green: Bitfield,
    /// Blue.
    pub blue: Bitfield,
    /// Alpha.
    pub transp: Bitfield,
    /// Not 0: a non-standard format.
    pub nonstd: u32,
    /// `FB_ACTIVATE_*`
    pub activate: u32,
    /// Of the picture, mm; all ones: not known.
    pub height: u32,
    /// Of the picture, mm; all ones: not known.
    pub width: u32,
    /// `FB_ACCELF_*` (obsolete).
    pub accel_flags: u32,
    /// Of a pixel, picoseconds.
    pub pixclock: u32,
    /// Pixels.
    pub left_margin: u32,
    /// Pixels.
    pub right_margin: u32,
    /// Lines.
    pub upper_margin: u32,
    /// Lines.
    pub lower_margin: u32,
    /// Pixels.
    pub hsync_len: u32,
    /// Lines.
    pub vsync_len: u32,
    /// `FB_SYNC_*`
    pub sync: u32,
    /// `FB_VMODE_*`
    pub vmode: u32,
    /// Degrees counter-clockwise, in quarters (`FB_ROTATE_*`).
    pub rotate: u32,
    /// For fourcc formats.
    pub colorspace: u32,
    /// 0.
    pub reserved: [u32; 4],
}

/// `struct fb_fix_screeninfo`: what a program cannot change by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FixScreenInfo {
    /// Who it says it is, ended by 0 where it is shorter.
    pub id: [u8; 16],
    /// Physical address, or what the driver says in its place.
    pub smem_start: u64,
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
    /// 0.
    pub padding: u16,
    /// Bytes from one line to the next.
    pub line_length: u32,
    /// 0.
    pub padding_middle: u32,
    /// Physical address of registers.
    pub mmio_start: u64,
    /// Bytes of registers.
    pub mmio_len: u32,
    /// `FB_ACCEL_*`
    pub accel: u32,
    /// `FB_CAP_*`
    pub capabilities: u16,
    /// 0.
    pub reserved: [u16; 2],
    /// 0.
    pub padding_end: u16,
}

/// `struct fb_vblank`, the same for 32 and 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Vblank {
    /// `FB_VBLANK_*`
    pub flags: u32,
    /// Vertical blanks so far.
    pub count: u32,
    /// Line that is drawn now.
    pub vcount: u32,
    /// Pixel that is drawn now.
    pub hcount: u32,
    /// 0.
    pub reserved: [u32; 4],
}

/// `struct fb_con2fbmap`, the same for 32 and 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Con2FbMap {
    /// Virtual console, from 1.
    pub console: u32,
    /// Framebuffer.
    pub framebuffer: u32,
}

/// `struct fb_cmap`: where a program has a stretch of the colour map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cmap {
    /// The first entry.
    pub start: u32,
    /// Entries of each array, 16 bits each.
    pub len: u32,
    /// Where the arrays are: red, green, blue, transp, of which the last may be 0.
    pub arrays: [u64; 4],
}

/// What `struct fb_cmap` and the arrays that it points to say: a stretch of the colour map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColorMap {
    /// The first entry.
    pub start: u32,
    /// 16 bits each; all of one length.
    pub red: Vec<u16>,
    /// As many.
    pub green: Vec<u16>,
    /// As many.
    pub blue: Vec<u16>,
    /// As many, or `None`: the program has given no array.
    pub transp: Option<Vec<u16>>,
}

/// `FB_BLANK_*`: 0 (unblank) to 4 (powerdown) are levels.
pub const BLANK_POWERDOWN: u32 = 4;

const _: () = assert!(size_of::<VarScreenInfo>() == 160);
const _: () = assert!(size_of::<FixScreenInfo>() == 80);
const _: () = assert!(size_of::<Vblank>() == 32);
const _: () = assert!(size_of::<Cmap>() == 40);
