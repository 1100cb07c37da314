//! From every format to the one that hardware shows (`DRM_FORMAT_XRGB8888`), in whole multiples of the size.
//!
//! Where a colour has fewer than eight bits, its upper ones are repeated below them, so that white is white. The fourth byte
//! of a pixel means nothing.

use vidcompat_proto::fourcc::PixelFormat;
use yuv::YuvError;

/// Bytes of a pixel that is shown.
pub(super) const SHOWN: usize = 4;

/// Converts pictures; keeps room for lines.
#[derive(Debug, Default)]
pub(super) struct Converter {
    line: Vec<u8>,
    wide: Vec<u8>,
}

/// Lines of pixels without gaps.
pub(super) struct Source<'a> {
    pub(super) format: PixelFormat,
    /// Of 8-bit pixels.
    pub(super) palette: &'a [u32; 256],
    /// Pixels of a line.
    pub(super) width: u32,
    pub(super) bytes: &'a [u8],
}

impl Converter {
    /// Draws the lines of `source` from the start of `target`, whose lines begin `pitch` bytes after each other, each pixel
    /// `scale` times as wide and high. What has no room in `target` is left out.
    ///
    /// `target` is written in its order and never read: it may be a card's own memory.
    pub(super) fn draw(&mut self, source: &Source<'_>, scale: u32, target: &mut [u8], pitch: usize) {
        let (Ok(width), Ok(scale)) = (usize::try_from(source.width), usize::try_from(scale)) else {
            return;
        };
        let line = width * bytes_per_pixel(source.format);
        if line == 0 || pitch < width * scale * SHOWN {
            return;
        }
        if scale == 1 {
            return lines(source, line, target, pitch);
        }
        self.line.resize(width * SHOWN, 0);
        self.wide.resize(width * scale * SHOWN, 0);
        for (from, to) in source
            .bytes
            .chunks_exact(line)
            .zip(target.chunks_mut(pitch * scale))
        {
            let one = Source {
                bytes: from,
                ..*source
            };
            lines(&one, line, &mut self.line, width * SHOWN);
            widen(&self.line, &mut self.wide, scale);
            for row in to.chunks_mut(pitch) {
                if let Some(row) = row.get_mut(..self.wide.len()) {
                    row.copy_from_slice(&self.wide);
                }
            }
        }
    }
}

fn bytes_per_pixel(format: PixelFormat) -> usize {
    // At most four.
    usize::try_from(format.bytes_per_pixel()).unwrap_or(SHOWN)
}

/// Converts lines of `line` bytes each. The crate's functions leave out a last line that is shorter than the pitch.
fn lines(source: &Source<'_>, line: usize, target: &mut [u8], pitch: usize) {
    let Ok(width) = usize::try_from(source.width) else {
        return;
    };
    let fit = (target.len() + pitch).saturating_sub(width * SHOWN) / pitch;
    let count = fit.min(source.bytes.len() / line);
    let Some(last) = count.checked_sub(1) else { return };
    let (first, rest) = target.split_at_mut(last * pitch);
    block(source, &source.bytes[..last * line], line, first, pitch);
    let end = &mut rest[..width * SHOWN];
    block(
        source,
        &source.bytes[last * line..][..line],
        line,
        end,
        width * SHOWN,
    );
}

