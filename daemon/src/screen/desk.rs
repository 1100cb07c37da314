//! What a screen is at this moment: where its open files, the presenter and `resolve` meet.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vidcompat_proto::Errno;
use vidcompat_proto::screen::{Rules, View};

use super::convert::{Converter, SHOWN, Source};
use super::memory::Memory;
use crate::backend::framebuffer::{Picture, ScreenMemory};
use crate::backend::output::Vsync;
use crate::observe::model::FbCounters;
use crate::sys::CpuUse;

/// See the module.
pub(super) struct Desk {
    memory: Memory,
    vsync: Arc<dyn Vsync>,
    /// Is there an output, and so a presenter?
    presented: bool,
    state: Mutex<State>,
    wake: Condvar,
    settled: Condvar,
}

/// What changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) rules: Rules,
    /// Open files of the node.
    pub(super) files: usize,
    /// Of those, how many have mapped a copy that follows the memory.
    pub(super) mirrors: usize,
    /// Of those, how many have mapped the memory where that cannot be asked of the kernel.
    pub(super) lent: usize,
    /// A program has drawn, or said what is to be shown: the screen is to be ours.
    pub(super) wanted: bool,
    /// Counts what programs say of what is to be shown.
    pub(super) said: u64,
    /// Up to where the presenter has followed.
    pub(super) done: u64,
    /// What the card said if it refused that.
    pub(super) failed: Option<Errno>,
    /// Of what was said, the last mode.
    pub(super) mode_said: u64,
    /// The memory was changed, as far as anybody has told.
    pub(super) touched: bool,
    pub(super) stop: bool,
    /// What the presenter has to tell.
    pub(super) seen: Seen,
}

/// What became of it on the output.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// `None`: no program has drawn, or the last one has gone.
    pub(super) shown: Option<bool>,
    /// Why it is not.
    pub(super) hidden: Option<String>,
    pub(super) counters: FbCounters,
}

/// What a presenter has to know to show a screen once.
pub(super) struct Turn {
    pub(super) view: View,
    pub(super) palette: [u32; 256],
    pub(super) blank: u32,
    pub(super) files: usize,
    pub(super) mirrors: usize,
    pub(super) lent: usize,
    pub(super) wanted: bool,
    pub(super) said: u64,
    pub(super) mode_said: u64,
    pub(super) touched: bool,
}

impl State {
    pub(super) fn turn(&mut self) -> Turn {
        Turn {
            view: self.rules.view(),
            palette: self.rules.palette(),
            blank: self.rules.blank(),
            files: self.files,
            mirrors: self.mirrors,
            lent: self.lent,
            wanted: self.wanted,
            said: self.said,
            mode_said: self.mode_said,
            touched: std::mem::take(&mut self.touched),
        }
    }
}

impl Desk {
    /// # Errors
    /// There is not as much memory as `rules` show of it.
    pub(super) fn new(
        memory: Memory,
        rules: Rules,
        vsync: Arc<dyn Vsync>,
        presented: bool,
    ) -> io::Result<Self> {
        let desk = Self {
            memory,
            vsync,
            presented,
            state: Mutex::new(State {
                rules,
                files: 0,
                mirrors: 0,
                lent: 0,
                wanted: false,
                said: 0,
                done: 0,
                failed: None,
                mode_said: 0,
                touched: false,
                stop: false,
                seen: Seen::default(),
            }),
            wake: Condvar::new(),
            settled: Condvar::new(),
        };
        let reserved = desk.reserve(&desk.state().rules);
        reserved.map_err(|error| io::Error::from_raw_os_error(error.raw()))?;
        Ok(desk)
    }

