//! A graphics card's screen by KMS, for framebuffers of our own.
//!
//! Whose turn it is: ours is the virtual terminal that was active when a program first drew, and there the screen is taken
//! from a console, never from another master. While another terminal is active, somebody else is master, or the CRTC shows
//! another picture than ours, we are hidden and hold next to nothing. The legacy calls (SETCRTC, PAGE_FLIP, DIRTYFB) do all
//! that is needed, on atomic drivers, too.
//!
//! What Linux 6.1 and 6.12 do, seen on virtio-gpu and bochs with the console on them:
//! - A CRTC keeps our framebuffer after DROP_MASTER, whatever the console prints: that goes to the console's own.
//! - A switch of the terminal, and the console going dark or being woken, show the console's framebuffer at once: GETCRTC
//!   tells another `fb_id`. While the console is dark, the connector's DPMS property is not on, and we leave it so.
//! - Another master's mode set is seen by GETCRTC as well.
//! - When our process is killed and nobody else has the card open, the console is shown (drm_lastclose). Where somebody has
//!   (logind, say), by the source, the screen is off until the terminal is switched; so it is given back by a mode set
//!   wherever we end in order, and the card is closed while another terminal is active.
//! - Neither driver counts vertical blanks (there is no drm_vblank_init in them), and a flip's event comes at once.

mod card;
mod choose;
mod held;
mod turn;
mod vsync;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use drm::buffer::{Buffer as _, DrmFourcc};
use drm::control::Device as _;
use drm::{Device as _, DriverCapability};
use vidcompat_proto::Errno;
use vidcompat_proto::screen::ScreenMode;

use super::output::{Canvas, Direct, Hidden, Output, Rect, Vsync};
use crate::sys::{CpuUse, Mapping, is_in_graphics_mode, prime_export};
use card::{Card, errno};
use choose::Choice;
use held::{Held, Panning, Shown};
use vsync::Blanks;

/// How long a terminal in graphics mode is left to a compositor that may want it.
const SETTLED: Duration = Duration::from_secs(1);
/// How often a hidden output looks whether its turn has come.
const LOOK: Duration = Duration::from_millis(250);
/// The same where our picture is still to be seen and only cannot be changed.
const GLANCE: Duration = Duration::from_millis(20);
/// How often a shown one looks whether its turn has ended.
const WATCH: Duration = Duration::from_millis(100);

/// Why a card cannot be used. Each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum KmsError {
    /// It cannot be opened, or does not answer.
    #[error("{0}: {1}")]
    Card(String, #[source] io::Error),
    /// Not a DRM node at all.
    #[error("{0} is no graphics card: give a primary node, /dev/dri/cardN")]
    NoCard(String),
    /// A render node, or a card without outputs.
    #[error(
        "{0} has no screens to show anything on: give the primary node, /dev/dri/cardN, of a card that has"
    )]
    NotPrimary(String),
    /// `DRM_CAP_DUMB_BUFFER`
    #[error("{0}: its driver, {1}, has no dumb buffers, so nothing can be drawn for it by CPU")]
    NoDumbBuffers(String, String),
    /// No monitor.
    #[error("{0}: no monitor is connected to any of its connectors ({1})")]
    NothingConnected(String, String),
    /// The one that was asked for.
    #[error("{0}: there is no monitor on a connector called {1}; its connectors are {2}")]
    NoConnector(String, String, String),
    /// Nothing in the card can drive it.
    #[error("{0}: no CRTC can drive the connector {1}")]
    NoCrtc(String, String),
}

struct OpenError(KmsError);

impl From<KmsError> for OpenError {
    fn from(error: KmsError) -> Self {
        Self(error)
    }
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        // The path is put in where it is known.
        Self(KmsError::Card(String::new(), error))
    }
}

