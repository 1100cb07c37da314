//! Pixel formats: fbdev's bit fields and DRM's fourccs.
//!
//! fbdev says where in a pixel each colour is, the pixel being a number in the machine's order of bytes; DRM's names say
//! the same of a little-endian number. Machines that this project runs on are little-endian.

use drm_fourcc::DrmFourcc;

use crate::abi::fb::{Bitfield, VarScreenInfo};

/// A format that a framebuffer of ours can have. Names are DRM's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum PixelFormat {
    /// An index into the palette of 256 colours.
    C8,
    Rgb565,
    Bgr565,
    Xrgb1555,
    Argb1555,
    Xbgr1555,
    Abgr1555,
    Rgb888,
    Bgr888,
    Xrgb8888,
    Argb8888,
    Xbgr8888,
    Abgr8888,
    Rgbx8888,
    Rgba8888,
    Bgrx8888,
    Bgra8888,
}

/// What a format is to each of those who name it.
struct Row {
    format: PixelFormat,
    drm: DrmFourcc,
    bits: u32,
    /// Offset and length of red, green, blue and alpha.
    fields: [(u32, u32); 4],
}

const fn row(format: PixelFormat, drm: DrmFourcc, bits: u32, fields: [(u32, u32); 4]) -> Row {
    Row {
        format,
        drm,
        bits,
        fields,
    }
}

/// Of one number of bits, the first is the default: what DRM's own emulation gives (drm_fb_helper_fill_pixel_fmt).
#[rustfmt::skip]
const ROWS: &[Row] = &[
    row(PixelFormat::C8,       DrmFourcc::C8,        8, [(0, 8), (0, 8), (0, 8), (0, 0)]),
    row(PixelFormat::Rgb565,   DrmFourcc::Rgb565,   16, [(11, 5), (5, 6), (0, 5), (0, 0)]),
    row(PixelFormat::Bgr565,   DrmFourcc::Bgr565,   16, [(0, 5), (5, 6), (11, 5), (0, 0)]),
    row(PixelFormat::Xrgb1555, DrmFourcc::Xrgb1555, 16, [(10, 5), (5, 5), (0, 5), (0, 0)]),
    row(PixelFormat::Argb1555, DrmFourcc::Argb1555, 16, [(10, 5), (5, 5), (0, 5), (15, 1)]),
    row(PixelFormat::Xbgr1555, DrmFourcc::Xbgr1555, 16, [(0, 5), (5, 5), (10, 5), (0, 0)]),
    row(PixelFormat::Abgr1555, DrmFourcc::Abgr1555, 16, [(0, 5), (5, 5), (10, 5), (15, 1)]),
    row(PixelFormat::Rgb888,   DrmFourcc::Rgb888,   24, [(16, 8), (8, 8), (0, 8), (0, 0)]),
    row(PixelFormat::Bgr888,   DrmFourcc::Bgr888,   24, [(0, 8), (8, 8), (16, 8), (0, 0)]),
    row(PixelFormat::Xrgb8888, DrmFourcc::Xrgb8888, 32, [(16, 8), (8, 8), (0, 8), (0, 0)]),
    row(PixelFormat::Argb8888, DrmFourcc::Argb8888, 32, [(16, 8), (8, 8), (0, 8), (24, 8)]),
    row(PixelFormat::Xbgr8888, DrmFourcc::Xbgr8888, 32, [(0, 8), (8, 8), (16, 8), (0, 0)]),
    row(PixelFormat::Abgr8888, DrmFourcc::Abgr8888, 32, [(0, 8), (8, 8), (16, 8), (24, 8)]),
    row(PixelFormat::Rgbx8888, DrmFourcc::Rgbx8888, 32, [(24, 8), (16, 8), (8, 8), (0, 0)]),
    row(PixelFormat::Rgba8888, DrmFourcc::Rgba8888, 32, [(24, 8), (16, 8), (8, 8), (0, 8)]),
    row(PixelFormat::Bgrx8888, DrmFourcc::Bgrx8888, 32, [(8, 8), (16, 8), (24, 8), (0, 0)]),
    row(PixelFormat::Bgra8888, DrmFourcc::Bgra8888, 32, [(8, 8), (16, 8), (24, 8), (0, 8)]),
];