    pub(super) fn is_presented(&self) -> bool {
        self.presented
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Makes sure that there is memory for the mode that `rules` have.
    ///
    /// # Errors
    /// `ENOMEM`
    pub(super) fn reserve(&self, rules: &Rules) -> Result<(), Errno> {
        let line = rules.fbioget_fscreeninfo().line_length;
        let lines = rules.fbioget_vscreeninfo().yres_virtual;
        self.memory.reserve(u64::from(line) * u64::from(lines))
    }

    pub(super) fn vsync(&self) -> &dyn Vsync {
        &*self.vsync
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the memory were changed.
    pub(super) fn touch(&self) {
        if self.presented {
            let mut state = self.state();
            state.wanted = true;
            state.touched = true;
            self.wake.notify_all();
        }
    }

    /// A file has come or gone, or has mapped something.
    pub(super) fn count(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.touched = true;
        self.wake.notify_all();
    }

    /// A program says what is to be shown. If `act` says that it was, this waits until it is to be seen, or nobody can see
    /// it, or `most` is over: a program may draw over what was shown before.
    pub(super) fn say<T>(
        &self,
        most: Duration,
        act: impl FnOnce(&mut State) -> Result<(T, bool), Errno>,
    ) -> Result<T, Errno> {
        let mut state = self.state();
        let (answer, said) = act(&mut state)?;
        if !said || !self.presented || !state.wanted {
            return Ok(answer);
        }
        state.said += 1;
        let said = state.said;
        self.wake.notify_all();
        let until = Instant::now() + most;
        while state.done < said && !state.stop {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                break;
            };
            let waited = self.settled.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(answer)
    }

    /// As [`Desk::say`] of a mode. Where the card refuses it, the rules are again what they were before.
    ///
    /// # Errors
    /// What `act` or the card says. That it is not our turn on the card is no error: it is shown later.
    pub(super) fn say_mode(
        &self,
        most: Duration,
        act: impl FnOnce(&mut State) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let said = self.say(most, |state| {
            let before = state.rules.clone();
            let set = act(state).inspect_err(|_| state.rules = before.clone())?;
            if set {
                // As `say` is going to count it.
                state.mode_said = state.said + 1;
            }
            Ok((set.then_some((state.mode_said, before)), set))
        })?;
        let Some((said, before)) = said else {
            return Ok(());
        };
        let mut state = self.state();
        // Another mode has been set since, or has not been tried yet.
        if state.mode_said != said || state.done < said {
            return Ok(());
        }
        let Some(error) = state.failed.take() else {
            return Ok(());
        };
        state.rules = before;
        state.said += 1;
        self.wake.notify_all();
        Err(error)
    }

    /// The presenter waits until there is something to do, at most until `deadline`, but does nothing before `earliest`
    /// about memory that was changed. `None`: it is to end.
    pub(super) fn wait(&self, earliest: Instant, deadline: Option<Instant>) -> Option<Turn> {
        let mut state = self.state();
        loop {
            if state.stop {
                return None;
            }
            if state.said != state.done {
                return Some(state.turn());
            }
            let until = match (state.touched, deadline) {
                (true, Some(deadline)) => Some(earliest.min(deadline)),
                (true, None) => Some(earliest),
                (false, deadline) => deadline,
            };
            let Some(until) = until else {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(state.turn());
            }
            let waited = self.wake.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Nobody is left: the next program finds a screen that is on. `false`: somebody has come, and may have drawn.
    pub(super) fn left(&self) -> bool {
        let mut state = self.state();
        if state.files > 0 || state.touched {
            return false;
        }
        state.wanted = false;
        // Never refused.
        let _ = state.rules.fbioblank(0);
        true
    }

    /// The presenter has followed up to `said`, or the card has refused that.
    pub(super) fn settle(&self, said: u64, seen: &Seen, failed: Option<Errno>) {
        let mut state = self.state();
        state.failed = failed;
        state.done = said;
        state.seen = seen.clone();
        drop(state);
        self.settled.notify_all();
    }

    /// The presenter is to end.
    pub(super) fn stop(&self) {
        self.state().stop = true;
        self.wake.notify_all();
        self.settled.notify_all();
    }

    /// What is to be seen, in the program's own size; black where that is blanked.
    pub(super) fn picture(&self) -> Picture {
        let (view, palette, blank) = {
            let state = self.state();
            (state.rules.view(), state.rules.palette(), state.rules.blank())
        };
        let (width, height) = (bytes(view.width), bytes(view.height));
        let mut rgb = vec![0; width * height * 3];
        if blank == 0 {
            let mut shown = vec![0; width * height * SHOWN];
            let packed = self.visible(&view);
            let source = Source {
                format: view.format,
                palette: &palette,
                width: view.width,
                bytes: &packed,
            };
            Converter::default().draw(&source, 1, &mut shown, width * SHOWN);
            for (from, to) in shown.chunks_exact(SHOWN).zip(rgb.chunks_exact_mut(3)) {
                to.copy_from_slice(&[from[2], from[1], from[0]]);
            }
        }
        Picture {
            width: view.width,
            height: view.height,
            rgb,
        }
    }

    /// The bytes of what is shown, without gaps.
    fn visible(&self, view: &View) -> Vec<u8> {
        let line = bytes(view.line_bytes());
        let mut packed = vec![0; line * bytes(view.height)];
        self.memory.start(CpuUse::Read);
        for (at, to) in (0..view.height).zip(packed.chunks_exact_mut(line)) {
            self.memory.bytes().read(start(view, at), to);
        }
        self.memory.end(CpuUse::Read);
        packed
    }
}

/// Where line `line` of what is shown begins.
pub(super) fn start(view: &View, line: u32) -> usize {
    usize::try_from(view.line_start(line)).unwrap_or(usize::MAX)
}

pub(super) fn bytes(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

impl ScreenMemory for Desk {
    fn dma_buf(&self) -> Option<Arc<OwnedFd>> {
        self.memory.dma_buf()
    }

    fn changed(&self, _bytes: Range<u64>) {
        self.memory.device_wrote();
        self.touch();
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}
