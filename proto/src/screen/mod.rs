//! The rules of a framebuffer of our own, as fbdev has them (fbmem.c, and what drivers do in its place): which modes there
//! are, what a program's wish becomes, what is shown of the memory. Pure state: whoever uses it has the memory and the
//! hardware, and shows [`Rules::view`] after each call that succeeds.
//!
//! Where drivers differ, the answer is that of the kernel's own framebuffer on KMS (drm_fb_helper.c), except that modes,
//! depths and virtual sizes can be changed, for which `vfb.c` is the model.

mod check;
mod cmap;
mod modes;
#[cfg(test)]
mod tests;

pub use cmap::Palette;
pub use modes::{Fit, ModeTiming, ScreenMode};

use crate::Errno;
use crate::abi::fb::{BLANK_POWERDOWN, ColorMap, FixScreenInfo, VarScreenInfo};
use crate::fourcc::PixelFormat;

/// `FB_VISUAL_TRUECOLOR`
const VISUAL_TRUECOLOR: u32 = 2;
/// `FB_VISUAL_PSEUDOCOLOR`
const VISUAL_PSEUDOCOLOR: u32 = 3;
/// `FB_VMODE_YWRAP`
const VMODE_YWRAP: u32 = 256;

/// Bits of `activate`.
mod activate {
    pub const NOW: u32 = 0;
    pub const MASK: u32 = 15;
    pub const FORCE: u32 = 128;
    pub const INV_MODE: u32 = 256;
    pub const KD_TEXT: u32 = 512;
}

/// What a framebuffer stands on. Does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// For `fb_fix_screeninfo::id`; what is longer than 15 bytes is cut.
    pub id: String,
    /// What can be shown, the best first; never empty.
    pub modes: Vec<ScreenMode>,
    /// Bytes of memory.
    pub memory: u32,
    /// Bytes from one line to the next that hardware shows as it is, where the memory is such: of lines as wide as
    /// `modes[0]`.
    pub direct_pitch: Option<u32>,
    /// Of the picture, where known.
    pub size_mm: Option<(u32, u32)>,
}

/// What of the memory is to be seen, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Of the memory.
    pub format: PixelFormat,
    /// Bytes from one line to the next.
    pub line_length: u32,
    /// Pixels that are shown.
    pub width: u32,
    /// Lines that are shown.
    pub height: u32,
    /// Pixels left of them.
    pub x: u32,
    /// Lines above them.
    pub y: u32,
    /// Where on the hardware.
    pub fit: Fit,
    /// The hardware can show it as it is, from direct memory.
    pub direct: bool,
}

impl View {
    /// Byte of the memory at which line `line` of what is shown begins.
    #[must_use]
    pub fn line_start(&self, line: u32) -> u64 {
        u64::from(self.y + line) * u64::from(self.line_length)
            + u64::from(self.x) * u64::from(self.format.bytes_per_pixel())
    }

    /// Bytes of a line that are shown.
    #[must_use]
    pub fn line_bytes(&self) -> u32 {
        self.width * self.format.bytes_per_pixel()
    }
}

/// What `FBIOPUT_VSCREENINFO` has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Nothing: it was a question, or all is as before.
    Nothing,
    /// The mode was set, if only again.
    Set,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Rules {
    hardware: Hardware,
    var: VarScreenInfo,
    fit: Fit,
    palette: Palette,
    blank: u32,
}

impl Rules {
    /// A framebuffer that begins with `size` (`None`: the best mode) and so many bits per pixel.
    ///
    /// # Errors
    /// `EINVAL`: no mode can show that, or the memory is too small for it.
    pub fn new(hardware: Hardware, size: Option<(u32, u32)>, depth: u32) -> Result<Self, Errno> {
        let best = hardware.modes.first().ok_or(Errno::EINVAL)?;
        let (width, height) = size.unwrap_or((best.width, best.height));
        let mut rules = Self {
            var: VarScreenInfo::default(),
            fit: Fit::default(),
            palette: Palette::new(),
            blank: 0,
            hardware,
        };
        let mut var = VarScreenInfo {
            xres: width,
            yres: height,
            bits_per_pixel: depth,
            ..VarScreenInfo::default()
        };
        rules.fbioput_vscreeninfo(&mut var)?;
        Ok(rules)
    }

    /// Pixels and lines of the hardware's mode.
    #[must_use]
    pub fn shown_size(&self) -> (u32, u32) {
        let mode = self.hardware.modes.get(self.fit.mode);
        mode.map_or((0, 0), |mode| (mode.width, mode.height))
    }

    /// `FBIOGET_VSCREENINFO`
    #[must_use]
    pub fn fbioget_vscreeninfo(&self) -> VarScreenInfo {
        self.var
    }

