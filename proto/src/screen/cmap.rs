//! The colour map (fbcmap.c; drm_fb_helper_setcmap): 256 entries of 16 bits, which are the picture's colours in 8-bit
//! modes only.

use crate::Errno;
use crate::abi::fb::ColorMap;
use crate::fourcc::PixelFormat;

/// Entries of the map.
const ENTRIES: usize = 256;
/// Entries that can be set where pixels have their own colours: a console's.
const PSEUDO_ENTRIES: usize = 16;

/// default_16_colors of fbcmap.c.
const RED: [u16; PSEUDO_ENTRIES] = [
    0, 0, 0, 0, 0xaaaa, 0xaaaa, 0xaaaa, 0xaaaa, 0x5555, 0x5555, 0x5555, 0x5555, 0xffff, 0xffff, 0xffff,
    0xffff,
];
const GREEN: [u16; PSEUDO_ENTRIES] = [
    0, 0, 0xaaaa, 0xaaaa, 0, 0, 0x5555, 0xaaaa, 0x5555, 0x5555, 0xffff, 0xffff, 0x5555, 0x5555, 0xffff,
    0xffff,
];
const BLUE: [u16; PSEUDO_ENTRIES] = [
    0, 0xaaaa, 0, 0xaaaa, 0, 0xaaaa, 0, 0xaaaa, 0x5555, 0xffff, 0x5555, 0xffff, 0x5555, 0xffff, 0x5555,
    0xffff,
];

/// Red, green, blue of each entry.
#[derive(Clone, Debug)]
pub struct Palette([[u16; 3]; ENTRIES]);

impl Palette {
    /// As the kernel makes it (fb_alloc_cmap): the colours of a console, the rest black.
    pub(super) fn new() -> Self {
        let mut map = [[0; 3]; ENTRIES];
        for (at, entry) in map.iter_mut().take(PSEUDO_ENTRIES).enumerate() {
            *entry = [RED[at], GREEN[at], BLUE[at]];
        }
        Self(map)
    }

    pub(super) fn get(&self, map: &mut ColorMap) -> Result<(), Errno> {
        let start = usize::try_from(map.start).map_err(|_| Errno::EINVAL)?;
        let count = map.red.len().min(ENTRIES.saturating_sub(start));
        if count == 0 {
            return Err(Errno::EINVAL);
        }
        let entries = &self.0[start..start + count];
        map.red = entries.iter().map(|entry| entry[0]).collect();
        map.green = entries.iter().map(|entry| entry[1]).collect();
        map.blue = entries.iter().map(|entry| entry[2]).collect();
        map.transp = None;
        Ok(())
    }

    pub(super) fn put(&mut self, map: &ColorMap, format: PixelFormat) -> Result<(), Errno> {
        let count = map.red.len();
        // fb_alloc_cmap finds nothing to copy into an empty map.
        if count == 0 || map.green.len() != count || map.blue.len() != count {
            return Err(Errno::EINVAL);
        }
        let room = if format == PixelFormat::C8 {
            ENTRIES
        } else {
            PSEUDO_ENTRIES
        };
        let start = usize::try_from(map.start).map_err(|_| Errno::EINVAL)?;
        let end = start.checked_add(count).ok_or(Errno::EINVAL)?;
        if end > room {
            return Err(Errno::EINVAL);
        }
        for (at, entry) in self.0[start..end].iter_mut().enumerate() {
            *entry = [map.red[at], map.green[at], map.blue[at]];
        }
        Ok(())
    }

    /// As `DRM_FORMAT_XRGB8888`: of 16 bits the upper eight are shown.
    pub(super) fn colours(&self) -> [u32; ENTRIES] {
        self.0.map(|entry| {
            let [red, green, blue] = entry.map(|colour| u32::from(colour >> 8));
            red << 16 | green << 8 | blue
        })
    }
}
