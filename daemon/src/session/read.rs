//! read(): frames in pieces.
//!
//! CUSE cuts a read(2) into pieces and does not say how long it is. A driver's read(2) ends at the end of a frame,
//! so a frame is fetched whole and handed out piece by piece, and a piece that continues a call never begins the next
//! frame.

use std::collections::VecDeque;
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::buf_type;

use super::{BoxedWaiter, Session, State};
use crate::memory::Charge;

/// Room for a frame where the format does not tell its size.
const UNKNOWN_FRAME: usize = 1 << 20;
/// More than this is asked of a driver, so that a frame of the told size always comes short.
const BEYOND: usize = 4096;

/// A frame of which the client has taken a part.
struct Frame {
    bytes: Vec<u8>,
    filled: usize,
    taken: usize,
    /// Given back when the memory is.
    _charge: Charge,
}

/// Somebody who sleeps in read().
struct Sleeper {
    size: usize,
    tid: u32,
    waiter: BoxedWaiter,
}

/// The frame that is being read, and those who wait for one.
#[derive(Default)]
pub(super) struct FrameReader {
    frame: Option<Frame>,
    waiting: VecDeque<Sleeper>,
}

impl FrameReader {
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = BoxedWaiter> + '_ {
        self.waiting.drain(..).map(|sleeper| sleeper.waiter)
    }

    fn rest(&self) -> &[u8] {
        self.frame
            .as_ref()
            .map_or(&[], |frame| &frame.bytes[frame.taken..frame.filled])
    }

    fn take(&mut self, size: usize) -> Vec<u8> {
        let piece = self.rest()[..size.min(self.rest().len())].to_vec();
        if let Some(frame) = &mut self.frame {
            frame.taken += piece.len();
        }
        piece
    }
}

impl Session {
    /// A piece of a read(2) by thread `tid`: `size` bytes after the `offset` that the call has got already. `waiter` is
    /// answered now or later.
    pub fn read(
        self: &Arc<Self>,
        offset: u64,
        size: usize,
        tid: u32,
        nonblocking: bool,
        mut waiter: BoxedWaiter,
    ) {
        let mut state = self.lock();
        match self.try_read(&mut state, offset, size, tid) {
            Err(Errno::EAGAIN) if !nonblocking && !state.ending => {
                if !self.sleep(&mut waiter, Session::interrupt_reader) {
                    drop(state);
                    return waiter.restart();
                }
                state.frames.waiting.push_back(Sleeper { size, tid, waiter });
                self.watch_for(&state);
                drop(state);
                self.advance_readers();
            }
            outcome => {
                drop(state);
                waiter.answer(outcome.as_deref().map_err(|errno| *errno));
            }
        }
    }

    fn try_read(&self, state: &mut State, offset: u64, size: usize, tid: u32) -> Result<Vec<u8>, Errno> {
        if state.frames.rest().is_empty() {
            if offset > 0 {
                return Ok(Vec::new());
            }
            self.fetch_frame(state, size, tid)?;
        }
        Ok(state.frames.take(size))
    }

    fn fetch_frame(&self, state: &mut State, size: usize, tid: u32) -> Result<(), Errno> {
        let told = self
            .node
            .sizeimage(buf_type::VIDEO_CAPTURE)
            .map_or(UNKNOWN_FRAME, |told| told as usize);
        let room = told.max(size) + BEYOND;
        let kept = state
            .frames
            .frame
            .take()
            .filter(|frame| frame.bytes.len() >= room);
        let mut frame = match kept {
            Some(frame) => frame,
            None => {
                let process = self.caller(tid)?.client().process().as_raw();
                let charge = self
                    .device
                    .budget()
                    .charge(process, room as u64)
                    .map_err(|over| {
                        tracing::debug!(device = %self.device.path().display(), "{over}");
                        Errno::ENOMEM
                    })?;
                Frame {
                    bytes: vec![0; room],
                    filled: 0,
                    taken: 0,
                    _charge: charge,
                }
            }
        };
        (frame.filled, frame.taken) = (0, 0);
        let got = self.node.read(&mut frame.bytes);
        let got = got.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
        // On every error but this one nobody is reading, and the memory goes.
        if let Ok(filled) = got {
            frame.filled = filled;
        }
        if matches!(got, Ok(_) | Err(Errno::EAGAIN)) {
            state.frames.frame = Some(frame);
        }
        got.map(drop)
    }

    /// Serves those who sleep in read(). Was there one?
    pub(super) fn advance_readers(&self) -> bool {
        let mut any = false;
        loop {
            let mut state = self.lock();
            let Some(sleeper) = state.frames.waiting.pop_front() else {
                return any;
            };
            any = true;
            match self.try_read(&mut state, 0, sleeper.size, sleeper.tid) {
                Err(Errno::EAGAIN) => {
                    state.frames.waiting.push_front(sleeper);
                    return any;
                }
                outcome => {
                    drop(state);
                    sleeper.waiter.answer(outcome.as_deref().map_err(|errno| *errno));
                }
            }
        }
    }

    fn interrupt_reader(&self, id: u64) {
        let mut state = self.lock();
        let at = state
            .frames
            .waiting
            .iter()
            .position(|sleeper| sleeper.waiter.id() == id);
        let sleeper = at.and_then(|at| state.frames.waiting.remove(at));
        drop(state);
        if let Some(sleeper) = sleeper {
            sleeper.waiter.restart();
        }
    }

    /// write(2): the driver's word. A capture node says EINVAL.
    ///
    /// # Errors
    /// What the driver says.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let written = self.node.write(bytes);
        written.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}
