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

/// Room for a frame where the format does not tell its size.
const UNKNOWN_FRAME: usize = 1 << 20;
/// More than this is asked of a driver, so that a frame of the told size always comes short.
const BEYOND: usize = 4096;

/// The frame that is being read, and those who wait for one.
#[derive(Default)]
pub(super) struct FrameReader {
    frame: Vec<u8>,
    taken: usize,
    waiting: VecDeque<(usize, BoxedWaiter)>,
}

impl FrameReader {
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = BoxedWaiter> + '_ {
        self.waiting.drain(..).map(|(_, waiter)| waiter)
    }

    fn rest(&self) -> &[u8] {
        &self.frame[self.taken..]
    }

    fn take(&mut self, size: usize) -> Vec<u8> {
        let piece = self.rest()[..size.min(self.rest().len())].to_vec();
        self.taken += piece.len();
        piece
    }
}

impl Session {
    /// A piece of a read(2): `size` bytes after the `offset` that the call has got already. `waiter` is answered now
    /// or later.
    pub fn read(self: &Arc<Self>, offset: u64, size: usize, nonblocking: bool, mut waiter: BoxedWaiter) {
        let mut state = self.lock();
        match self.try_read(&mut state, offset, size) {
            Err(Errno::EAGAIN) if !nonblocking && !state.ending => {
                let (weak, id) = (Arc::downgrade(self), waiter.id());
                let wake = move || {
                    if let Some(session) = weak.upgrade() {
                        session.interrupt_reader(id);
                    }
                };
                if !waiter.sleep(Box::new(wake)) {
                    drop(state);
                    return waiter.restart();
                }
                state.frames.waiting.push_back((size, waiter));
                let wanted = state.wanted();
                drop(state);
                self.watch_for(wanted);
                self.advance_readers();
            }
            outcome => {
                drop(state);
                waiter.answer(outcome.as_deref().map_err(|errno| *errno));
            }
        }
    }

    fn try_read(&self, state: &mut State, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        if state.frames.rest().is_empty() {
            if offset > 0 {
                return Ok(Vec::new());
            }
            let told = self
                .node
                .sizeimage(buf_type::VIDEO_CAPTURE)
                .map_or(UNKNOWN_FRAME, |size| size as usize);
            let mut frame = std::mem::take(&mut state.frames.frame);
            frame.resize(told.max(size) + BEYOND, 0);
            let got = self.node.read(&mut frame);
            frame.truncate(*got.as_ref().unwrap_or(&0));
            state.frames.frame = frame;
            state.frames.taken = 0;
            if let Err(error) = got {
                return Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
            }
        }
        Ok(state.frames.take(size))
    }

    /// Serves those who sleep in read(). Was there one?
    pub(super) fn advance_readers(&self) -> bool {
        let mut any = false;
        loop {
            let mut state = self.lock();
            let Some((size, waiter)) = state.frames.waiting.pop_front() else {
                return any;
            };
            any = true;
            match self.try_read(&mut state, 0, size) {
                Err(Errno::EAGAIN) => {
                    state.frames.waiting.push_front((size, waiter));
                    return any;
                }
                outcome => {
                    drop(state);
                    waiter.answer(outcome.as_deref().map_err(|errno| *errno));
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
            .position(|(_, waiter)| waiter.id() == id);
        let waiter = at.and_then(|at| state.frames.waiting.remove(at));
        drop(state);
        if let Some((_, waiter)) = waiter {
            waiter.restart();
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
