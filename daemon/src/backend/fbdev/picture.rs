//! What a real framebuffer shows, as a picture for people: read as cat(1) would read it, and taken apart by what the driver
//! says of its pixels.

use vidcompat_proto::abi::fb::{Bitfield, ColorMap, FixScreenInfo, VarScreenInfo};

use super::super::framebuffer::Picture;

/// `FB_TYPE_PACKED_PIXELS`
const PACKED_PIXELS: u32 = 0;
/// `FB_VMODE_YWRAP`
const YWRAP: u32 = 256;

/// `FB_VISUAL_*`
mod visual {
    pub(super) const MONO01: u32 = 0;
    pub(super) const MONO10: u32 = 1;
    pub(super) const TRUECOLOR: u32 = 2;
    pub(super) const PSEUDOCOLOR: u32 = 3;
    pub(super) const DIRECTCOLOR: u32 = 4;
    pub(super) const STATIC_PSEUDOCOLOR: u32 = 5;
}

/// Pixels of a line, at most: no picture is so wide.
const WIDEST: u32 = 1 << 15;

/// The picture of a framebuffer that is like `var` and `fix`; `cmap` is its colour map, `read` fills a buffer from an offset.
///
/// # Errors
/// Why there is none, for people.
pub(super) fn picture(
    var: &VarScreenInfo,
    fix: &FixScreenInfo,
    cmap: &ColorMap,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), String>,
) -> Result<Picture, String> {
    let bits = var.bits_per_pixel;
    let is_known = fix.kind == PACKED_PIXELS
        && var.grayscale <= 1
        && match fix.visual {
            visual::MONO01 | visual::MONO10 => bits == 1,
            visual::PSEUDOCOLOR | visual::STATIC_PSEUDOCOLOR => matches!(bits, 1 | 2 | 4 | 8),
            visual::TRUECOLOR | visual::DIRECTCOLOR => matches!(bits, 8 | 16 | 24 | 32),
            _ => false,
        };
    if !is_known || var.xres > WIDEST || var.yres > WIDEST {
        let (kind, seen) = (fix.kind, fix.visual);
        return Err(format!(
            "its pixels are of a kind (type {kind}, visual {seen}, {bits} bits) that is not known here"
        ));
    }
    let first_bit = u64::from(var.xoffset) * u64::from(bits);
    let bit_in_byte = (first_bit % 8) as u32;
    let line_bytes = (bit_in_byte + var.xres * bits).div_ceil(8) as usize;
    let mut line = vec![0; line_bytes];
    let mut rgb = Vec::with_capacity((var.xres * var.yres * 3) as usize);
    for row in 0..var.yres {
        let mut at = u64::from(var.yoffset) + u64::from(row);
        if var.vmode & YWRAP != 0 {
            at %= u64::from(var.yres_virtual.max(1));
        }
        read(at * u64::from(fix.line_length) + first_bit / 8, &mut line)?;
        for column in 0..var.xres {
            let pixel = pixel(&line, bit_in_byte + column * bits, bits);
            rgb.extend(match fix.visual {
                visual::MONO01 => [if pixel == 0 { 255 } else { 0 }; 3],
                visual::MONO10 => [if pixel == 0 { 0 } else { 255 }; 3],
                visual::PSEUDOCOLOR | visual::STATIC_PSEUDOCOLOR => {
                    [&cmap.red, &cmap.green, &cmap.blue].map(|colors| upper(colors.get(pixel as usize)))
                }
                visual::DIRECTCOLOR => {
                    let through = |colors: &[u16], field| upper(colors.get(value(pixel, field) as usize));
                    [
                        through(&cmap.red, var.red),
                        through(&cmap.green, var.green),
                        through(&cmap.blue, var.blue),
                    ]
                }
                _ => {
                    [var.red, var.green, var.blue].map(|field| eight_bits(value(pixel, field), field.length))
                }
            });
        }
    }
    Ok(Picture {
        width: var.xres,
        height: var.yres,
        rgb,
    })
}

/// The pixel that begins with bit `at` of a line. Of pixels that share a byte the first is in its upper bits.
fn pixel(line: &[u8], at: u32, bits: u32) -> u32 {
    let byte = |offset: u32| u32::from(line.get((at / 8 + offset) as usize).copied().unwrap_or_default());
    if bits < 8 {
        return byte(0) >> (8 - bits - at % 8) & ((1 << bits) - 1);
    }
    (0..bits / 8).map(|offset| byte(offset) << (offset * 8)).sum()
}

