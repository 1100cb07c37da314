//! read(): frames in pieces.
//!
//! CUSE cuts a read(2) into pieces and does not say how long it is. A driver's read(2) ends at the end of a frame,
//! so a frame is fetched whole and handed out piece by piece, and a piece that continues a call never begins the next
//! frame. A node without a capture queue (a radio's RDS blocks) has no frames: there each piece goes to the driver as
//! it is.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::format::capture_types;
use vidcompat_proto::abi::v4l2::buf_type;

use super::counters::{Counters, Served};
use super::record::{PieceImage, ReaderImage};
use super::{BoxedWaiter, CallId, Session, State};
use crate::memory::Charge;
use crate::survive::Kept;

/// Room for a frame where the format does not tell its size.
const UNKNOWN_FRAME: u64 = 1 << 20;
/// More than this is asked of a driver, so that a frame of the told size always comes short.
const BEYOND: usize = 4096;

/// A frame of which the client has taken a part.
struct Frame {
    bytes: Vec<u8>,
    filled: usize,
    taken: usize,
    /// Given back when the memory is.
    charge: Charge,
}

/// A piece of a call.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Bytes that the call has got, or written, already.
    pub offset: u64,
    /// The calling thread.
    pub tid: u32,
    /// The request.
    pub call: CallId,
}

/// Somebody who sleeps in read().
struct Sleeper {
    size: usize,
    piece: Piece,
    waiter: BoxedWaiter,
}

/// The frame that is being read, and those who wait for one.
#[derive(Default)]
pub(super) struct FrameReader {
    frame: Option<Frame>,
    /// The same bytes, or those of the last piece of a stream, for a daemon after us.
    copy: Option<(File, Kept)>,
    /// The last piece that was handed out; where it is in the copy.
    last: Option<PieceImage>,
    waiting: VecDeque<Sleeper>,
    counters: Arc<Counters>,
}

impl FrameReader {
    /// As a daemon before us has left it. Its frame is paid for by `charge`.
    pub(super) fn again(
        image: &ReaderImage,
        copy: Option<(File, Kept)>,
        charge: impl FnOnce(i32, u64) -> Charge,
        total: &Arc<Counters>,
    ) -> io::Result<Self> {
        let mut frame = None;
        if let (Some((room, payer)), Some((file, _))) = (image.room, &copy) {
            let mut bytes = vec![0; usize::try_from(room).map_err(io::Error::other)?];
            let filled = usize::try_from(image.filled).map_err(io::Error::other)?;
            let rest = bytes.get_mut(..filled).ok_or(io::ErrorKind::InvalidData)?;
            file.read_exact_at(rest, 0)?;
            frame = Some(Frame {
                taken: filled.min(usize::try_from(image.taken).map_err(io::Error::other)?),
                filled,
                bytes,
                charge: charge(payer.unwrap_or_default(), room),
            });
        }
        Ok(Self {
            frame,
            copy,
            last: image.last,
            ..Self::counted(total)
        })
    }

    pub(super) fn image(&self) -> ReaderImage {
        let frame = self.frame.as_ref();
        ReaderImage {
            room: frame.map(|frame| (frame.bytes.len() as u64, Some(frame.charge.client()))),
            filled: frame.map_or(0, |frame| frame.filled as u64),
            taken: frame.map_or(0, |frame| frame.taken as u64),
            last: self.last,
        }
    }

    /// The piece that `call` has got from a daemon before us, which did not live to answer.
    fn again_for(&self, call: CallId) -> Option<Vec<u8>> {
        let last = self
            .last
            .filter(|last| call.is_resent && last.by == call.unique)?;
        let mut bytes = vec![0; usize::try_from(last.len).ok()?];
        let (file, _) = self.copy.as_ref()?;
        file.read_exact_at(&mut bytes, last.from).ok()?;
        Some(bytes)
    }

    /// Nothing is read yet; what will be is also counted for the device.
    pub(super) fn counted(total: &Arc<Counters>) -> Self {
        Self {
            counters: Counters::under(Some(total)),
            ..Self::default()
        }
    }

