//! What a wish for a mode becomes (`fb_check_var`).

use super::{Fit, Hardware, ScreenMode};
use crate::Errno;
use crate::abi::fb::VarScreenInfo;
use crate::fourcc::PixelFormat;

/// Makes of `var` what the framebuffer can be, and says where on the hardware that goes. `var` may be anything.
pub(super) fn check_var(var: &mut VarScreenInfo, hardware: &Hardware) -> Result<Fit, Errno> {
    // fb_set_var, before it asks the driver.
    if var.xres < 8 || var.yres < 8 {
        return Err(Errno::EINVAL);
    }
    if var.xres.checked_mul(var.yres).is_none() || var.xres_virtual.checked_mul(var.yres_virtual).is_none() {
        return Err(Errno::EINVAL);
    }
    let format = PixelFormat::wished(var).ok_or(Errno::EINVAL)?;
    let fit = Fit::find(&hardware.modes, var.xres, var.yres, refresh_mhz(var)).ok_or(Errno::EINVAL)?;
    let mode = hardware.modes.get(fit.mode).ok_or(Errno::EINVAL)?;
    let new = VarScreenInfo {
        xres: var.xres,
        yres: var.yres,
        // Made larger where it is too small, as vfb_check_var does: programs ask for an offset and forget the size.
        xres_virtual: at_least(var.xres_virtual, var.xoffset, var.xres)?,
        yres_virtual: at_least(var.yres_virtual, var.yoffset, var.yres)?,
        xoffset: var.xoffset,
        yoffset: var.yoffset,
        activate: var.activate,
        height: hardware.size_mm.map_or(u32::MAX, |(_, height)| height),
        width: hardware.size_mm.map_or(u32::MAX, |(width, _)| width),
        ..VarScreenInfo::default()
    };
    let mut new = with_timing(new, mode);
    format.describe(&mut new);
    let lines = u64::from(line_length_wide(&new, hardware)?) * u64::from(new.yres_virtual);
    if lines > u64::from(hardware.memory) {
        return Err(Errno::EINVAL);
    }
    // Neither grey nor a fourcc, nor a format that nobody has described (drm_fb_helper_check_var).
    if var.grayscale > 0 || var.nonstd != 0 {
        return Err(Errno::EINVAL);
    }
    *var = new;
    Ok(fit)
}

fn at_least(asked: u32, offset: u32, shown: u32) -> Result<u32, Errno> {
    let needed = offset.checked_add(shown).ok_or(Errno::EINVAL)?;
    Ok(asked.max(needed))
}

fn with_timing(var: VarScreenInfo, mode: &ScreenMode) -> VarScreenInfo {
    let timing = mode.timing_for(var.xres, var.yres);
    VarScreenInfo {
        pixclock: timing.pixclock,
        left_margin: timing.left_margin,
        right_margin: timing.right_margin,
        upper_margin: timing.upper_margin,
        lower_margin: timing.lower_margin,
        hsync_len: timing.hsync_len,
        vsync_len: timing.vsync_len,
        sync: timing.sync,
        vmode: timing.vmode,
        ..var
    }
}

/// Pictures in 1000 seconds that the timing of `var` asks for, if it says so.
fn refresh_mhz(var: &VarScreenInfo) -> Option<u32> {
    let sum = |parts: [u32; 4]| parts.into_iter().map(u128::from).sum::<u128>();
    let total = sum([var.xres, var.left_margin, var.right_margin, var.hsync_len])
        * sum([var.yres, var.upper_margin, var.lower_margin, var.vsync_len]);
    let refresh = 1_000_000_000_000_000u128.checked_div(total * u128::from(var.pixclock))?;
    u32::try_from(refresh).ok()
}

/// Bytes from one line to the next. `var` is one that was checked.
pub(super) fn line_length(var: &VarScreenInfo, hardware: &Hardware) -> u32 {
    line_length_wide(var, hardware).unwrap_or_default()
}

fn line_length_wide(var: &VarScreenInfo, hardware: &Hardware) -> Result<u32, Errno> {
    if let Some(pitch) = direct_pitch(var, hardware) {
        return Ok(pitch);
    }
    // Whole 32-bit words, as vfb.c has it.
    let bits = u64::from(var.xres_virtual) * u64::from(var.bits_per_pixel);
    u32::try_from(bits.next_multiple_of(32) / 8).map_err(|_| Errno::EINVAL)
}

/// Bytes from one line to the next of memory that the hardware shows as it is, where `var` asks for just that.
pub(super) fn direct_pitch(var: &VarScreenInfo, hardware: &Hardware) -> Option<u32> {
    let pitch = hardware.direct_pitch?;
    let width = hardware.modes.first()?.width;
    let format = PixelFormat::of_var(var)?;
    (format.is_shown_as_it_is() && var.xres_virtual == width).then_some(pitch)
}

/// Do they describe the same mode (fb_var_to_videomode, fb_mode_is_equal)?
pub(super) fn same_mode(one: &VarScreenInfo, other: &VarScreenInfo) -> bool {
    let mode = |var: &VarScreenInfo| {
        [
            var.xres,
            var.yres,
            var.pixclock,
            var.left_margin,
            var.right_margin,
            var.upper_margin,
            var.lower_margin,
            var.hsync_len,
            var.vsync_len,
            var.sync,
            // FB_VMODE_MASK
            var.vmode & 255,
        ]
    };
    mode(one) == mode(other)
}
