//! Which connector, CRTC and modes of a card are used, and modes in fbdev's terms.

use std::io;
use std::ops::{Bound, RangeBounds as _};

use drm::control::{
    Device as _, Mode as DrmMode, ModeFlags, ModeTypeFlags, ResourceHandles, connector, crtc, property,
};
use vidcompat_proto::screen::{ModeTiming, ScreenMode};

use super::KmsError;
use super::card::Card;

/// `FB_SYNC_*` and `FB_VMODE_*` (uapi/linux/fb.h).
const FB_SYNC_HOR_HIGH_ACT: u32 = 1;
const FB_SYNC_VERT_HIGH_ACT: u32 = 2;
const FB_SYNC_COMP_HIGH_ACT: u32 = 8;
const FB_VMODE_INTERLACED: u32 = 1;
const FB_VMODE_DOUBLE: u32 = 2;

/// What was chosen. The numbers are the card's, not one open file's.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Where the monitor is.
    pub connector: connector::Handle,
    /// As people call it: `HDMI-A-1`.
    pub connector_name: String,
    /// What drives it.
    pub crtc: crtc::Handle,
    /// Which of the card's it is, counted from 0: vertical blanks are waited for by that.
    pub pipe: u32,
    /// The connector's property for blanking.
    pub dpms: Option<property::Handle>,
    /// What can be shown, the best first, as the card has it.
    pub drm_modes: Vec<DrmMode>,
    /// The same, as fbdev has it.
    pub modes: Vec<ScreenMode>,
    /// Lines that a framebuffer may have.
    pub most_lines: u32,
    /// Millimetres.
    pub size_mm: Option<(u32, u32)>,
}

/// The connector called `name`, or the first one with a monitor, and what it needs. To be called as master where that is
/// possible: only then is a connector probed that nobody has looked at before.
pub fn choose(card: &Card, path: &str, name: Option<&str>) -> Result<Choice, KmsError> {
    let resources = card
        .resource_handles()
        .map_err(|error| match error.raw_os_error() {
            // A render node refuses, and so does a driver without outputs (drm_ioctl.c).
            Some(libc::EACCES | libc::EOPNOTSUPP | libc::EINVAL) => KmsError::NotPrimary(path.to_owned()),
            Some(libc::ENOTTY) => KmsError::NoCard(path.to_owned()),
            _ => KmsError::Card(path.to_owned(), error),
        })?;
    let failed = |error: io::Error| KmsError::Card(path.to_owned(), error);
    let mut known = Vec::new();
    let mut chosen = None;
    for &handle in resources.connectors() {
        let mut info = card.get_connector(handle, false).map_err(failed)?;
        if info.modes().is_empty() && info.state() != connector::State::Disconnected {
            info = card.get_connector(handle, true).map_err(failed)?;
        }
        let called = info.to_string();
        let wanted = name.map_or(info.state() == connector::State::Connected, |name| name == called);
        if wanted && !info.modes().is_empty() {
            chosen = Some((called, info));
            break;
        }
        known.push(called);
    }
    let (connector_name, info) = chosen.ok_or_else(|| match name {
        Some(name) => KmsError::NoConnector(path.to_owned(), name.to_owned(), known.join(", ")),
        None => KmsError::NothingConnected(path.to_owned(), known.join(", ")),
    })?;
    let crtc = crtc_for(card, &resources, &info)
        .ok_or_else(|| KmsError::NoCrtc(path.to_owned(), connector_name.clone()))?;
    let pipe = resources.crtcs().iter().position(|one| *one == crtc).unwrap_or(0);
    let drm_modes = usable_modes(info.modes());
    Ok(Choice {
        connector: info.handle(),
        connector_name,
        crtc,
        pipe: u32::try_from(pipe).unwrap_or(0),
        dpms: property_called(card, info.handle(), "DPMS"),
        modes: drm_modes.iter().map(mode).collect(),
        drm_modes,
        most_lines: most_lines(&resources),
        size_mm: info.size(),
    })
}

fn most_lines(resources: &ResourceHandles) -> u32 {
    match resources.supported_fb_height().end_bound() {
        Bound::Included(most) => *most,
        Bound::Excluded(_) | Bound::Unbounded => u32::MAX,
    }
}