    /// What was read.
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

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
    /// A piece of a read(2) of `size` bytes. `waiter` is answered now or later.
    pub fn read(self: &Arc<Self>, piece: Piece, size: usize, nonblocking: bool, mut waiter: BoxedWaiter) {
        let mut state = self.lock();
        let first = if self.reads_frames() && !state.frames.is_idle() {
            // vb2 lets nobody in while another one sleeps (videobuf2-core.c, __vb2_perform_fileio).
            Err(Errno::EBUSY)
        } else {
            self.try_read(&mut state, piece, size)
        };
        match first {
            Err(Errno::EAGAIN) if !nonblocking && !state.ending => {
                if !self.sleep(&mut waiter, Session::interrupt_reader) {
                    drop(state);
                    return waiter.restart();
                }
                state.frames.waiting.push_back(Sleeper { size, piece, waiter });
                // A vb2 queue says EBUSY now, another (v4l2loopback) what it is: none.
                let _ = self
                    .device
                    .queue_capabilities(&self.node, buf_type::VIDEO_CAPTURE);
                self.watch_anew(&state, buf_type::VIDEO_CAPTURE);
                if !self.reads_frames() {
                    self.retry_later(&mut state);
                }
                drop(state);
                self.advance_readers();
            }
            outcome => {
                drop(state);
                waiter.answer(outcome.as_deref().map_err(|errno| *errno));
            }
        }
    }

    fn reads_frames(&self) -> bool {
        capture_types(self.node.device_caps()).next().is_some()
    }

    fn try_read(&self, state: &mut State, piece: Piece, size: usize) -> Result<Vec<u8>, Errno> {
        if let Some(bytes) = state.frames.again_for(piece.call) {
            return Ok(bytes);
        }
        if !self.reads_frames() {
            let bytes = self.read_stream(piece.offset, size)?;
            let counters = &state.frames.counters;
            counters.add(|counters| &counters.copied_bytes, bytes.len() as u64);
            self.copy(state, &bytes);
            self.hand_out(state, piece.call, 0, bytes.len());
            return Ok(bytes);
        }
        if state.frames.rest().is_empty() {
            if piece.offset > 0 {
                return Ok(Vec::new());
            }
            self.fetch_frame(state, size, piece.tid)?;
            let frame = state.frames.frame.take();
            if let Some(frame) = &frame {
                self.copy(state, &frame.bytes[..frame.filled]);
            }
            state.frames.frame = frame;
        }
        let from = state.frames.frame.as_ref().map_or(0, |frame| frame.taken);
        let bytes = state.frames.take(size);
        self.hand_out(state, piece.call, from, bytes.len());
        Ok(bytes)
    }

    /// A daemon after us has these bytes, too.
    fn copy(&self, state: &mut State, bytes: &[u8]) {
        if !self.is_kept() {
            return;
        }
        if state.frames.copy.is_none() {
            state.frames.copy = self.keep_frames();
        }
        if let Some((file, _)) = &state.frames.copy
            && let Err(error) = file.write_all_at(bytes, 0)
        {
            tracing::warn!(%error, "a frame that is read in pieces would not outlive this daemon");
        }
    }

    /// `call` is answered with `len` bytes of the frame behind `from`.
    fn hand_out(&self, state: &mut State, call: CallId, from: usize, len: usize) {
        state.frames.last = Some(PieceImage {
            by: call.unique,
            from: from as u64,
            len: len as u64,
        });
        self.commit(state);
    }

    fn read_stream(&self, offset: u64, size: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; size];
        match self.node.read(&mut bytes).map_err(errno) {
            Ok(filled) => {
                bytes.truncate(filled);
                Ok(bytes)
            }
            // The call has got something already, which is its result.
            Err(Errno::EAGAIN) if offset > 0 => Ok(Vec::new()),
            Err(errno) => Err(errno),
        }
    }

    fn fetch_frame(&self, state: &mut State, size: usize, tid: u32) -> Result<(), Errno> {
        // Of a node for raw and sliced VBI the file may be in either mode.
        let told = capture_types(self.node.device_caps())
            .filter_map(|buf_type| self.node.frame_size(buf_type))
            .max();
        let told = usize::try_from(told.unwrap_or(UNKNOWN_FRAME)).map_err(|_| Errno::ENOMEM)?;
        let room = told.max(size).checked_add(BEYOND).ok_or(Errno::ENOMEM)?;
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
                    charge,
                }
            }
        };
        (frame.filled, frame.taken) = (0, 0);
        let got = self.node.read(&mut frame.bytes).map_err(errno);
        // On every error but this one nobody is reading, and the memory goes.
        if let Ok(filled) = got {
            frame.filled = filled;
            let counters = &state.frames.counters;
            counters.frame(Served::Read);
            counters.add(|counters| &counters.copied_bytes, filled as u64);
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
            match self.try_read(&mut state, sleeper.piece, sleeper.size) {
                Err(Errno::EAGAIN) => {
                    state.frames.waiting.push_front(sleeper);
                    if self.device.is_no_vb2(buf_type::VIDEO_CAPTURE) {
                        self.watch_anew(&state, buf_type::VIDEO_CAPTURE);
                    }
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
}

/// What the driver said.
pub(super) fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
