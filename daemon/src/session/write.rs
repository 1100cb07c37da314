//! write(): frames in pieces.
//!
//! CUSE cuts a write(2) into pieces and does not say how long it is. A driver's write(2) ends at the end of a frame, with
//! a short count where the client gave more; so a piece that continues a call never begins the next frame. Each piece
//! goes to the driver as it is, which puts the frame together.

use std::collections::VecDeque;
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::format::output_types;
use vidcompat_proto::abi::v4l2::buf_type;

use super::counters::{Counters, Served};
use super::ledger::CallId;
use super::read::{Piece, errno};
use super::record::WriterImage;
use super::{BoxedWaiter, Session, State};
use crate::memory::Charge;

/// Somebody who sleeps in write(), with the bytes that the driver has not taken yet.
struct Sleeper {
    bytes: Vec<u8>,
    piece: Piece,
    waiter: BoxedWaiter<u32>,
    /// Given back when the memory is.
    _charge: Charge,
}

/// How far the frame is that is being written, and those who wait for room.
#[derive(Default)]
pub(super) struct FrameWriter {
    /// Bytes of a frame, once the driver has buffers; 0 where it has none.
    frame: Option<u64>,
    /// Bytes of it that are written.
    written: u64,
    /// The last piece was the end of a frame.
    ended: bool,
    /// The last piece, and what came of it.
    last: Option<(u64, u32)>,
    /// The piece that the driver is being given, where twice would be wrong.
    begun: Option<u64>,
    waiting: VecDeque<Sleeper>,
    counters: Arc<Counters>,
}

impl FrameWriter {
    /// As a daemon before us has left it.
    pub(super) fn again(image: &WriterImage, total: &Arc<Counters>) -> Self {
        Self {
            frame: image.frame,
            written: image.written,
            ended: image.ended,
            last: image.last,
            begun: image.begun,
            ..Self::counted(total)
        }
    }

    pub(super) fn image(&self) -> WriterImage {
        WriterImage {
            frame: self.frame,
            written: self.written,
            ended: self.ended,
            last: self.last,
            begun: self.begun,
        }
    }

    /// Nothing is written yet; what will be is also counted for the device.
    pub(super) fn counted(total: &Arc<Counters>) -> Self {
        Self {
            counters: Counters::under(Some(total)),
            ..Self::default()
        }
    }

    /// What was written.
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn drain(&mut self) -> Vec<BoxedWaiter<u32>> {
        self.waiting.drain(..).map(|sleeper| sleeper.waiter).collect()
    }

    /// What is to be told to `call`, which a daemon before us has had: what came of it. `EIO`: a part of a frame may have been
    /// written, and once more all that follows would be in the wrong place.
    fn answer(&self, call: CallId) -> Option<Result<u32, Errno>> {
        if !call.is_resent {
            return None;
        }
        match (self.last, self.begun) {
            (Some((by, count)), _) if by == call.unique => Some(Ok(count)),
            (_, Some(by)) if by == call.unique => Some(Err(Errno::EIO)),
            _ => None,
        }
    }

    /// Are `size` bytes now a frame, which is at worst shown twice?
    fn is_frame(&self, size: usize) -> bool {
        let frame = self.frame.filter(|frame| *frame > 0);
        self.written == 0 && frame.is_some_and(|frame| size as u64 >= frame)
    }

    /// The driver has taken `count` of `size` bytes, and its frames have `frame`.
    fn advance(&mut self, count: u64, size: u64, frame: u64) {
        self.written += count;
        self.counters.add(|counters| &counters.copied_bytes, count);
        self.ended = count < size || (frame > 0 && self.written >= frame);
        if self.ended {
            self.counters.frame(Served::Written);
            self.written = 0;
        }
    }
}

impl Session {
    /// A piece of a write(2). `waiter` is answered now or later.
    pub fn write(
        self: &Arc<Self>,
        piece: Piece,
        bytes: &[u8],
        nonblocking: bool,
        mut waiter: BoxedWaiter<u32>,
    ) {
        let mut state = self.lock();
        let first = if self.writes_frames() && !state.writer.is_idle() {
            // vb2 lets nobody in while another one sleeps (videobuf2-core.c, __vb2_perform_fileio).
            Err(Errno::EBUSY)
        } else {
            self.try_write(&mut state, piece, bytes)
        };
        match first {
            Err(Errno::EAGAIN) if !nonblocking && !state.ending => {
                let charge = match self.charge_piece(bytes.len(), piece.tid) {
                    Ok(charge) => charge,
                    Err(errno) => {
                        drop(state);
                        return waiter.answer(Err(errno));
                    }
                };
                if !self.sleep(&mut waiter, Session::interrupt_writer) {
                    drop(state);
                    return waiter.restart();
                }
                state.writer.waiting.push_back(Sleeper {
                    bytes: bytes.to_vec(),
                    piece,
                    waiter,
                    _charge: charge,
                });
                self.watch_for(&state);
                if !self.writes_frames() {
                    self.retry_later(&mut state);
                }
                drop(state);
                self.advance_writers();
            }
            outcome => {
                drop(state);
                waiter.answer(outcome.as_ref().map_err(|errno| *errno));
            }
        }
    }

