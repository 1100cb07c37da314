//! The thread that shows a screen on its output.
//!
//! It looks at the memory when a program has said or written something, and from time to time while anybody has the memory
//! mapped who may draw without saying so: at the refresh rate as long as something changes, and less and less often, down
//! to what fbdev's own deferred I/O takes, while nothing does. Where the hardware shows the memory as it is and needs no
//! telling, it looks at nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vidcompat_proto::Errno;
use vidcompat_proto::screen::View;

use super::convert::Converter;
use super::desk::{Desk, Seen, Turn};
use super::drawn::{Drawn, Look, rect};
use crate::backend::output::{Hidden, Output, Rect};

/// Between two looks where nothing changes: as drm_fbdev_shmem.c and others have it (HZ / 20).
const IDLE: Duration = Duration::from_millis(50);
/// How often a hidden screen asks whether it may be seen.
const RETRY: Duration = Duration::from_millis(300);
/// How often a shown one, that nobody draws on, asks whether it still is.
const WATCH: Duration = Duration::from_millis(500);

/// What the output shows of ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Direct { mode: usize, x: u32, y: u32 },
    Canvas { mode: usize, x: u32, y: u32 },
}

/// See the module.
pub(super) struct Presenter {
    desk: Arc<Desk>,
    output: Box<dyn Output>,
    /// Is the picture to stay when nobody is left?
    keep: Option<bool>,
    shown: Option<Shown>,
    /// The front and the back canvas; of direct memory only the first.
    drawn: [Drawn; 2],
    converter: Converter,
    /// The card has refused to show direct memory as it is: until that mode was set anew, all is drawn on canvases.
    refused: Option<u64>,
    /// The copy that readers have may differ from the memory.
    stale: bool,
    /// Could others write when the memory was looked at last?
    drawn_on: bool,
    /// When that copy may be brought up to date again.
    mirror_at: Instant,
    blank: u32,
    tick: Duration,
    /// When the memory was looked at last.
    last: Instant,
    /// What the operator was told of.
    told: Option<Errno>,
    /// The card has refused to show what was to be shown in the last step.
    pub(super) failed: Option<Errno>,
    /// For `vidcompat status`.
    seen: Seen,
}

impl Presenter {
    pub(super) fn new(desk: &Arc<Desk>, output: Box<dyn Output>, keep: Option<bool>) -> Self {
        Self {
            desk: Arc::clone(desk),
            output,
            keep,
            shown: None,
            drawn: [Drawn::default(), Drawn::default()],
            converter: Converter::default(),
            refused: None,
            stale: false,
            drawn_on: false,
            mirror_at: Instant::now(),
            blank: 0,
            tick: IDLE,
            last: Instant::now(),
            told: None,
            failed: None,
            seen: Seen::default(),
        }
    }

    /// Until the screen is no more.
    pub(super) fn run(mut self) {
        let mut next = None;
        loop {
            let earliest = self.last + self.period();
            let Some(turn) = self.desk.wait(earliest, next) else {
                break;
            };
            next = self.step(&turn).map(|wait| Instant::now() + wait);
            self.seen.shown = turn.wanted.then_some(self.shown.is_some());
            self.desk.settle(turn.said, &self.seen, self.failed);
        }
    }

    /// Shows what is to be seen now: when to look again, if nobody says anything.
    pub(super) fn step(&mut self, turn: &Turn) -> Option<Duration> {
        self.last = Instant::now();
        self.failed = None;
        // Asked before the memory is looked at: what the last one draws before it goes is seen.
        let drawn_on = turn.lent > 0 || self.desk.memory().others_may_write(self.output.holds_direct());
        let next = if turn.wanted {
            self.show(turn, drawn_on)
        } else {
            None
        };
        let mirrors = self.mirror(turn, drawn_on);
        next.into_iter().chain(mirrors).min()
    }

    /// Keeps what readers of direct memory have like it: when to do so again. It may take a tenth of the time.
    fn mirror(&mut self, turn: &Turn, drawn_on: bool) -> Option<Duration> {
        if turn.mirrors == 0 {
            return None;
        }
        // Who could draw before may have done so until he went.
        self.stale |= turn.touched || drawn_on || self.drawn_on;
        self.drawn_on = drawn_on;
        let mut now = Instant::now();
        if self.stale && now >= self.mirror_at {
            let begin = now;
            self.desk.memory().refresh_mirror();
            now = Instant::now();
            self.mirror_at = now + IDLE.max((now - begin) * 9);
            self.stale = false;
        }
        (self.stale || drawn_on).then(|| self.mirror_at.saturating_duration_since(now))
    }

    /// Shows it, or gives the screen back if nobody is left: when to look again.
    fn show(&mut self, turn: &Turn, drawn_on: bool) -> Option<Duration> {
        let presented = self.present(turn);
        if let Err(Hidden::Failed(error)) = presented {
            self.failed = Some(error);
        }
        if turn.files == 0 && !drawn_on {
            self.leave();
            return self.shown.map(|_| WATCH);
        }
        let next = match presented {
            Err(hidden) => {
                self.hide(hidden);
                RETRY
            }
            Ok(_) if !drawn_on || !self.is_watched() => WATCH,
            Ok(changed) => {
                self.tick = if changed {
                    self.period()
                } else {
                    (self.tick * 2).min(IDLE)
                };
                self.tick
            }
        };
        Some(next)
    }

    /// From one refresh to the next.
    fn period(&self) -> Duration {
        self.desk.vsync().period().clamp(Duration::from_millis(4), IDLE)
    }

