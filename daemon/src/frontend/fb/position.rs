//! Where in the framebuffer a file is: what the kernel keeps as `f_pos` for a real one, and not for ours.
//!
//! Reading and writing move it, and lseek if the shim tells of it ([`Position::seek`]). Without the shim an lseek is not
//! heard of.
//!
//! A request that is sent again to the next daemon may have moved it already. So it is remembered by which request it was
//! moved, from where and to where ([`Moves`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vidcompat_proto::Errno;

use crate::client::given_offset;

/// Calls that may be remembered at a time, by their thread.
const MOST_CALLS: usize = 64;

/// Requests that are remembered: as many as can be unanswered at a time, for each has a thread (`cuse::readers`).
const MOST_MOVES: usize = 128;

/// The request of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId {
    /// Its number, when the kernel sent it first.
    pub unique: u64,
    /// A daemon before us may have done it.
    pub is_resent: bool,
}

/// Where a file is, and what has brought it there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moves {
    at: u64,
    /// The last ones.
    last: VecDeque<Move>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Move {
    unique: u64,
    from: u64,
    to: u64,
}

impl Moves {
    fn to(&mut self, unique: u64, from: u64, to: u64) {
        self.at = to;
        if self.last.len() >= MOST_MOVES {
            self.last.pop_front();
        }
        self.last.push_back(Move { unique, from, to });
    }

    /// What the request has done when it came first.
    fn done_by(&self, call: CallId) -> Option<Move> {
        let mut known = self.last.iter().rev();
        known
            .find(|known| call.is_resent && known.unique == call.unique)
            .copied()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Position(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    moves: Moves,
    /// The offset that each thread has given for the call that it began last: a call that is longer than a request can be
    /// comes in pieces.
    begun: HashMap<u32, Option<u64>>,
}

/// Where a piece of a call reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the start of the framebuffer.
    pub offset: u64,
    /// The request that moves the file's own position by what it does, if one does.
    moved_by: Option<u64>,
}

impl Position {
    /// Of a file that a daemon before us has had.
    pub fn again(moves: Moves) -> Self {
        Self(Mutex::new(State {
            moves,
            begun: HashMap::new(),
        }))
    }