/// The one it is on, else one that shows nothing, else any that can.
fn crtc_for(card: &Card, resources: &ResourceHandles, connector: &connector::Info) -> Option<crtc::Handle> {
    let current = (connector.current_encoder())
        .and_then(|encoder| card.get_encoder(encoder).ok())
        .and_then(|encoder| encoder.crtc());
    if current.is_some() {
        return current;
    }
    let mut able = Vec::new();
    for &encoder in connector.encoders() {
        if let Ok(encoder) = card.get_encoder(encoder) {
            able.extend(resources.filter_crtcs(encoder.possible_crtcs()));
        }
    }
    let is_idle = |crtc: &&crtc::Handle| card.shown_on(**crtc).is_ok_and(|shown| shown.is_none());
    able.iter().find(is_idle).or(able.first()).copied()
}

fn property_called(card: &Card, connector: connector::Handle, name: &str) -> Option<property::Handle> {
    let properties = card.get_properties(connector).ok()?;
    let (handles, _) = properties.as_props_and_values();
    let is_called = |handle: &property::Handle| {
        (card.get_property(*handle)).is_ok_and(|property| property.name().to_bytes() == name.as_bytes())
    };
    handles.iter().copied().find(is_called)
}

/// Each size once, in its best form: what the monitor prefers comes first, whole pictures before interlaced ones, then the
/// order of the card, which is by size and refresh rate (drm_modes.c, `drm_mode_compare`).
fn usable_modes(modes: &[DrmMode]) -> Vec<DrmMode> {
    let mut sorted = modes.to_vec();
    sorted.sort_by_key(|mode| {
        let preferred = mode.mode_type().contains(ModeTypeFlags::PREFERRED);
        let plain = !mode.flags().intersects(ModeFlags::INTERLACE | ModeFlags::DBLSCAN);
        (!(preferred && plain), !plain)
    });
    let mut usable: Vec<DrmMode> = Vec::new();
    for mode in sorted {
        if mode.size().0 > 0 && mode.size().1 > 0 && usable.iter().all(|known| known.size() != mode.size()) {
            usable.push(mode);
        }
    }
    usable
}

/// A mode as fbdev has it (drivers/video/fbdev/core/modedb.c, drivers/video/of_videomode.c: the margins are what lies
/// between the picture and the pulse).
fn mode(drm: &DrmMode) -> ScreenMode {
    let (width, height) = drm.size();
    let (hsync_start, hsync_end, htotal) = drm.hsync();
    let (vsync_start, vsync_end, vtotal) = drm.vsync();
    let flags = drm.flags();
    let bit = |flag, value| if flags.contains(flag) { value } else { 0 };
    let gap = |from: u16, to: u16| u32::from(to.saturating_sub(from));
    ScreenMode {
        width: u32::from(width),
        height: u32::from(height),
        refresh_mhz: refresh_mhz(drm),
        timing: ModeTiming {
            // KHZ2PICOS
            pixclock: 1_000_000_000_u32.checked_div(drm.clock()).unwrap_or(0),
            left_margin: gap(hsync_end, htotal),
            right_margin: gap(width, hsync_start),
            upper_margin: gap(vsync_end, vtotal),
            lower_margin: gap(height, vsync_start),
            hsync_len: gap(hsync_start, hsync_end),
            vsync_len: gap(vsync_start, vsync_end),
            sync: bit(ModeFlags::PHSYNC, FB_SYNC_HOR_HIGH_ACT)
                | bit(ModeFlags::PVSYNC, FB_SYNC_VERT_HIGH_ACT)
                | bit(ModeFlags::PCSYNC, FB_SYNC_COMP_HIGH_ACT),
            vmode: bit(ModeFlags::INTERLACE, FB_VMODE_INTERLACED) | bit(ModeFlags::DBLSCAN, FB_VMODE_DOUBLE),
        },
    }
}