    /// Has the memory to be looked at to see what changes?
    fn is_watched(&self) -> bool {
        !matches!(self.shown, Some(Shown::Direct { .. })) || self.output.needs_damage()
    }

    /// Whether anything has changed.
    fn present(&mut self, turn: &Turn) -> Result<bool, Hidden> {
        if turn.blank != self.blank {
            self.blank = turn.blank;
            self.output.blank(turn.blank)?;
        }
        if turn.blank != 0 {
            return Ok(false);
        }
        let view = &turn.view;
        let at_start = (view.x, view.y) == (0, 0);
        let as_it_is =
            view.direct && self.refused != Some(turn.mode_said) && (at_start || self.output.can_pan_direct());
        let shown = if as_it_is {
            match self.present_direct(turn) {
                Err(Hidden::Failed(error)) if is_about_memory(error) => {
                    tracing::warn!(
                        output = self.output.name(),
                        %error,
                        "the card does not show its own memory: what programs draw is copied"
                    );
                    self.refused = Some(turn.mode_said);
                    self.shown = None;
                    self.present_canvas(turn)
                }
                shown => shown,
            }
        } else {
            self.present_canvas(turn)
        };
        let changed = shown?;
        self.seen.hidden = None;
        self.seen.counters.frames += u64::from(!changed.is_empty());
        self.seen.counters.damages += u64::from(!changed.is_empty() && self.output.needs_damage());
        // Also with nothing to tell: this finds out whether we are still to be seen.
        if self.output.needs_damage() {
            self.output.damage(&changed)?;
        } else {
            self.output.damage(&[])?;
        }
        self.told = None;
        Ok(!changed.is_empty())
    }

    fn present_direct(&mut self, turn: &Turn) -> Result<Vec<Rect>, Hidden> {
        let view = &turn.view;
        let wanted = Shown::Direct {
            mode: view.fit.mode,
            x: view.x,
            y: view.y,
        };
        let look = Look::of(view, &turn.palette);
        let is_new = self.shown != Some(wanted);
        if is_new && self.output.needs_damage() {
            // The copy first: what is drawn after it is told of at the next look.
            self.drawn[0].forget();
            self.drawn[0].follow(self.desk.memory(), view, &look);
        }
        if is_new {
            self.output.show_direct(view.fit.mode, view.x, view.y)?;
            self.count(wanted);
            return Ok(Vec::new());
        }
        if !self.output.needs_damage() {
            return Ok(Vec::new());
        }
        let changed = self.drawn[0].follow(self.desk.memory(), view, &look);
        Ok(changed.iter().map(|lines| rect(view, lines)).collect())
    }

    fn present_canvas(&mut self, turn: &Turn) -> Result<Vec<Rect>, Hidden> {
        let view = &turn.view;
        let mode = view.fit.mode;
        let wanted = Shown::Canvas {
            mode,
            x: view.x,
            y: view.y,
        };
        match self.shown {
            Some(shown) if shown == wanted => self.draw(turn, false),
            Some(Shown::Canvas { mode: same, .. }) if same == mode => {
                self.draw(turn, true)?;
                self.output.flip(mode)?;
                self.drawn.swap(0, 1);
                self.count(wanted);
                Ok(Vec::new())
            }
            _ => {
                self.drawn.iter_mut().for_each(Drawn::forget);
                self.draw(turn, false)?;
                self.output.show_canvas(mode)?;
                self.count(wanted);
                Ok(Vec::new())
            }
        }
    }

    fn draw(&mut self, turn: &Turn, back: bool) -> Result<Vec<Rect>, Hidden> {
        let view: &View = &turn.view;
        let look = Look::of(view, &turn.palette);
        let mut canvas = self
            .output
            .canvas(view.fit.mode, back)
            .map_err(|error| match error {
                Errno::EBUSY => Hidden::Busy,
                error => Hidden::Failed(error),
            })?;
        let drawn = &mut self.drawn[usize::from(back)];
        Ok(drawn.draw(self.desk.memory(), view, &look, &mut self.converter, &mut canvas))
    }

    /// It is shown now, which it was not, or another part of it.
    fn count(&mut self, wanted: Shown) {
        self.seen.counters.frames += 1;
        self.seen.counters.pans += u64::from(self.shown.is_some());
        self.shown = Some(wanted);
    }

    fn hide(&mut self, hidden: Hidden) {
        self.shown = None;
        self.seen.hidden = Some(match hidden {
            Hidden::Busy => "somebody else has the card, or another terminal is active".to_owned(),
            Hidden::Failed(error) => format!("the card says {error}"),
        });
        if let Hidden::Failed(error) = hidden
            && self.told != Some(error)
        {
            self.told = Some(error);
            tracing::warn!(output = self.output.name(), %error, "a framebuffer cannot be shown, and is tried again");
        }
    }

    /// Nobody is left who could draw.
    fn leave(&mut self) {
        if self.shown.is_some() && self.keep.unwrap_or_else(|| !self.output.has_console()) {
            return;
        }
        // Before the screen is given back: who comes now is seen.
        if !self.desk.left() {
            return;
        }
        self.output.give_back();
        self.shown = None;
        self.blank = 0;
    }
}

/// Does a card say so of memory that it cannot show, where a canvas may do? Everything else has to do with the card.
fn is_about_memory(error: Errno) -> bool {
    matches!(
        error.raw(),
        libc::ENOMEM | libc::ENOSPC | libc::EINVAL | libc::ENODEV
    )
}

impl Drop for Presenter {
    fn drop(&mut self) {
        self.output.give_back();
    }
}
