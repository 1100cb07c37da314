//! What we hold of a card while it is open: framebuffers, canvases, and what its screen showed before.
//!
//! All of it goes when the card is closed; the kernel then brings the console back (drm_file.c, `drm_lastclose`), also when
//! this process is killed.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use drm::buffer::{self, DrmFourcc, DrmModifier, Handle, PlanarBuffer};
use drm::control::{ClipRect, Device as _, FbCmd2Flags, Mode, PageFlipFlags, connector, crtc, framebuffer};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vidcompat_proto::Errno;

use super::card::{Card, errno, hidden};
use super::choose::Choice;
use crate::backend::output::{Canvas, Direct, Hidden, Rect};
use crate::sys::DumbPixels;

/// How a driver is made to show another part of a framebuffer's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panning {
    /// By the plane's source position, as KMS has it.
    Source,
    /// By a framebuffer that begins there: bochs looks at `fb->offsets` and not at the source position (tiny/bochs.c,
    /// `bochs_plane_update`).
    Offset,
    /// Not at all: neither is looked at.
    None,
}

impl Panning {
    /// It cannot be found out by trying: the driver says yes and shows the first lines. So this is what the drivers of
    /// Linux 6.12 do.
    pub fn of(driver: &str) -> Self {
        match driver {
            "bochs-drm" => Panning::Offset,
            // hisilicon/hibmc/hibmc_drm_de.c, qxl/qxl_display.c, aspeed/aspeed_gfx_crtc.c, fsl-dcu/fsl_dcu_drm_plane.c, and
            // xen/xen_drm_front_kms.c, whose other side decides.
            "hibmc" | "qxl" | "aspeed-gfx-drm" | "fsl-dcu-drm" | "xendrm-du" => Panning::None,
            _ => Panning::Source,
        }
    }
}

/// What is shown, or to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Of the direct memory the part that begins there.
    Direct { mode: usize, x: u32, y: u32 },
    /// The front canvas.
    Canvas { mode: usize },
}

impl Shown {
    pub fn mode(self) -> usize {
        match self {
            Shown::Direct { mode, .. } | Shown::Canvas { mode } => mode,
        }
    }
}

/// What the CRTC showed before us.
#[derive(Debug)]
struct Before {
    framebuffer: Option<framebuffer::Handle>,
    position: (u32, u32),
    connectors: Vec<connector::Handle>,
    mode: Option<Mode>,
}

#[derive(Debug)]
struct Painted {
    pixels: DumbPixels,
    framebuffer: framebuffer::Handle,
}

/// Two canvases of one size. Which is the front one changes at each flip.
#[derive(Debug)]
struct Canvases {
    mode: usize,
    both: [Painted; 2],
    front: usize,
}

/// A piece of the direct memory as a framebuffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    offset: u32,
    size: (u32, u32),
    framebuffer: framebuffer::Handle,
}

/// See the module.
#[derive(Debug)]
pub struct Held {
    // First the mappings, which keep the file open, then the file.
    canvases: Option<Canvases>,
    // Canvases of an earlier mode, until the new one is shown.
    old: Vec<Painted>,
    direct: Option<Handle>,
    pieces: Vec<Piece>,
    before: Option<Before>,
    /// The framebuffer of ours that the CRTC was last made to show.
    ours: Option<framebuffer::Handle>,
    pub card: Arc<Card>,
}

impl Held {
    pub fn new(card: Card) -> Self {
        Self {
            canvases: None,
            old: Vec::new(),
            direct: None,
            pieces: Vec::new(),
            before: None,
            ours: None,
            card: Arc::new(card),
        }
    }

    /// Is a framebuffer of ours what the CRTC shows now?
    pub fn is_ours(&self, crtc: crtc::Handle) -> Result<bool, Hidden> {
        let shown = self.card.shown_on(crtc)?;
        Ok(shown.is_some() && shown == self.ours)
    }