    fn writes_frames(&self) -> bool {
        output_types(self.node.device_caps()).next().is_some()
    }

    fn charge_piece(&self, size: usize, tid: u32) -> Result<Charge, Errno> {
        let process = self.caller(tid)?.client().process().as_raw();
        self.device.budget().charge(process, size as u64).map_err(|over| {
            tracing::debug!(device = %self.device.path().display(), "{over}");
            Errno::ENOMEM
        })
    }

    fn try_write(&self, state: &mut State, piece: Piece, bytes: &[u8]) -> Result<u32, Errno> {
        let (offset, call) = (piece.offset, piece.call);
        if let Some(answer) = state.writer.answer(call) {
            return answer;
        }
        if offset > 0 && state.writer.ended {
            return Ok(0);
        }
        if self.is_kept() && !state.writer.is_frame(bytes.len()) {
            state.writer.begun = Some(call.unique);
            self.commit(state);
        }
        let outcome = self.node.write(bytes).map_err(errno);
        if state.writer.begun.take().is_some() && outcome.is_err() {
            self.commit(state);
        }
        match outcome {
            Ok(count) => {
                let frame = *state.writer.frame.get_or_insert_with(|| self.frame_to_write());
                state.writer.advance(count as u64, bytes.len() as u64, frame);
                // No piece is longer than what FUSE sends at once.
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                state.writer.last = Some((call.unique, count));
                self.commit(state);
                Ok(count)
            }
            // The call has written something already, which is its result.
            Err(Errno::EAGAIN) if offset > 0 => Ok(0),
            Err(errno) => Err(errno),
        }
    }

    /// Bytes of a frame: of the buffers that the driver has made for write(), for it may make them larger than the
    /// format says; 0 where it has none. They stay until the file is closed.
    fn frame_to_write(&self) -> u64 {
        output_types(self.node.device_caps())
            .find_map(|queue| match queue {
                // QUERYBUF tells this of a plane only; there is one, or write() fails (__vb2_init_fileio).
                buf_type::VIDEO_OUTPUT_MPLANE => self.node.frame_size(queue),
                _ => self.node.buffer_length(queue).map(u64::from),
            })
            .unwrap_or(0)
    }

    /// Serves those who sleep in write(). Was there one?
    pub(super) fn advance_writers(&self) -> bool {
        let mut any = false;
        loop {
            let mut state = self.lock();
            let Some(sleeper) = state.writer.waiting.pop_front() else {
                return any;
            };
            any = true;
            match self.try_write(&mut state, sleeper.piece, &sleeper.bytes) {
                Err(Errno::EAGAIN) => {
                    state.writer.waiting.push_front(sleeper);
                    return any;
                }
                outcome => {
                    drop(state);
                    sleeper.waiter.answer(outcome.as_ref().map_err(|errno| *errno));
                }
            }
        }
    }

    fn interrupt_writer(&self, id: u64) {
        let mut state = self.lock();
        let at = state
            .writer
            .waiting
            .iter()
            .position(|sleeper| sleeper.waiter.id() == id);
        let sleeper = at.and_then(|at| state.writer.waiting.remove(at));
        drop(state);
        if let Some(sleeper) = sleeper {
            sleeper.waiter.restart();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CallId, Errno, FrameWriter};

    fn ends(frame: u64, pieces: &[(u64, u64)]) -> Vec<bool> {
        let mut writer = FrameWriter::default();
        let mut advance = |(count, size): &(u64, u64)| {
            writer.advance(*count, *size, frame);
            writer.ended
        };
        pieces.iter().map(&mut advance).collect()
    }

    #[test]
    fn a_frame_ends_where_it_is_full_or_where_the_driver_takes_no_more() {
        assert_eq!(ends(100, &[(60, 60), (40, 40), (100, 100)]), [false, true, true]);
        assert_eq!(ends(100, &[(60, 60), (40, 60), (60, 60)]), [false, true, false]);
        // Not as long as was thought.
        assert_eq!(
            ends(100, &[(60, 60), (20, 60), (60, 60), (39, 39)]),
            [false, true, false, false]
        );
    }

    #[test]
    fn a_part_of_a_frame_is_not_written_twice_and_a_frame_may_be() {
        let call = |unique, is_resent| CallId { unique, is_resent };
        let mut writer = FrameWriter {
            frame: Some(100),
            ..FrameWriter::default()
        };
        assert!(writer.is_frame(100) && !writer.is_frame(99));
        writer.advance(60, 60, 100);
        assert!(!writer.is_frame(100), "in the middle of one");
        writer.last = Some((2, 60));
        writer.begun = Some(4);
        assert_eq!(writer.answer(call(2, true)), Some(Ok(60)));
        assert_eq!(writer.answer(call(4, true)), Some(Err(Errno::EIO)));
        assert_eq!(writer.answer(call(4, false)), None);
        assert_eq!(writer.answer(call(6, true)), None);
        assert!(
            !FrameWriter::default().is_frame(1 << 20),
            "a stream has no frames"
        );
    }

    #[test]
    fn a_stream_has_no_end() {
        assert_eq!(ends(0, &[(131_070, 131_070), (131_070, 131_070)]), [false, false]);
    }
}
