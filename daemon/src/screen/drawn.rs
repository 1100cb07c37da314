//! What of the memory was last shown, so that only what has changed since is converted and shown again.
//!
//! Programs draw through their own mappings and tell nobody, so the visible bytes are compared with a copy. That reads
//! twice as much as is shown, and stops in each band at the first difference.

use std::ops::Range;

use vidcompat_proto::fourcc::PixelFormat;
use vidcompat_proto::screen::{Fit, View};

use super::convert::{Converter, SHOWN, Source};
use super::desk::{bytes, start};
use super::memory::Memory;
use crate::backend::output::{Canvas, Rect};
use crate::sys::CpuUse;

/// Bytes that are compared at once, about: they stay in the cache while they are copied and converted.
const BAND: usize = 64 << 10;

/// How a part of the memory is to be looked at; where it begins is not a part of this.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Look {
    format: PixelFormat,
    width: u32,
    height: u32,
    fit: Fit,
    /// Of 8-bit pixels only: others do not change with it.
    palette: Option<Box<[u32; 256]>>,
}

impl Look {
    pub(super) fn of(view: &View, palette: &[u32; 256]) -> Self {
        let indexed = view.format == PixelFormat::C8;
        Self {
            format: view.format,
            width: view.width,
            height: view.height,
            fit: view.fit,
            palette: indexed.then(|| Box::new(*palette)),
        }
    }
}

/// The visible bytes as they were, and how they were looked at. Nothing, to begin with.
#[derive(Default)]
pub(super) struct Drawn {
    look: Option<Look>,
    copy: Vec<u8>,
}

impl Drawn {
    /// What was drawn is no more.
    pub(super) fn forget(&mut self) {
        self.look = None;
    }

    /// Makes the copy what the memory is now: which lines have changed. All, if they are looked at in another way than
    /// before.
    pub(super) fn follow(&mut self, memory: &Memory, view: &View, look: &Look) -> Vec<Range<u32>> {
        let line = bytes(view.line_bytes());
        let anew = self.look.as_ref() != Some(look);
        if anew {
            self.look = Some(look.clone());
            self.copy.clear();
            self.copy.resize(line * bytes(view.height), 0);
        }
        let band = u32::try_from(BAND / line.max(1)).unwrap_or(1).max(1);
        let mut changed: Vec<Range<u32>> = Vec::new();
        memory.start(CpuUse::Read);
        let mut first = 0;
        while first < view.height {
            let end = (first + band).min(view.height);
            let lines = if anew {
                Some(first..end)
            } else {
                self.differing(memory, view, first..end)
            };
            first = end;
            let Some(lines) = lines else { continue };
            for at in lines.clone() {
                let from = bytes(at) * line;
                memory
                    .bytes()
                    .read(start(view, at), &mut self.copy[from..from + line]);
            }
            match changed.last_mut() {
                Some(last) if last.end == lines.start => last.end = lines.end,
                _ => changed.push(lines),
            }
        }
        memory.end(CpuUse::Read);
        changed
    }

    /// From the first to the last line of `lines` that has changed.
    fn differing(&self, memory: &Memory, view: &View, mut lines: Range<u32>) -> Option<Range<u32>> {
        let line = bytes(view.line_bytes());
        let differs = |at: &u32| {
            let from = bytes(*at) * line;
            memory
                .bytes()
                .differs(start(view, *at), &self.copy[from..from + line])
        };
        let first = lines.find(differs)?;
        let last = lines.rev().find(differs).unwrap_or(first);
        Some(first..last + 1)
    }

    /// Brings a canvas that was drawn before, or never, up to date: what of it has changed.
    pub(super) fn draw(
        &mut self,
        memory: &Memory,
        view: &View,
        look: &Look,
        converter: &mut Converter,
        canvas: &mut Canvas<'_>,
    ) -> Vec<Rect> {
        let anew = self.look.as_ref() != Some(look);
        let changed = self.follow(memory, view, look);
        let (fit, line) = (view.fit, bytes(view.line_bytes()));
        if anew && (fit.scale * view.width, fit.scale * view.height) != (canvas.width, canvas.height) {
            canvas.bytes.fill(0);
        }
        for lines in &changed {
            let source = Source {
                format: view.format,
                palette: look.palette.as_deref().unwrap_or(&[0; 256]),
                width: view.width,
                bytes: &self.copy[bytes(lines.start) * line..bytes(lines.end) * line],
            };
            let from = bytes(fit.top + lines.start * fit.scale) * canvas.pitch + bytes(fit.left) * SHOWN;
            let end = bytes(fit.top + lines.end * fit.scale) * canvas.pitch;
            if let Some(target) = canvas.bytes.get_mut(from..end) {
                converter.draw(&source, fit.scale, target, canvas.pitch);
            }
        }
        if anew {
            return vec![Rect {
                x: 0,
                y: 0,
                width: canvas.width,
                height: canvas.height,
            }];
        }
        changed.into_iter().map(|lines| rect(view, &lines)).collect()
    }
}

/// Where on the screen these lines are.
pub(super) fn rect(view: &View, lines: &Range<u32>) -> Rect {
    let fit = view.fit;
    Rect {
        x: fit.left,
        y: fit.top + lines.start * fit.scale,
        width: view.width * fit.scale,
        height: (lines.end - lines.start) * fit.scale,
    }
}