    /// Shows it, whatever the CRTC shows now; what that is comes back with [`Held::restore`].
    pub fn show(
        &mut self,
        choice: &Choice,
        panning: Panning,
        direct: Option<&Direct>,
        wanted: Shown,
    ) -> Result<(), Hidden> {
        let mode = *choice
            .drm_modes
            .get(wanted.mode())
            .ok_or(Hidden::Failed(Errno::EINVAL))?;
        let size = (u32::from(mode.size().0), u32::from(mode.size().1));
        let (framebuffer, position) = match wanted {
            Shown::Direct { x, y, .. } => {
                let direct = direct.ok_or(Hidden::Failed(Errno::EINVAL))?;
                self.piece(choice, direct, panning, size, (x, y))
                    .map_err(Hidden::Failed)?
            }
            Shown::Canvas { mode } => {
                let canvases = self.canvases(choice, mode).map_err(Hidden::Failed)?;
                (canvases.both[canvases.front].framebuffer, (0, 0))
            }
        };
        if !self.is_ours(choice.crtc)? {
            self.before = Some(self.look(choice.crtc).map_err(|error| hidden(&error))?);
        }
        self.card.as_master(|card| {
            let set = || {
                card.set_crtc(
                    choice.crtc,
                    Some(framebuffer),
                    position,
                    &[choice.connector],
                    Some(mode),
                )
            };
            match set() {
                // The card's memory has no room for the old picture and the new one: first away with the old one.
                Err(error)
                    if self.ours.is_some()
                        && matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC)) =>
                {
                    card.set_crtc(choice.crtc, None, (0, 0), &[], None)?;
                    set()
                }
                done => done,
            }
        })?;
        self.ours = Some(framebuffer);
        if matches!(wanted, Shown::Direct { .. }) {
            self.old.extend(
                self.canvases
                    .take()
                    .map(|canvases| canvases.both)
                    .into_iter()
                    .flatten(),
            );
        }
        self.drop_unused();
        Ok(())
    }

    fn look(&self, crtc: crtc::Handle) -> io::Result<Before> {
        let now = self.card.get_crtc(crtc)?;
        let mut connectors = Vec::new();
        for &connector in self.card.resource_handles()?.connectors() {
            let encoder = self.card.get_connector(connector, false)?.current_encoder();
            let on = encoder.and_then(|encoder| self.card.get_encoder(encoder).ok()?.crtc());
            if on == Some(crtc) {
                connectors.push(connector);
            }
        }
        Ok(Before {
            framebuffer: now.framebuffer(),
            position: now.position(),
            connectors,
            mode: now.mode(),
        })
    }

    /// The framebuffer that shows this part of the direct memory, and the position in it.
    fn piece(
        &mut self,
        choice: &Choice,
        direct: &Direct,
        panning: Panning,
        size: (u32, u32),
        at: (u32, u32),
    ) -> Result<(framebuffer::Handle, (u32, u32)), Errno> {
        let width = direct.pitch / 4;
        let fits = |at: u32, size: u32, all: u32| at.checked_add(size).is_some_and(|end| end <= all);
        // The memory may have more lines than a framebuffer: it is made for larger modes that are converted out of it.
        let lines = match panning {
            Panning::Offset => direct.lines,
            Panning::Source | Panning::None => direct.lines.min(choice.most_lines),
        };
        if !fits(at.0, size.0, width)
            || !fits(at.1, size.1, lines)
            || (panning == Panning::None && at != (0, 0))
        {
            return Err(Errno::EINVAL);
        }
        let (offset, size, position) = match panning {
            Panning::Offset => (at.1 * direct.pitch + at.0 * 4, size, (0, 0)),
            Panning::Source | Panning::None => (0, (width, lines), at),
        };
        let is_it = |piece: &&Piece| piece.offset == offset && piece.size == size;
        if let Some(piece) = self.pieces.iter().find(is_it) {
            return Ok((piece.framebuffer, position));
        }
        let handle = match self.direct {
            Some(handle) => handle,
            None => {
                let imported = self.card.prime_fd_to_buffer(direct.dma_buf.as_fd());
                imported.map_err(|error| errno(&error))?
            }
        };
        self.direct = Some(handle);
        let framebuffer = self.framebuffer(handle, direct.pitch, offset, size)?;
        self.pieces.push(Piece {
            offset,
            size,
            framebuffer,
        });
        Ok((framebuffer, position))
    }

    fn framebuffer(
        &self,
        handle: Handle,
        pitch: u32,
        offset: u32,
        size: (u32, u32),
    ) -> Result<framebuffer::Handle, Errno> {
        let part = Part {
            handle,
            pitch,
            offset,
            size,
        };
        let added = self.card.add_planar_framebuffer(&part, FbCmd2Flags::empty());
        added.map_err(|error| errno(&error))
    }

    /// A canvas to draw on.
    pub fn canvas(&mut self, choice: &Choice, mode: usize, back: bool) -> Result<Canvas<'_>, Errno> {
        let size = choice.drm_modes.get(mode).ok_or(Errno::EINVAL)?.size();
        let canvases = self.canvases(choice, mode)?;
        let pixels = &mut canvases.both[if back { 1 - canvases.front } else { canvases.front }].pixels;
        Ok(Canvas {
            pitch: usize::try_from(pixels.pitch()).map_err(|_| Errno::ENOMEM)?,
            bytes: pixels.bytes(),
            width: u32::from(size.0),
            height: u32::from(size.1),
        })
    }

    fn canvases(&mut self, choice: &Choice, mode: usize) -> Result<&mut Canvases, Errno> {
        if self
            .canvases
            .as_ref()
            .is_none_or(|canvases| canvases.mode != mode)
        {
            let drm_mode = choice.drm_modes.get(mode).ok_or(Errno::EINVAL)?;
            let size = (u32::from(drm_mode.size().0), u32::from(drm_mode.size().1));
            let first = self.paint(size)?;
            let both = match self.paint(size) {
                Ok(second) => [first, second],
                Err(error) => {
                    let _ = self.card.destroy_framebuffer(first.framebuffer);
                    let _ = self.card.close_buffer(first.pixels.handle());
                    return Err(error);
                }
            };
            let new = Canvases { mode, both, front: 0 };
            self.old.extend(
                self.canvases
                    .replace(new)
                    .map(|canvases| canvases.both)
                    .into_iter()
                    .flatten(),
            );
            self.drop_unused();
        }
        self.canvases.as_mut().ok_or(Errno::ENOMEM)
    }

    fn paint(&self, size: (u32, u32)) -> Result<Painted, Errno> {
        let pixels = DumbPixels::new(self.card.as_ref(), size.0, size.1).map_err(|error| errno(&error))?;
        let framebuffer = self.framebuffer(pixels.handle(), pixels.pitch(), 0, size);
        match framebuffer {
            Ok(framebuffer) => Ok(Painted { pixels, framebuffer }),
            Err(error) => {
                let _ = self.card.close_buffer(pixels.handle());
                Err(error)
            }
        }
    }

    /// Shows the back canvas, and waits until it is shown, at most `patience`.
    pub fn flip(&mut self, choice: &Choice, patience: Duration) -> Result<(), Hidden> {
        let canvases = self.canvases.as_mut().ok_or(Hidden::Failed(Errno::EINVAL))?;
        let back = canvases.both[1 - canvases.front].framebuffer;
        while self.card.receive_events().is_ok() {}
        let flipped = self
            .card
            .as_master(|card| card.page_flip(choice.crtc, back, PageFlipFlags::EVENT, None));
        match flipped {
            Ok(()) => wait_for_event(&self.card, patience),
            Err(Hidden::Busy) => return Err(Hidden::Busy),
            // The driver cannot flip, or not now: a mode set shows it as well.
            Err(Hidden::Failed(_)) => {
                let mode = choice.drm_modes.get(canvases.mode).copied();
                self.card.as_master(|card| {
                    card.set_crtc(choice.crtc, Some(back), (0, 0), &[choice.connector], mode)
                })?;
            }
        }
        canvases.front = 1 - canvases.front;
        self.ours = Some(back);
        Ok(())
    }

    /// Tells the hardware of what was changed. `false`: it does not want to know.
    pub fn damage(&self, rects: &[Rect], at: (u32, u32)) -> Result<bool, Hidden> {
        let Some(framebuffer) = self.ours else {
            return Ok(true);
        };
        let clips = clips(rects, at);
        let told = self
            .card
            .as_master(|card| card.dirty_framebuffer(framebuffer, &clips));
        match told {
            Ok(()) => Ok(true),
            Err(Hidden::Failed(error)) if matches!(error.raw(), libc::ENOSYS | libc::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `DRM_MODE_DPMS_*`
    pub fn dpms(&self, choice: &Choice, level: u64) -> Result<(), Hidden> {
        let property = choice.dpms.ok_or(Hidden::Failed(Errno::EINVAL))?;
        self.card
            .as_master(|card| card.set_property(choice.connector, property, level))
    }

    /// `DRM_MODE_DPMS_*` as it is now.
    pub fn dpms_now(&self, choice: &Choice) -> Option<u64> {
        let all = self.card.get_properties(choice.connector).ok()?;
        let mut all = all.iter();
        all.find_map(|(property, value)| (Some(*property) == choice.dpms).then_some(*value))
    }

    /// Shows again what was shown before us, if it is ours that is shown.
    pub fn restore(&mut self, choice: &Choice) {
        if !matches!(self.is_ours(choice.crtc), Ok(true)) {
            return;
        }
        let Some(before) = self.before.take() else { return };
        let restored = self.card.as_master(|card| {
            card.set_crtc(
                choice.crtc,
                before.framebuffer.filter(|_| before.mode.is_some()),
                before.position,
                &before.connectors,
                before.mode,
            )
        });
        if let Err(error) = restored {
            // Closing the card brings the console back where nobody else has it open.
            tracing::warn!(?error, "what the screen showed before could not be shown again");
        }
    }

    /// Somebody else's picture is on the screen: what we show, if ever again, is drawn anew.
    pub fn forget_pictures(&mut self) {
        self.old.extend(
            self.canvases
                .take()
                .map(|canvases| canvases.both)
                .into_iter()
                .flatten(),
        );
        self.ours = None;
        self.drop_unused();
        for piece in std::mem::take(&mut self.pieces) {
            let _ = self.card.destroy_framebuffer(piece.framebuffer);
        }
    }

    /// Is the front canvas what the CRTC was last made to show?
    pub fn shows_front(&self) -> bool {
        let front = |canvases: &Canvases| canvases.both[canvases.front].framebuffer;
        self.ours.is_some() && self.canvases.as_ref().map(front) == self.ours
    }

    /// A framebuffer that is removed while it is shown takes the picture with it, so only others are.
    fn drop_unused(&mut self) {
        let ours = self.ours;
        for painted in std::mem::take(&mut self.old) {
            if Some(painted.framebuffer) == ours {
                self.old.push(painted);
            } else {
                let _ = self.card.destroy_framebuffer(painted.framebuffer);
                let _ = self.card.close_buffer(painted.pixels.handle());
            }
        }
        // A few are kept, for programs that pan between the same places.
        while self.pieces.len() > 4 && Some(self.pieces[0].framebuffer) != ours {
            let _ = self.card.destroy_framebuffer(self.pieces.remove(0).framebuffer);
        }
        if self.pieces.len() > 4 {
            self.pieces.rotate_left(1);
        }
    }
}

/// What the kernel is told: never more rectangles than it takes, and never none, which the `drm` crate would pass with a
/// pointer and the kernel refuse.
fn clips(rects: &[Rect], at: (u32, u32)) -> Vec<ClipRect> {
    /// `DRM_MODE_FB_DIRTY_MAX_CLIPS`
    const MOST: usize = 256;
    let end = |at: u32, from: u32, size: u32| {
        let end = at.saturating_add(from).saturating_add(size);
        u16::try_from(end).unwrap_or(u16::MAX)
    };
    let clip = |rect: &Rect| {
        let x2 = end(at.0, rect.x, rect.width);
        let y2 = end(at.1, rect.y, rect.height);
        ClipRect::new(end(at.0, rect.x, 0), end(at.1, rect.y, 0), x2, y2)
    };
    let around = |all: ClipRect, one: ClipRect| {
        let (x1, y1) = (all.x1().min(one.x1()), all.y1().min(one.y1()));
        ClipRect::new(x1, y1, all.x2().max(one.x2()), all.y2().max(one.y2()))
    };
    if (1..=MOST).contains(&rects.len()) {
        return rects.iter().map(clip).collect();
    }
    let all = rects.iter().map(clip).reduce(around);
    vec![all.unwrap_or_else(|| ClipRect::new(0, 0, 1, 1))]
}

fn wait_for_event(card: &Card, patience: Duration) {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut polled = [PollFd::new(card.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        if !matches!(
            poll(&mut polled, timeout),
            Ok(1..) | Err(nix::errno::Errno::EINTR)
        ) || left.is_zero()
        {
            return;
        }
        if card
            .receive_events()
            .is_ok_and(|mut events| events.next().is_some())
        {
            return;
        }
    }
}

/// A part of a buffer, for a framebuffer.
struct Part {
    handle: Handle,
    pitch: u32,
    offset: u32,
    size: (u32, u32),
}

impl PlanarBuffer for Part {
    fn size(&self) -> (u32, u32) {
        self.size
    }

    fn format(&self) -> DrmFourcc {
        DrmFourcc::Xrgb8888
    }

    fn modifier(&self) -> Option<DrmModifier> {
        None
    }

    fn pitches(&self) -> [u32; 4] {
        [self.pitch, 0, 0, 0]
    }

    fn handles(&self) -> [Option<buffer::Handle>; 4] {
        [Some(self.handle), None, None, None]
    }

    fn offsets(&self) -> [u32; 4] {
        [self.offset, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
        Rect { x, y, width, height }
    }

    fn corners(clips: &[ClipRect]) -> Vec<(u16, u16, u16, u16)> {
        clips
            .iter()
            .map(|clip| (clip.x1(), clip.y1(), clip.x2(), clip.y2()))
            .collect()
    }

    #[test]
    fn damage_is_told_where_it_is_in_the_framebuffer() {
        let told = clips(&[rect(1, 2, 3, 4), rect(0, 0, 1, 1)], (10, 800));
        assert_eq!(corners(&told), [(11, 802, 14, 806), (10, 800, 11, 801)]);
    }

    #[test]
    fn no_damage_is_the_smallest_that_can_be_told() {
        assert_eq!(corners(&clips(&[], (5, 5))), [(0, 0, 1, 1)]);
    }

    #[test]
    fn more_rectangles_than_the_kernel_takes_become_one_around_them() {
        let many: Vec<Rect> = (0..300).map(|y| rect(y, y * 2, 4, 1)).collect();
        assert_eq!(corners(&clips(&many, (0, 0))), [(0, 0, 303, 599)]);
        assert_eq!(clips(&many[..256], (0, 0)).len(), 256);
    }

    #[test]
    fn a_rectangle_too_far_away_ends_at_the_edge_of_the_format() {
        let told = clips(&[rect(u32::MAX, 7, u32::MAX, 70_000)], (u32::MAX, 0));
        assert_eq!(corners(&told), [(u16::MAX, 7, u16::MAX, u16::MAX)]);
    }

    #[test]
    fn bochs_is_panned_by_framebuffers_and_others_by_the_source_position() {
        assert_eq!(Panning::of("bochs-drm"), Panning::Offset);
        assert_eq!(Panning::of("virtio_gpu"), Panning::Source);
        assert_eq!(Panning::of("hibmc"), Panning::None);
    }
}