/// Whole lines on both sides.
fn block(source: &Source<'_>, bytes: &[u8], line: usize, target: &mut [u8], pitch: usize) {
    match source.format {
        PixelFormat::C8 => each(bytes, line, target, pitch, |from, to| {
            for (from, to) in from.iter().zip(to.chunks_exact_mut(SHOWN)) {
                to.copy_from_slice(&source.palette[usize::from(*from)].to_le_bytes());
            }
        }),
        PixelFormat::Xrgb8888 | PixelFormat::Argb8888 => each(bytes, line, target, pitch, |from, to| {
            to[..from.len()].copy_from_slice(from);
        }),
        PixelFormat::Rgb565 => words(bytes, line, target, pitch, |pixel| {
            five(pixel >> 11) << 16 | six(pixel >> 5) << 8 | five(pixel)
        }),
        PixelFormat::Bgr565 => words(bytes, line, target, pitch, |pixel| {
            five(pixel) << 16 | six(pixel >> 5) << 8 | five(pixel >> 11)
        }),
        PixelFormat::Xrgb1555 | PixelFormat::Argb1555 => words(bytes, line, target, pitch, |pixel| {
            five(pixel >> 10) << 16 | five(pixel >> 5) << 8 | five(pixel)
        }),
        PixelFormat::Xbgr1555 | PixelFormat::Abgr1555 => words(bytes, line, target, pitch, |pixel| {
            five(pixel) << 16 | five(pixel >> 5) << 8 | five(pixel >> 10)
        }),
        PixelFormat::Rgbx8888 | PixelFormat::Rgba8888 => {
            longs(bytes, line, target, pitch, |pixel| pixel >> 8)
        }
        PixelFormat::Bgrx8888 | PixelFormat::Bgra8888 => longs(bytes, line, target, pitch, u32::swap_bytes),
        // In the crate's names the order is that of the bytes in memory.
        PixelFormat::Xbgr8888 | PixelFormat::Abgr8888 => {
            by_crate(source, bytes, line, target, pitch, yuv::rgba_to_bgra)
        }
        PixelFormat::Rgb888 => by_crate(source, bytes, line, target, pitch, yuv::bgr_to_bgra),
        PixelFormat::Bgr888 => by_crate(source, bytes, line, target, pitch, yuv::rgb_to_bgra),
    }
}

fn each(bytes: &[u8], line: usize, target: &mut [u8], pitch: usize, convert: impl Fn(&[u8], &mut [u8])) {
    for (from, to) in bytes.chunks_exact(line).zip(target.chunks_exact_mut(pitch)) {
        convert(from, to);
    }
}

/// Pixels of 16 bits, which no crate knows; the compiler makes vectors of it.
fn words(bytes: &[u8], line: usize, target: &mut [u8], pitch: usize, convert: impl Fn(u32) -> u32) {
    each(bytes, line, target, pitch, |from, to| {
        for (from, to) in from.chunks_exact(2).zip(to.chunks_exact_mut(SHOWN)) {
            let pixel = u32::from(u16::from_le_bytes([from[0], from[1]]));
            to.copy_from_slice(&convert(pixel).to_le_bytes());
        }
    });
}

/// Pixels of 32 bits with the colours in the upper ones, which the crate has not; the compiler makes vectors of it.
fn longs(bytes: &[u8], line: usize, target: &mut [u8], pitch: usize, convert: impl Fn(u32) -> u32) {
    each(bytes, line, target, pitch, |from, to| {
        for (from, to) in from.chunks_exact(4).zip(to.chunks_exact_mut(SHOWN)) {
            let pixel = u32::from_le_bytes([from[0], from[1], from[2], from[3]]);
            to.copy_from_slice(&convert(pixel).to_le_bytes());
        }
    });
}

type Shuffle = fn(&[u8], u32, &mut [u8], u32, u32, u32) -> Result<(), YuvError>;

fn by_crate(
    source: &Source<'_>,
    bytes: &[u8],
    line: usize,
    target: &mut [u8],
    pitch: usize,
    shuffle: Shuffle,
) {
    let sizes = (
        u32::try_from(line),
        u32::try_from(pitch),
        u32::try_from(bytes.len() / line),
    );
    let (Ok(line), Ok(pitch), Ok(height)) = sizes else {
        return;
    };
    if height == 0 {
        return;
    }
    if let Err(error) = shuffle(bytes, line, target, pitch, source.width, height) {
        tracing::error!(%error, "a picture cannot be converted");
    }
}

const fn five(bits: u32) -> u32 {
    let bits = bits & 31;
    bits << 3 | bits >> 2
}

const fn six(bits: u32) -> u32 {
    let bits = bits & 63;
    bits << 2 | bits >> 4
}