/// A screen of the card at `path` (a primary node, /dev/dri/cardN): the connector of that name, such as `HDMI-A-1`, or the
/// first one with a monitor. Shows nothing yet.
///
/// # Errors
/// See [`KmsError`].
pub fn open(path: &Path, connector: Option<&str>) -> Result<Box<dyn Output>, KmsError> {
    let called = path.display().to_string();
    let opened = Card::open(path, |card| -> Result<_, OpenError> {
        let driver = card.get_driver().map_err(|error| match error.raw_os_error() {
            Some(libc::ENOTTY) => KmsError::NoCard(called.clone()),
            _ => KmsError::Card(called.clone(), error),
        })?;
        let driver = driver.name().to_string_lossy().into_owned();
        let choice = choose::choose(card, &called, connector)?;
        if !matches!(card.get_driver_capability(DriverCapability::DumbBuffer), Ok(1..)) {
            return Err(KmsError::NoDumbBuffers(called.clone(), driver).into());
        }
        Ok((driver, choice))
    });
    let (card, (driver, choice)) = opened.map_err(|OpenError(error)| match error {
        KmsError::Card(_, error) => KmsError::Card(called.clone(), error),
        error => error,
    })?;
    drop(card);
    let minor = minor(path).map_err(|error| KmsError::Card(called, error))?;
    tracing::info!(
        card = %path.display(),
        driver,
        connector = choice.connector_name,
        modes = choice.modes.len(),
        "a screen to show framebuffers on"
    );
    Ok(Box::new(Kms::new(path, minor, driver, choice)))
}

/// The numbers of the fbdev framebuffers, `/dev/fbN`, that the card at `path` has of its own.
///
/// # Errors
/// There is no such node.
pub fn framebuffers_of(path: &Path) -> io::Result<Vec<u32>> {
    Ok(turn::framebuffers_of(minor(path)?))
}