/// Pictures in 1000 seconds, computed as `drm_mode_vrefresh` does (drm_modes.c); 60 a second where the clock is unknown.
fn refresh_mhz(mode: &DrmMode) -> u32 {
    let (.., htotal) = mode.hsync();
    let (.., vtotal) = mode.vsync();
    let mut rate = u64::from(mode.clock()) * 1_000_000;
    let mut pixels = u64::from(htotal) * u64::from(vtotal);
    if mode.flags().contains(ModeFlags::INTERLACE) {
        rate *= 2;
    }
    if mode.flags().contains(ModeFlags::DBLSCAN) {
        pixels *= 2;
    }
    if mode.vscan() > 1 {
        pixels *= u64::from(mode.vscan());
    }
    match rate.checked_div(pixels).map(u32::try_from) {
        Some(Ok(rate)) if rate > 0 => rate,
        _ => 60_000,
    }
}

#[cfg(test)]
mod tests {
    use drm_ffi::drm_mode_modeinfo as Raw;

    use super::*;

    const PREFERRED: u32 = 8;
    const INTERLACE: u32 = 0x10;

    /// CEA-861 video format 16: 1920x1080 at 60 Hz, both pulses positive.
    fn full_hd() -> Raw {
        Raw {
            clock: 148_500,
            hdisplay: 1920,
            hsync_start: 2008,
            hsync_end: 2052,
            htotal: 2200,
            vdisplay: 1080,
            vsync_start: 1084,
            vsync_end: 1089,
            vtotal: 1125,
            flags: 5,
            ..Raw::default()
        }
    }

    fn of_size(hdisplay: u16, vdisplay: u16) -> Raw {
        Raw {
            hdisplay,
            vdisplay,
            ..full_hd()
        }
    }

    #[test]
    fn a_mode_has_the_timing_that_fbset_would_print() {
        let mode = mode(&full_hd().into());
        assert_eq!((mode.width, mode.height, mode.refresh_mhz), (1920, 1080, 60_000));
        let expected = ModeTiming {
            pixclock: 6734,
            left_margin: 148,
            right_margin: 88,
            upper_margin: 36,
            lower_margin: 4,
            hsync_len: 44,
            vsync_len: 5,
            sync: FB_SYNC_HOR_HIGH_ACT | FB_SYNC_VERT_HIGH_ACT,
            vmode: 0,
        };
        assert_eq!(mode.timing, expected);
        // What lies in a line and in a picture is all of it.
        let timing = mode.timing;
        let line = mode.width + timing.left_margin + timing.right_margin + timing.hsync_len;
        let lines = mode.height + timing.upper_margin + timing.lower_margin + timing.vsync_len;
        assert_eq!((line, lines), (2200, 1125));
    }

    #[test]
    fn half_pictures_come_twice_as_often() {
        let interlaced = Raw {
            clock: 74_250,
            flags: 5 | INTERLACE,
            ..full_hd()
        };
        let mode = mode(&interlaced.into());
        assert_eq!(mode.refresh_mhz, 60_000);
        assert_eq!(mode.timing.vmode, FB_VMODE_INTERLACED);
    }

    #[test]
    fn a_mode_without_timing_is_taken_for_60_pictures_a_second() {
        let bare = Raw {
            hdisplay: 640,
            vdisplay: 480,
            ..Raw::default()
        };
        let mode = mode(&bare.into());
        assert_eq!(mode.refresh_mhz, 60_000);
        assert_eq!(mode.timing, ModeTiming::default());
    }

    #[test]
    fn the_preferred_mode_comes_first_and_each_size_once() {
        let modes = [
            of_size(3840, 2160),
            Raw {
                flags: 5 | INTERLACE,
                ..of_size(1920, 1080)
            },
            of_size(1920, 1080),
            Raw {
                clock: 60_000,
                ..of_size(1920, 1080)
            },
            Raw {
                type_: PREFERRED,
                ..of_size(1280, 800)
            },
            of_size(1280, 800),
            of_size(0, 0),
            of_size(640, 480),
        ];
        let usable = usable_modes(&modes.map(DrmMode::from));
        let sizes: Vec<(u16, u16)> = usable.iter().map(DrmMode::size).collect();
        assert_eq!(sizes, [(1280, 800), (3840, 2160), (1920, 1080), (640, 480)]);
        assert!(!usable[2].flags().contains(ModeFlags::INTERLACE));
        assert_eq!(usable[2].clock(), 148_500);
    }
}