impl PixelFormat {
    /// Every one.
    pub fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| row.format)
    }

    fn row(self) -> &'static Row {
        // `ROWS` is in the order of the variants: a test looks.
        &ROWS[self as usize]
    }

    /// The format that a framebuffer has where a program says no more than how many bits a pixel should have: of the
    /// depths that there are (8, 16, 24, 32), the next that is no smaller. Up to 15 bits it has five of green.
    #[must_use]
    pub fn of_depth(bits: u32) -> Option<Self> {
        match bits {
            0..=8 => Some(Self::C8),
            15 => Some(Self::Xrgb1555),
            9..=16 => Some(Self::Rgb565),
            17..=24 => Some(Self::Rgb888),
            25..=32 => Some(Self::Xrgb8888),
            _ => None,
        }
    }

    /// The format that a program gets which asks for the bit fields of `var`: exactly that one, if it is one of ours; else
    /// the default of its depth, as drivers do that know one format for each (vfb_check_var). Programs leave fields of the
    /// depth before, or zeros (SDL 1.2; drm_fb_helper_check_var).
    ///
    /// `None`: no pixel has so many bits.
    #[must_use]
    pub fn wished(var: &VarScreenInfo) -> Option<Self> {
        let default = Self::of_depth(var.bits_per_pixel)?;
        let bits = default.bits_per_pixel();
        let rows = ROWS.iter().filter(|row| row.bits == bits);
        let fits = |row: &&Row| row.is(var) && (bits == 8 || var.transp == Bitfield::of(row.fields[3]));
        if let Some(row) = rows.clone().find(fits) {
            return Some(row.format);
        }
        // Alpha is not shown: a field of it that no format has changes nothing of the colours.
        if bits != 8
            && let Some(row) = rows.clone().find(|row| row.is(var))
        {
            return Some(row.format);
        }
        if bits == 16 && var.green.length == 5 {
            return Some(if var.transp.length == 1 {
                Self::Argb1555
            } else {
                Self::Xrgb1555
            });
        }
        Some(default)
    }

    /// The format that `var` describes, if it is one of ours.
    #[must_use]
    pub fn of_var(var: &VarScreenInfo) -> Option<Self> {
        let is_it = |row: &&Row| {
            row.bits == var.bits_per_pixel && row.is(var) && var.transp == Bitfield::of(row.fields[3])
        };
        ROWS.iter().find(is_it).map(|row| row.format)
    }

    /// Writes bits and fields into `var`.
    pub fn describe(self, var: &mut VarScreenInfo) {
        let row = self.row();
        var.bits_per_pixel = row.bits;
        [var.red, var.green, var.blue, var.transp] = row.fields.map(Bitfield::of);
    }

    /// Bits that a pixel takes in memory.
    #[must_use]
    pub fn bits_per_pixel(self) -> u32 {
        self.row().bits
    }

    /// Bytes that a pixel takes in memory.
    #[must_use]
    pub fn bytes_per_pixel(self) -> u32 {
        self.row().bits / 8
    }

    /// Offset and length of red, green, blue and alpha in the pixel; of the palette's index for [`PixelFormat::C8`].
    #[must_use]
    pub fn fields(self) -> [Bitfield; 4] {
        self.row().fields.map(Bitfield::of)
    }

    /// As DRM calls it.
    #[must_use]
    pub fn drm(self) -> DrmFourcc {
        self.row().drm
    }

    /// Are the colours where `DRM_FORMAT_XRGB8888` has them, so that hardware shows it as it is?
    #[must_use]
    pub fn is_shown_as_it_is(self) -> bool {
        matches!(self, Self::Xrgb8888 | Self::Argb8888)
    }
}

impl Row {
    /// Has `var` the colours where this has them?
    fn is(&self, var: &VarScreenInfo) -> bool {
        [var.red, var.green, var.blue] == [self.fields[0], self.fields[1], self.fields[2]].map(Bitfield::of)
    }
}