fn minor(path: &Path) -> io::Result<u32> {
    let device = std::fs::metadata(path)?.rdev();
    u32::try_from(nix::sys::stat::minor(device)).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// See the module.
#[derive(Debug)]
struct Kms {
    path: PathBuf,
    minor: u32,
    driver: String,
    choice: Choice,
    panning: Panning,
    direct: Option<Direct>,
    /// The opened card that the direct memory was given to, and that holds it until it is closed.
    importer: Weak<Card>,
    vsync: Arc<Blanks>,
    /// While the card is open.
    held: Option<Held>,
    /// The virtual terminal that is ours, from the first picture until the screen is given back.
    home: Option<String>,
    /// Another one that is active, since when, and whether we have tried to be shown there.
    abroad: Option<(String, Instant, bool)>,
    /// What is shown. `None` while hidden.
    shown: Option<Shown>,
    /// When to look again whether it is our turn, or still is.
    look: Option<Instant>,
    /// `FB_BLANK_*`
    blank: u32,
    needs_damage: bool,
}

impl Kms {
    fn new(path: &Path, minor: u32, driver: String, choice: Choice) -> Self {
        let refresh = choice.modes.first().map_or(60_000, |mode| mode.refresh_mhz);
        Self {
            path: path.to_owned(),
            minor,
            panning: Panning::of(&driver),
            driver,
            direct: None,
            importer: Weak::new(),
            vsync: Arc::new(Blanks::new(choice.pipe, refresh)),
            choice,
            held: None,
            home: None,
            abroad: None,
            shown: None,
            look: None,
            blank: 0,
            needs_damage: true,
        }
    }

    fn is_too_early(&self) -> bool {
        self.look.is_some_and(|look| Instant::now() < look)
    }

    /// Is the terminal ours? If none is yet, the active one would be.
    ///
    /// A program may take another terminal after it has mapped the framebuffer (SDL 1.2 does), and puts that into graphics
    /// mode. So does a compositor, which becomes the card's master at once: so a terminal in graphics mode is tried once, after
    /// some time, and if nobody is master then, it is ours from then on.
    fn is_home(&mut self) -> bool {
        let active = turn::active_terminal();
        if self.home.is_none() || active == self.home {
            self.abroad = None;
            return true;
        }
        let Some(active) = active else { return false };
        match &mut self.abroad {
            Some((name, since, tried)) if *name == active => {
                let may = !*tried && since.elapsed() >= SETTLED && is_in_graphics_mode();
                *tried |= may;
                may
            }
            abroad => {
                *abroad = Some((active, Instant::now(), false));
                false
            }
        }
    }

    /// The card, opened if it is not.
    fn hold(&mut self) -> Result<&mut Held, Hidden> {
        if self.held.is_none() {
            let opened = Card::open(&self.path, |_| Ok::<(), io::Error>(()));
            let (card, ()) = opened.map_err(|error| Hidden::Failed(errno(&error)))?;
            self.held = Some(Held::new(card));
        }
        self.held.as_mut().ok_or(Hidden::Failed(Errno::EIO))
    }

    /// Nothing of ours can be seen any more, or yet: lets go of what is not needed, and says so.
    fn hide(&mut self, why: Hidden) -> Hidden {
        if self.shown.take().is_some() {
            tracing::debug!(card = %self.path.display(), ?why, "hidden");
        }
        let mut again = LOOK;
        self.vsync.set_card(Weak::new());
        if let Some(held) = &mut self.held {
            if self.home.is_some() && turn::active_terminal() != self.home {
                // The console may have missed its turn, if it came while we were master. A compositor wants to be master in
                // this moment, and shows what it has by itself.
                if !is_in_graphics_mode() {
                    held.restore(&self.choice);
                }
                self.held = None;
            } else if why != Hidden::Busy {
                // Else closing the card would switch the screen off where somebody else has it open.
                held.restore(&self.choice);
                self.held = None;
            } else if matches!(held.is_ours(self.choice.crtc), Ok(true)) {
                // Somebody has opened the card, and is its master until he drops that or closes it.
                again = GLANCE;
            } else if held.card.as_master(|_| Ok(())).is_ok() {
                // Nobody else is, and it is the console's picture: closing the card would wake a dark one.
                held.forget_pictures();
            } else {
                // Who has opened the card beside a master could never become one, and would keep the console from coming
                // back when that master goes (drm_auth.c, `drm_master_check_perm`; drm_file.c, `drm_release`).
                self.held = None;
            }
        }
        self.look = Some(Instant::now() + again);
        why
    }

    /// Finds out, from time to time, whether what we show is still to be seen.
    fn watch(&mut self) -> Result<(), Hidden> {
        // Before each act: whoever has the terminal now may want to be master in this moment.
        if self.shown.is_some() && !self.is_home() {
            return Err(self.hide(Hidden::Busy));
        }
        if self.is_too_early() {
            return if self.shown.is_some() {
                Ok(())
            } else {
                Err(Hidden::Busy)
            };
        }
        let is_ours = match &self.held {
            Some(held) if self.shown.is_some() => held.is_ours(self.choice.crtc),
            _ => Ok(false),
        };
        match is_ours {
            Ok(true) => {
                self.look = Some(Instant::now() + WATCH);
                Ok(())
            }
            Ok(false) => Err(self.hide(Hidden::Busy)),
            Err(why) => Err(self.hide(why)),
        }
    }

    fn show(&mut self, wanted: Shown) -> Result<(), Hidden> {
        if self.shown.is_some() {
            self.watch()?;
            let is_there = match wanted {
                Shown::Direct { .. } => true,
                // Its canvases may be new ones, after a mode that the card has refused.
                Shown::Canvas { .. } => self.held.as_ref().is_some_and(Held::shows_front),
            };
            if self.shown == Some(wanted) && is_there {
                return Ok(());
            }
        } else if self.is_too_early() {
            return Err(Hidden::Busy);
        }
        match self.take(wanted) {
            // The card refuses this; what is shown is shown.
            Err(Hidden::Failed(error)) if self.shown.is_some() => Err(Hidden::Failed(error)),
            taken => taken.map_err(|why| self.hide(why)),
        }
    }

    fn take(&mut self, wanted: Shown) -> Result<(), Hidden> {
        if !self.is_home() {
            return Err(Hidden::Busy);
        }
        self.hold()?;
        let has_console = self.has_console();
        let held = self.held.as_mut().ok_or(Hidden::Failed(Errno::EIO))?;
        let is_new = self.shown.is_none();
        // A console that has switched the monitor off wakes up by itself, and real framebuffers stay dark until then, too.
        if is_new && has_console && !held.is_ours(self.choice.crtc)? {
            let has_picture = held.card.shown_on(self.choice.crtc)?.is_some();
            if has_picture && held.dpms_now(&self.choice).is_some_and(|level| level != 0) {
                return Err(Hidden::Busy);
            }
        }
        if self.blank == 0 || is_new {
            let shown = held.show(&self.choice, self.panning, self.direct.as_ref(), wanted);
            if matches!(wanted, Shown::Direct { .. }) && !matches!(shown, Err(Hidden::Failed(_))) {
                self.importer = Arc::downgrade(&held.card);
            }
            shown?;
            if self.blank != 0 {
                held.dpms(&self.choice, dpms(self.blank))?;
            }
        }
        if is_new {
            self.needs_damage = held.damage(&[], (0, 0))?;
            tracing::debug!(card = %self.path.display(), ?wanted, damage = self.needs_damage, "shown");
        }
        self.shown = Some(wanted);
        self.vsync.set_card(Arc::downgrade(&held.card));
        if let Some(mode) = self.choice.modes.get(wanted.mode()) {
            self.vsync.set_refresh(mode.refresh_mhz);
        }
        self.home = turn::active_terminal();
        self.look = Some(Instant::now() + WATCH);
        Ok(())
    }
}

/// As drm_fb_helper.c does (`drm_fb_helper_blank`).
fn dpms(level: u32) -> u64 {
    match level {
        0 => 0,
        // FB_BLANK_NORMAL, FB_BLANK_VSYNC_SUSPEND and so on, up to FB_BLANK_POWERDOWN
        1 | 3 => 1,
        2 => 2,
        _ => 3,
    }
}

impl Output for Kms {
    fn name(&self) -> &str {
        &self.driver
    }

    fn modes(&self) -> &[ScreenMode] {
        &self.choice.modes
    }

    fn size_mm(&self) -> Option<(u32, u32)> {
        self.choice.size_mm
    }

    fn direct(&mut self, mode: usize, lines: u32) -> Result<Direct, Errno> {
        let width = self.choice.modes.get(mode).ok_or(Errno::EINVAL)?.width;
        // None of this needs a master, which somebody else may want to be.
        let (card, ()) =
            Card::open(&self.path, |_| Ok::<(), io::Error>(())).map_err(|error| errno(&error))?;
        let make = |card: &Card| -> io::Result<Direct> {
            let buffer = card.create_dumb_buffer((width, lines), DrmFourcc::Xrgb8888, 32)?;
            let dma_buf = prime_export(card, buffer.handle().into())?;
            let size = u64::from(buffer.pitch()) * u64::from(lines);
            // Some drivers export what cannot be mapped, or not written.
            let len = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
            Mapping::shared(&dma_buf, 0, len, CpuUse::Write)?.clear()?;
            Ok(Direct {
                dma_buf: Arc::new(dma_buf),
                pitch: buffer.pitch(),
                lines,
                size,
            })
        };
        let direct = make(&card).map_err(|error| errno(&error))?;
        self.direct = Some(direct.clone());
        Ok(direct)
    }

    fn can_pan_direct(&self) -> bool {
        self.panning != Panning::None
    }

    fn holds_direct(&self) -> bool {
        self.importer.strong_count() > 0
    }

    fn has_console(&self) -> bool {
        turn::has_console(self.minor)
    }

    fn show_direct(&mut self, mode: usize, x: u32, y: u32) -> Result<(), Hidden> {
        self.show(Shown::Direct { mode, x, y })
    }

    fn show_canvas(&mut self, mode: usize) -> Result<(), Hidden> {
        self.show(Shown::Canvas { mode })
    }

    fn canvas(&mut self, mode: usize, back: bool) -> Result<Canvas<'_>, Errno> {
        if self.shown.is_none() && (self.is_too_early() || !self.is_home()) {
            return Err(Errno::EBUSY);
        }
        if let Err(why) = self.hold() {
            self.hide(why);
        }
        let held = self.held.as_mut().ok_or(Errno::EBUSY)?;
        held.canvas(&self.choice, mode, back)
    }

    fn flip(&mut self, mode: usize) -> Result<(), Hidden> {
        self.watch()?;
        if self.shown != Some(Shown::Canvas { mode }) {
            return Err(Hidden::Failed(Errno::EINVAL));
        }
        let patience = self.vsync.period() * 4;
        let Some(held) = &mut self.held else {
            return Err(Hidden::Busy);
        };
        let flipped = held.flip(&self.choice, patience.max(Duration::from_millis(50)));
        flipped.map_err(|why| self.hide(why))
    }

    fn needs_damage(&self) -> bool {
        self.needs_damage
    }

    fn damage(&mut self, rects: &[Rect]) -> Result<(), Hidden> {
        self.watch()?;
        if rects.is_empty() || !self.needs_damage {
            return Ok(());
        }
        let at = match self.shown {
            Some(Shown::Direct { x, y, .. }) if self.panning == Panning::Source => (x, y),
            _ => (0, 0),
        };
        let Some(held) = &self.held else {
            return Err(Hidden::Busy);
        };
        match held.damage(rects, at) {
            Ok(wants) => {
                self.needs_damage = wants;
                Ok(())
            }
            Err(why) => Err(self.hide(why)),
        }
    }

    fn blank(&mut self, level: u32) -> Result<(), Hidden> {
        if level > 4 {
            return Err(Hidden::Failed(Errno::EINVAL));
        }
        let was = std::mem::replace(&mut self.blank, level);
        let Some(shown) = self.shown else {
            return Ok(());
        };
        self.watch()?;
        let done = match (&mut self.held, level) {
            (None, _) => Err(Hidden::Busy),
            // What was shown while it was dark is shown now; a mode set switches the monitor on, but not with every driver.
            (Some(held), 0) if was != 0 => held
                .show(&self.choice, self.panning, self.direct.as_ref(), shown)
                .and_then(|()| held.dpms(&self.choice, 0)),
            // A monitor that cannot be switched off shows what it shows.
            (Some(held), level) => return held.dpms(&self.choice, dpms(level)),
        };
        done.map_err(|why| self.hide(why))
    }

    fn give_back(&mut self) {
        self.vsync.set_card(Weak::new());
        if let Some(held) = &mut self.held {
            held.restore(&self.choice);
        }
        self.held = None;
        self.home = None;
        self.abroad = None;
        self.shown = None;
        self.look = None;
        self.blank = 0;
    }

    fn vsync(&self) -> Arc<dyn Vsync> {
        self.vsync.clone()
    }
}

impl Drop for Kms {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn blanking_is_what_fbdev_drivers_of_cards_make_of_it() {
        assert_eq!([0, 1, 2, 3, 4].map(dpms), [0, 1, 2, 1, 3]);
    }

    #[test]
    fn what_is_no_card_is_refused_with_a_sentence() {
        let said = |path| {
            open(Path::new(path), None)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        let no_card = "/dev/null is no graphics card: give a primary node, /dev/dri/cardN";
        assert_eq!(said("/dev/null"), Err(no_card.to_owned()));
        let missing = "/nowhere/card0: No such file or directory (os error 2)";
        assert_eq!(said("/nowhere/card0"), Err(missing.to_owned()));
    }
}