    /// To be written down.
    pub fn moves(&self) -> Moves {
        self.state().moves.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Changed by single calls only: never half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where thread `tid` reads or writes, whose call has got through `done` bytes already. Waits until the thread has gone
    /// to sleep.
    pub fn of_call(&self, tid: u32, done: u64, call: CallId) -> Place {
        self.of_call_with(tid, done, call, given_offset)
    }

    fn of_call_with(&self, tid: u32, done: u64, call: CallId, ask: impl Fn(u32) -> Option<u64>) -> Place {
        if let Some(known) = self.state().moves.done_by(call) {
            return Place {
                offset: known.from,
                moved_by: None,
            };
        }
        let known = self.state().begun.get(&tid).copied().filter(|_| done > 0);
        let given = known.unwrap_or_else(|| ask(tid));
        let mut state = self.state();
        if known.is_none() {
            if state.begun.len() >= MOST_CALLS {
                state.begun.clear();
            }
            state.begun.insert(tid, given);
        }
        match given {
            Some(start) => Place {
                offset: start.saturating_add(done),
                moved_by: None,
            },
            None => Place {
                offset: state.moves.at,
                moved_by: Some(call.unique),
            },
        }
    }

    /// So many bytes were read or written there.
    pub fn moved(&self, place: Place, count: usize) {
        if let Some(unique) = place.moved_by {
            let to = place.offset.saturating_add(count as u64);
            self.state().moves.to(unique, place.offset, to);
        }
    }

    /// lseek, as `default_llseek` (fs/read_write.c) has it for a device, whose size is 0.
    ///
    /// # Errors
    /// `EINVAL`, `ENXIO`
    pub fn seek(&self, offset: i64, whence: u32, call: CallId) -> Result<i64, Errno> {
        let mut state = self.state();
        if let Some(known) = state.moves.done_by(call) {
            return i64::try_from(known.to).map_err(|_| Errno::EINVAL);
        }
        let at = i64::try_from(state.moves.at).unwrap_or(i64::MAX);
        let wanted = match whence.cast_signed() {
            libc::SEEK_SET | libc::SEEK_END => offset,
            libc::SEEK_CUR => at.wrapping_add(offset),
            libc::SEEK_DATA | libc::SEEK_HOLE if offset >= 0 => return Err(Errno::ENXIO),
            libc::SEEK_DATA => offset,
            libc::SEEK_HOLE => 0,
            _ => return Err(Errno::EINVAL),
        };
        let (from, to) = (state.moves.at, u64::try_from(wanted).map_err(|_| Errno::EINVAL)?);
        state.moves.to(call.unique, from, to);
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::{CallId, Position};
    use vidcompat_proto::Errno;

    /// One that nobody has seen before.
    const NEW: CallId = CallId {
        unique: 2,
        is_resent: false,
    };

    fn call(unique: u64, is_resent: bool) -> CallId {
        CallId { unique, is_resent }
    }

    #[test]
    fn what_is_done_again_is_done_where_it_was_done_and_moves_nothing() {
        let first = Position::default();
        for unique in [10, 12] {
            let place = first.of_call_with(7, 0, call(unique, false), |_| None);
            first.moved(place, 100);
        }
        assert_eq!(
            first.seek(50, libc::SEEK_CUR.cast_unsigned(), call(14, false)),
            Ok(250)
        );
        // The next daemon, which is asked all three again in another order, and one that was never done.
        let next = Position::again(first.moves());
        assert_eq!(
            next.seek(50, libc::SEEK_CUR.cast_unsigned(), call(14, true)),
            Ok(250)
        );
        for (unique, offset) in [(12, 100), (10, 0)] {
            let place = next.of_call_with(7, 0, call(unique, true), |_| None);
            assert_eq!(place.offset, offset);
            next.moved(place, 100);
        }
        let place = next.of_call_with(7, 0, call(16, true), |_| None);
        assert_eq!(place.offset, 250);
        next.moved(place, 6);
        assert_eq!(next.of_call_with(7, 0, NEW, |_| None).offset, 256);
    }

    #[test]
    fn as_many_requests_are_remembered_as_can_be_unanswered() {
        let position = Position::default();
        for unique in 0..1000 {
            let place = position.of_call_with(7, 0, call(unique, false), |_| None);
            position.moved(place, 1);
        }
        let moves = position.moves();
        assert_eq!(moves.last.len(), 128);
        let next = Position::again(moves);
        assert_eq!(next.of_call_with(7, 0, call(872, true), |_| None).offset, 872);
        assert_eq!(next.of_call_with(7, 0, call(871, true), |_| None).offset, 1000);
    }

    #[test]
    fn reading_moves_the_position_and_pread_does_not() {
        let position = Position::default();
        let plain = position.of_call_with(7, 0, NEW, |_| None);
        assert_eq!(plain.offset, 0);
        position.moved(plain, 100);
        let given = position.of_call_with(7, 0, NEW, |_| Some(5000));
        assert_eq!(given.offset, 5000);
        position.moved(given, 50);
        assert_eq!(position.of_call_with(8, 0, NEW, |_| None).offset, 100);
    }

    #[test]
    fn the_pieces_of_a_call_follow_each_other_and_only_the_first_is_asked_for() {
        let position = Position::default();
        let asked = |_| -> Option<u64> { panic!("of a later piece") };
        position.of_call_with(7, 0, NEW, |_| Some(1000));
        let other = position.of_call_with(8, 0, NEW, |_| None);
        position.moved(other, 64);
        assert_eq!(position.of_call_with(7, 131_072, NEW, asked).offset, 132_072);
        assert_eq!(position.of_call_with(8, 64, NEW, asked).offset, 64);
        // A thread that was forgotten is asked again.
        for tid in 100..200 {
            position.of_call_with(tid, 0, NEW, |_| None);
        }
        assert_eq!(position.of_call_with(7, 1, NEW, |_| Some(1000)).offset, 1001);
    }

    #[test]
    fn seeking_is_that_of_a_device_of_size_0() {
        let position = Position::default();
        let seek = |offset, whence: i32| position.seek(offset, whence.cast_unsigned(), NEW);
        assert_eq!(seek(4096, libc::SEEK_SET), Ok(4096));
        assert_eq!(seek(-96, libc::SEEK_CUR), Ok(4000));
        assert_eq!(seek(0, libc::SEEK_CUR), Ok(4000));
        assert_eq!(seek(-4001, libc::SEEK_CUR), Err(Errno::EINVAL));
        assert_eq!(seek(i64::MAX, libc::SEEK_CUR), Err(Errno::EINVAL));
        assert_eq!(seek(7, libc::SEEK_DATA), Err(Errno::ENXIO));
        assert_eq!(seek(7, libc::SEEK_HOLE), Err(Errno::ENXIO));
        assert_eq!(seek(-1, libc::SEEK_DATA), Err(Errno::EINVAL));
        assert_eq!(seek(1, 5), Err(Errno::EINVAL));
        assert_eq!(seek(0, libc::SEEK_CUR), Ok(4000), "what fails moves nothing");
        assert_eq!(seek(0, libc::SEEK_END), Ok(0));
        assert_eq!(seek(-1, libc::SEEK_HOLE), Ok(0));
        assert_eq!(seek(i64::MAX, libc::SEEK_SET), Ok(i64::MAX));
    }
}
