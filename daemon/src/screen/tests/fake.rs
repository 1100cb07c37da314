//! An output in memory: what a person would see on it, and what it was told.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vidcompat_proto::Errno;
use vidcompat_proto::screen::{ModeTiming, ScreenMode};

use crate::backend::output::{Canvas, Direct, Hidden, Output, Rect, Vsync};
use crate::sys::SteadyMemory;

pub(super) const WIDTH: u32 = 32;
pub(super) const HEIGHT: u32 = 16;
const PITCH: u32 = 160;

/// What an output does, and what came of it.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) calls: Vec<String>,
    /// What the next calls answer that show something.
    pub(super) hidden: Option<Hidden>,
    /// A mode that the card does not take, and what it says then.
    pub(super) refused: Option<(usize, Errno)>,
    pub(super) console: bool,
    pub(super) needs_damage: bool,
    pub(super) pans: bool,
    pub(super) dark: bool,
    /// The front canvas, as it was when the output was told of it.
    canvas: Vec<u8>,
    direct: Option<SteadyMemory>,
    shows: Option<Shows>,
}

#[derive(Clone, Copy)]
enum Shows {
    Direct(u32, u32),
    Canvas,
}

/// The test's side of it.
#[derive(Clone, Default)]
pub(super) struct Fake(Arc<Mutex<Seen>>);

impl Fake {
    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it was told since this was asked.
    pub(super) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.seen().calls)
    }

    /// The colour at a place of the screen, if it shows anything of ours.
    pub(super) fn pixel(&self, x: u32, y: u32) -> Option<u32> {
        let seen = self.seen();
        let mut pixel = [0; 4];
        match seen.shows? {
            Shows::Direct(left, top) => {
                let at = (top + y) * PITCH + (left + x) * 4;
                seen.direct.as_ref()?.read(usize::try_from(at).ok()?, &mut pixel);
            }
            Shows::Canvas => {
                let at = usize::try_from(y * PITCH + x * 4).ok()?;
                pixel.copy_from_slice(seen.canvas.get(at..at + 4)?);
            }
        }
        Some(u32::from_le_bytes(pixel) & 0x00ff_ffff)
    }

    fn told(&self, call: String) -> MutexGuard<'_, Seen> {
        let mut seen = self.seen();
        seen.calls.push(call);
        seen
    }

    fn shows(&self, call: String, shows: Shows) -> Result<(), Hidden> {
        let mut seen = self.told(call);
        if let Some(hidden) = seen.hidden {
            seen.shows = None;
            return Err(hidden);
        }
        seen.shows = Some(shows);
        Ok(())
    }
}

pub(super) struct FakeOutput {
    fake: Fake,
    modes: Vec<ScreenMode>,
    canvases: [Vec<u8>; 2],
    front: usize,
}

impl FakeOutput {
    pub(super) fn of(fake: &Fake) -> Box<dyn Output> {
        let mode = |width, height| ScreenMode {
            width,
            height,
            refresh_mhz: 60_000,
            timing: ModeTiming::default(),
        };
        Box::new(Self {
            fake: fake.clone(),
            modes: vec![mode(WIDTH, HEIGHT), mode(16, 12)],
            canvases: [Vec::new(), Vec::new()],
            front: 0,
        })
    }
}

impl Output for FakeOutput {
    fn name(&self) -> &str {
        "fake"
    }

    fn modes(&self) -> &[ScreenMode] {
        &self.modes
    }

    fn size_mm(&self) -> Option<(u32, u32)> {
        None
    }

    fn direct(&mut self, _mode: usize, lines: u32) -> Result<Direct, Errno> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
        let fd: OwnedFd = memfd_create(c"direct", MemfdFlags::ALLOW_SEALING).expect("a memfd");
        let size = u64::from(PITCH * lines);
        ftruncate(&fd, size).expect("room");
        fcntl_add_seals(&fd, SealFlags::SHRINK).expect("sealed");
        let len = usize::try_from(size).expect("small");
        self.fake.seen().direct = Some(SteadyMemory::map(&fd, len).expect("mapped"));
        Ok(Direct {
            dma_buf: Arc::new(fd),
            pitch: PITCH,
            lines,
            size,
        })
    }

    fn can_pan_direct(&self) -> bool {
        self.fake.seen().pans
    }

    fn holds_direct(&self) -> bool {
        true
    }

    fn has_console(&self) -> bool {
        self.fake.seen().console
    }

    fn show_direct(&mut self, mode: usize, x: u32, y: u32) -> Result<(), Hidden> {
        self.fake
            .shows(format!("show_direct {mode} {x} {y}"), Shows::Direct(x, y))
    }

    fn show_canvas(&mut self, mode: usize) -> Result<(), Hidden> {
        self.fake.seen().canvas.clone_from(&self.canvases[self.front]);
        let told = self.fake.shows(format!("show_canvas {mode}"), Shows::Canvas);
        match self.fake.seen().refused {
            Some((refused, error)) if refused == mode => Err(Hidden::Failed(error)),
            _ => told,
        }
    }

    fn canvas(&mut self, mode: usize, back: bool) -> Result<Canvas<'_>, Errno> {
        let ScreenMode { width, height, .. } = self.modes[mode];
        let canvas = &mut self.canvases[self.front ^ usize::from(back)];
        let size = usize::try_from(PITCH * height).expect("small");
        if canvas.len() != size {
            // What was there before.
            *canvas = vec![0x55; size];
        }
        Ok(Canvas {
            bytes: canvas,
            pitch: PITCH as usize,
            width,
            height,
        })
    }

    fn flip(&mut self, mode: usize) -> Result<(), Hidden> {
        self.fake.shows(format!("flip {mode}"), Shows::Canvas)?;
        self.front ^= 1;
        self.fake.seen().canvas.clone_from(&self.canvases[self.front]);
        Ok(())
    }

    fn needs_damage(&self) -> bool {
        self.fake.seen().needs_damage
    }

    fn damage(&mut self, rects: &[Rect]) -> Result<(), Hidden> {
        let mut seen = self.fake.seen();
        seen.canvas.clone_from(&self.canvases[self.front]);
        for Rect { x, y, width, height } in rects {
            seen.calls.push(format!("damage {x},{y} {width}x{height}"));
        }
        seen.hidden.map_or(Ok(()), |hidden| {
            seen.shows = None;
            Err(hidden)
        })
    }

    fn blank(&mut self, level: u32) -> Result<(), Hidden> {
        self.fake.told(format!("blank {level}")).dark = level != 0;
        Ok(())
    }

    fn give_back(&mut self) {
        self.fake.told("give_back".to_owned()).shows = None;
    }

    fn vsync(&self) -> Arc<dyn Vsync> {
        struct Fast;
        impl Vsync for Fast {
            fn wait(&self) {}
            fn count(&self) -> u32 {
                7
            }
            fn period(&self) -> Duration {
                Duration::from_millis(10)
            }
        }
        Arc::new(Fast)
    }
}