    /// `FBIOPUT_VSCREENINFO`, in the order of fb_set_var (fbmem.c).
    ///
    /// # Errors
    /// `EINVAL`; then `var` does not go back to the program.
    pub fn fbioput_vscreeninfo(&mut self, var: &mut VarScreenInfo) -> Result<Put, Errno> {
        // For the kernel itself only (do_fb_ioctl).
        var.activate &= !activate::KD_TEXT;
        if var.activate & activate::INV_MODE != 0 {
            // A mode is taken out of the list that no ioctl shows; the current one cannot be.
            return if check::same_mode(var, &self.var) {
                Err(Errno::EINVAL)
            } else {
                Ok(Put::Nothing)
            };
        }
        if var.activate & activate::FORCE == 0 && *var == self.var {
            return Ok(Put::Nothing);
        }
        let fit = check::check_var(var, &self.hardware)?;
        if var.activate & activate::MASK != activate::NOW {
            return Ok(Put::Nothing);
        }
        self.var = *var;
        self.fit = fit;
        Ok(Put::Set)
    }

    /// `FBIOGET_FSCREENINFO`
    #[must_use]
    pub fn fbioget_fscreeninfo(&self) -> FixScreenInfo {
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().take(15).zip(self.hardware.id.bytes()) {
            *to = from;
        }
        FixScreenInfo {
            id,
            smem_len: self.hardware.memory,
            visual: if self.format() == PixelFormat::C8 {
                VISUAL_PSEUDOCOLOR
            } else {
                VISUAL_TRUECOLOR
            },
            xpanstep: 1,
            ypanstep: 1,
            line_length: self.line_length(),
            ..FixScreenInfo::default()
        }
    }

    /// `FBIOPAN_DISPLAY` (fb_pan_display): only the offsets and whether to wrap are looked at.
    ///
    /// # Errors
    /// `EINVAL`: that lies outside of the virtual screen, or would wrap.
    pub fn fbiopan_display(&mut self, var: &VarScreenInfo) -> Result<(), Errno> {
        // ywrapstep is 0.
        if var.yoffset > 0 && var.vmode & VMODE_YWRAP != 0 {
            return Err(Errno::EINVAL);
        }
        if var.yoffset > self.var.yres_virtual - self.var.yres
            || var.xoffset > self.var.xres_virtual - self.var.xres
        {
            return Err(Errno::EINVAL);
        }
        self.var.xoffset = var.xoffset;
        self.var.yoffset = var.yoffset;
        self.var.vmode = self.var.vmode & !VMODE_YWRAP | var.vmode & VMODE_YWRAP;
        Ok(())
    }

    /// `FBIOGETCMAP` (fb_cmap_to_user): `map` is as long afterwards as what is written to the program, and has no alpha.
    ///
    /// # Errors
    /// `EINVAL`: nothing of it is in the map.
    pub fn fbiogetcmap(&self, map: &mut ColorMap) -> Result<(), Errno> {
        self.palette.get(map)
    }

    /// `FBIOPUTCMAP` (fb_set_user_cmap, drm_fb_helper_setcmap).
    ///
    /// # Errors
    /// `EINVAL`: it is empty, or has entries that a visual has not: 16 where the palette is no picture's, else 256.
    pub fn fbioputcmap(&mut self, map: &ColorMap) -> Result<(), Errno> {
        self.palette.put(map, self.format())
    }

    /// `FBIOBLANK`
    ///
    /// # Errors
    /// `EINVAL`: there is no such level.
    pub fn fbioblank(&mut self, level: u32) -> Result<(), Errno> {
        if level > BLANK_POWERDOWN {
            return Err(Errno::EINVAL);
        }
        self.blank = level;
        Ok(())
    }

    /// `FB_BLANK_*`
    #[must_use]
    pub fn blank(&self) -> u32 {
        self.blank
    }

    /// The colours of 8-bit pixels, as `DRM_FORMAT_XRGB8888`.
    #[must_use]
    pub fn palette(&self) -> [u32; 256] {
        self.palette.colours()
    }

    /// What is to be seen.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            format: self.format(),
            line_length: self.line_length(),
            width: self.var.xres,
            height: self.var.yres,
            x: self.var.xoffset,
            y: self.var.yoffset,
            fit: self.fit,
            direct: check::direct_pitch(&self.var, &self.hardware).is_some() && self.fit.is_whole(),
        }
    }

    fn format(&self) -> PixelFormat {
        PixelFormat::of_var(&self.var).unwrap_or(PixelFormat::Xrgb8888)
    }

    fn line_length(&self) -> u32 {
        check::line_length(&self.var, &self.hardware)
    }
}