fn value(pixel: u32, field: Bitfield) -> u32 {
    let mask = 1_u32.checked_shl(field.length).map_or(u32::MAX, |bit| bit - 1);
    pixel.checked_shr(field.offset).unwrap_or_default() & mask
}

/// A colour of `length` bits in eight, so that the brightest is white.
fn eight_bits(value: u32, length: u32) -> u8 {
    match length {
        0 => 0,
        1..8 => u8::try_from(value * 255 / ((1 << length) - 1)).unwrap_or(u8::MAX),
        _ => u8::try_from(value >> (length - 8).min(31) & 0xff).unwrap_or(u8::MAX),
    }
}

/// Of a colour map's entry.
fn upper(entry: Option<&u16>) -> u8 {
    entry.map_or(0, |entry| entry.to_be_bytes()[0])
}

#[cfg(test)]
mod tests {
    use super::picture;
    use vidcompat_proto::abi::fb::{Bitfield, ColorMap, FixScreenInfo, VarScreenInfo};

    const fn field(offset: u32, length: u32) -> Bitfield {
        Bitfield {
            offset,
            length,
            msb_right: 0,
        }
    }

    fn of(var: VarScreenInfo, fix: FixScreenInfo, cmap: &ColorMap, memory: &[u8]) -> Result<Vec<u8>, String> {
        let taken = picture(&var, &fix, cmap, |at, bytes| {
            let at = usize::try_from(at).expect("small");
            bytes.copy_from_slice(memory.get(at..at + bytes.len()).ok_or("behind the end")?);
            Ok(())
        })?;
        assert_eq!((taken.width, taken.height), (var.xres, var.yres));
        Ok(taken.rgb)
    }

    fn two_by_two(bits: u32) -> VarScreenInfo {
        VarScreenInfo {
            xres: 2,
            yres: 2,
            xres_virtual: 4,
            yres_virtual: 3,
            bits_per_pixel: bits,
            ..VarScreenInfo::default()
        }
    }

    #[test]
    fn true_colours_are_taken_apart_by_their_fields() {
        let fix = FixScreenInfo {
            visual: 2,
            line_length: 4,
            ..FixScreenInfo::default()
        };
        let var = VarScreenInfo {
            red: field(11, 5),
            green: field(5, 6),
            blue: field(0, 5),
            ..two_by_two(16)
        };
        let memory: Vec<u8> = [0xf800_u16, 0x07e0, 0x001f, 0xffff]
            .map(u16::to_le_bytes)
            .concat();
        let right = [255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255];
        assert_eq!(of(var, fix, &ColorMap::default(), &memory), Ok(right.to_vec()));
        let fix = FixScreenInfo {
            line_length: 16,
            ..fix
        };
        let var = VarScreenInfo {
            xoffset: 1,
            yoffset: 1,
            red: field(0, 8),
            green: field(8, 8),
            blue: field(16, 8),
            ..two_by_two(32)
        };
        let memory: Vec<u8> = (0..48).collect();
        let right = [20, 21, 22, 24, 25, 26, 36, 37, 38, 40, 41, 42];
        assert_eq!(of(var, fix, &ColorMap::default(), &memory), Ok(right.to_vec()));
        assert!(of(var, fix, &ColorMap::default(), &memory[..40]).is_err());
    }

    #[test]
    fn others_go_through_the_colour_map() {
        let entries = |by: u16| (0..=255).map(|entry: u16| (entry * by) << 8).collect();
        let cmap = ColorMap {
            red: entries(1),
            green: entries(2),
            blue: entries(3),
            ..ColorMap::default()
        };
        let fix = FixScreenInfo {
            visual: 3,
            line_length: 4,
            ..FixScreenInfo::default()
        };
        let right = [1, 2, 3, 2, 4, 6, 5, 10, 15, 6, 12, 18];
        assert_eq!(
            of(two_by_two(8), fix, &cmap, &[1, 2, 3, 4, 5, 6]),
            Ok(right.to_vec())
        );
        let fix = FixScreenInfo {
            visual: 1,
            line_length: 1,
            ..fix
        };
        let var = VarScreenInfo {
            xoffset: 3,
            ..two_by_two(1)
        };
        let right = [255, 255, 255, 0, 0, 0, 0, 0, 0, 255, 255, 255];
        assert_eq!(
            of(var, fix, &cmap, &[0b1111_0111, 0b0000_1000]),
            Ok(right.to_vec())
        );
    }

    #[test]
    fn what_is_not_known_is_said() {
        let fix = FixScreenInfo {
            kind: 1,
            visual: 2,
            ..FixScreenInfo::default()
        };
        assert!(of(two_by_two(16), fix, &ColorMap::default(), &[]).is_err());
    }
}