impl Bitfield {
    const fn of((offset, length): (u32, u32)) -> Self {
        Self {
            offset,
            length,
            msb_right: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PixelFormat, ROWS};
    use crate::abi::fb::{Bitfield, VarScreenInfo};
    use proptest::prelude::*;

    fn var_of(format: PixelFormat) -> VarScreenInfo {
        let mut var = VarScreenInfo::default();
        format.describe(&mut var);
        var
    }

    #[test]
    fn the_table_is_in_the_order_of_the_formats() {
        for (at, row) in ROWS.iter().enumerate() {
            assert_eq!(row.format as usize, at);
        }
    }

    #[test]
    fn every_format_is_found_again_by_its_fields() {
        for format in PixelFormat::all() {
            assert_eq!(PixelFormat::of_var(&var_of(format)), Some(format));
            assert_eq!(PixelFormat::wished(&var_of(format)), Some(format));
        }
    }

    /// DRM's names say the fields from the most significant down, each with its bits.
    #[test]
    fn the_fields_are_what_drms_names_say() {
        for format in PixelFormat::all().filter(|format| *format != PixelFormat::C8) {
            let name = format!("{format:?}").to_lowercase();
            let (letters, digits) = name.split_at(name.find(|c: char| c.is_ascii_digit()).expect("digits"));
            let lengths: Vec<u32> = digits.chars().map(|c| c.to_digit(10).expect("a digit")).collect();
            assert_eq!(letters.len(), lengths.len(), "{name}");
            let mut offset: u32 = lengths.iter().sum();
            assert_eq!(offset, format.bits_per_pixel(), "{name}");
            let mut expected = [Bitfield::default(); 4];
            for (letter, length) in letters.chars().zip(lengths) {
                offset -= length;
                if let Some(at) = "rgba".find(letter) {
                    expected[at] = Bitfield::of((offset, length));
                }
            }
            assert_eq!(format.fields(), expected, "{name}");
        }
    }

    #[test]
    fn a_wish_that_is_no_format_becomes_the_default_of_its_depth() {
        for (from, bits, expected) in [
            (PixelFormat::Xrgb8888, 16, PixelFormat::Rgb565),
            (PixelFormat::Xrgb8888, 24, PixelFormat::Rgb888),
            (PixelFormat::Xbgr8888, 24, PixelFormat::Bgr888),
            (PixelFormat::Rgb888, 32, PixelFormat::Xrgb8888),
            (PixelFormat::Rgb565, 32, PixelFormat::Xrgb8888),
            (PixelFormat::Rgb565, 15, PixelFormat::Rgb565),
            (PixelFormat::Xrgb8888, 15, PixelFormat::Xrgb1555),
            (PixelFormat::Xrgb8888, 8, PixelFormat::C8),
            (PixelFormat::Xrgb8888, 1, PixelFormat::C8),
            (PixelFormat::C8, 32, PixelFormat::Xrgb8888),
        ] {
            let mut var = var_of(from);
            var.bits_per_pixel = bits;
            assert_eq!(PixelFormat::wished(&var), Some(expected), "{from:?} {bits}");
        }
    }

    #[test]
    fn five_bits_of_green_are_asked_for_by_themselves() {
        let mut var = VarScreenInfo {
            bits_per_pixel: 16,
            ..VarScreenInfo::default()
        };
        var.green.length = 5;
        assert_eq!(PixelFormat::wished(&var), Some(PixelFormat::Xrgb1555));
        var.transp.length = 1;
        assert_eq!(PixelFormat::wished(&var), Some(PixelFormat::Argb1555));
    }

    #[test]
    fn alpha_in_an_odd_place_does_not_change_the_order_of_the_colours() {
        let mut var = var_of(PixelFormat::Xbgr8888);
        var.transp = Bitfield::of((24, 0));
        assert_eq!(PixelFormat::wished(&var), Some(PixelFormat::Xbgr8888));
    }

    proptest! {
        #[test]
        fn a_wish_has_at_least_the_bits_asked_for_and_is_stable(
            bits in 0u32..40,
            fields in prop::array::uniform4((0u32..40, 0u32..40, 0u32..2)),
        ) {
            let [red, green, blue, transp] =
                fields.map(|(offset, length, msb_right)| Bitfield { offset, length, msb_right });
            let mut var = VarScreenInfo { bits_per_pixel: bits, red, green, blue, transp, ..VarScreenInfo::default() };
            let format = PixelFormat::wished(&var);
            prop_assert_eq!(format.is_some(), bits <= 32);
            if let Some(format) = format {
                prop_assert!(format.bits_per_pixel() >= bits && format.bits_per_pixel() < bits + 8 || bits == 0);
                format.describe(&mut var);
                prop_assert_eq!(PixelFormat::wished(&var), Some(format));
                prop_assert_eq!(PixelFormat::of_var(&var), Some(format));
            }
        }
    }
}