fn widen(line: &[u8], wide: &mut [u8], scale: usize) {
    for (from, to) in line.chunks_exact(SHOWN).zip(wide.chunks_exact_mut(scale * SHOWN)) {
        for pixel in to.chunks_exact_mut(SHOWN) {
            pixel.copy_from_slice(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Converter, Source};
    use proptest::prelude::*;
    use vidcompat_proto::fourcc::PixelFormat;

    /// One pixel, by what its format says of itself.
    fn reference(format: PixelFormat, palette: &[u32; 256], bytes: &[u8]) -> [u8; 3] {
        let pixel = bytes
            .iter()
            .rev()
            .fold(0u64, |pixel, byte| pixel << 8 | u64::from(*byte));
        if format == PixelFormat::C8 {
            let [blue, green, red, _] = palette[bytes[0] as usize].to_le_bytes();
            return [blue, green, red];
        }
        let [red, green, blue, _] = format.fields().map(|field| {
            // Bit by bit from the most significant, over and over.
            (0..8).fold(0u8, |value, at| {
                let bit = field
                    .length
                    .checked_sub(1)
                    .map_or(0, |most| field.offset + most - at % field.length);
                value << 1 | u8::from(pixel >> bit & 1 == 1)
            })
        });
        [blue, green, red]
    }

    fn shown(target: &[u8], pitch: usize, x: usize, y: usize) -> [u8; 3] {
        let at = y * pitch + x * 4;
        [target[at], target[at + 1], target[at + 2]]
    }

    #[test]
    fn every_value_of_16_bits_is_what_its_fields_say() {
        let palette = [0; 256];
        for format in PixelFormat::all().filter(|format| format.bits_per_pixel() == 16) {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let source = Source {
                format,
                palette: &palette,
                width: 256,
                bytes: &bytes,
            };
            let mut target = vec![0; 256 * 256 * 4];
            Converter::default().draw(&source, 1, &mut target, 1024);
            for (from, to) in bytes.chunks_exact(2).zip(target.chunks_exact(4)) {
                assert_eq!(reference(format, &palette, from), to[..3], "{format:?} {from:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_pixel_is_what_its_format_says_and_nothing_else_is_written(
            format in prop::sample::select(PixelFormat::all().collect::<Vec<_>>()),
            width in 1usize..90,
            height in 1usize..6,
            scale in 1usize..4,
            gap in 0usize..40,
            missing in 0usize..3,
            seed in prop::collection::vec(any::<u8>(), 97),
        ) {
            let mut palette = [0; 256];
            for (at, colour) in palette.iter_mut().enumerate() {
                *colour = u32::from(seed[at % 97]) * 0x0001_0305 + u32::try_from(at).expect("small") * 0x00f1_0b01;
            }
            let bpp = format.bytes_per_pixel() as usize;
            let bytes: Vec<u8> = seed.iter().copied().cycle().take(width * height * bpp).collect();
            let pitch = width * scale * 4 + gap;
            // As a part of a canvas is: without the gap of the last line, or with less room than there are lines.
            let rows = (height * scale).saturating_sub(missing);
            let mut target = vec![0xa5; (rows * pitch).saturating_sub(gap)];
            let source = Source { format, palette: &palette, width: u32::try_from(width).expect("small"), bytes: &bytes };
            Converter::default().draw(&source, u32::try_from(scale).expect("small"), &mut target, pitch);
            for y in 0..rows {
                for x in 0..width * scale {
                    let at = (y / scale * width + x / scale) * bpp;
                    prop_assert_eq!(
                        shown(&target, pitch, x, y),
                        reference(format, &palette, &bytes[at..at + bpp]),
                        "{:?} {} {}", format, x, y
                    );
                }
                let end = (y * pitch + width * scale * 4).min(target.len());
                let next = ((y + 1) * pitch).min(target.len());
                prop_assert!(target[end..next].iter().all(|byte| *byte == 0xa5));
            }
        }
    }

    #[test]
    fn a_pitch_that_is_too_small_draws_nothing() {
        let source = Source {
            format: PixelFormat::Rgb565,
            palette: &[0; 256],
            width: 2,
            bytes: &[1; 8],
        };
        let mut target = vec![7; 16];
        Converter::default().draw(&source, 1, &mut target, 7);
        assert_eq!(target, vec![7; 16]);
    }
}
