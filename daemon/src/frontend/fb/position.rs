//! Where in the framebuffer a file is: what the kernel keeps as `f_pos` for a real one, and not for ours.
//!
//! Reading and writing move it, and lseek if the shim tells of it ([`Position::seek`]). Without the shim an lseek is not
//! heard of.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vidcompat_proto::Errno;

use crate::client::given_offset;

/// Calls that may be remembered at a time, by their thread.
const MOST_CALLS: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Position(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    at: u64,
    /// The offset that each thread has given for the call that it began last: a call that is longer than a request can be
    /// comes in pieces.
    begun: HashMap<u32, Option<u64>>,
}

/// Where a piece of a call reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the start of the framebuffer.
    pub offset: u64,
    /// Is it the file's own position, which moves by what is done?
    moves: bool,
}

impl Position {
    fn state(&self) -> MutexGuard<'_, State> {
        // Changed by single calls only: never half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where thread `tid` reads or writes, whose call has got through `done` bytes already. Waits until the thread has gone
    /// to sleep.
    pub fn of_call(&self, tid: u32, done: u64) -> Place {
        self.of_call_with(tid, done, given_offset)
    }

    fn of_call_with(&self, tid: u32, done: u64, ask: impl Fn(u32) -> Option<u64>) -> Place {
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
                moves: false,
            },
            None => Place {
                offset: state.at,
                moves: true,
            },
        }
    }

    /// So many bytes were read or written there.
    pub fn moved(&self, place: Place, count: usize) {
        if place.moves {
            self.state().at = place.offset.saturating_add(count as u64);
        }
    }

    /// lseek, as `default_llseek` (fs/read_write.c) has it for a device, whose size is 0.
    ///
    /// # Errors
    /// `EINVAL`, `ENXIO`
    pub fn seek(&self, offset: i64, whence: u32) -> Result<i64, Errno> {
        let mut state = self.state();
        let at = i64::try_from(state.at).unwrap_or(i64::MAX);
        let wanted = match whence.cast_signed() {
            libc::SEEK_SET | libc::SEEK_END => offset,
            libc::SEEK_CUR => at.wrapping_add(offset),
            libc::SEEK_DATA | libc::SEEK_HOLE if offset >= 0 => return Err(Errno::ENXIO),
            libc::SEEK_DATA => offset,
            libc::SEEK_HOLE => 0,
            _ => return Err(Errno::EINVAL),
        };
        state.at = u64::try_from(wanted).map_err(|_| Errno::EINVAL)?;
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::Position;
    use vidcompat_proto::Errno;

    #[test]
    fn reading_moves_the_position_and_pread_does_not() {
        let position = Position::default();
        let plain = position.of_call_with(7, 0, |_| None);
        assert_eq!(plain.offset, 0);
        position.moved(plain, 100);
        let given = position.of_call_with(7, 0, |_| Some(5000));
        assert_eq!(given.offset, 5000);
        position.moved(given, 50);
        assert_eq!(position.of_call_with(8, 0, |_| None).offset, 100);
    }

    #[test]
    fn the_pieces_of_a_call_follow_each_other_and_only_the_first_is_asked_for() {
        let position = Position::default();
        let asked = |_| -> Option<u64> { panic!("of a later piece") };
        position.of_call_with(7, 0, |_| Some(1000));
        let other = position.of_call_with(8, 0, |_| None);
        position.moved(other, 64);
        assert_eq!(position.of_call_with(7, 131_072, asked).offset, 132_072);
        assert_eq!(position.of_call_with(8, 64, asked).offset, 64);
        // A thread that was forgotten is asked again.
        for tid in 100..200 {
            position.of_call_with(tid, 0, |_| None);
        }
        assert_eq!(position.of_call_with(7, 1, |_| Some(1000)).offset, 1001);
    }

    #[test]
    fn seeking_is_that_of_a_device_of_size_0() {
        let position = Position::default();
        let seek = |offset, whence: i32| position.seek(offset, whence.cast_unsigned());
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
