//! Calls that do more when they are made twice: controls that move something *by* so much.
//!
//! Other calls are simply made again where a daemon before us has not lived to answer them. Of these it is written down that
//! they begin, and how they ended. One that began and of which nothing more is known is answered `EIO`: it may have moved,
//! and drivers say the same of a device that has not confirmed what it was told.

use serde::{Deserialize, Serialize};
use vidcompat_proto::Errno;
use vidcompat_proto::ioctl::Row;

use super::ledger::CallId;
use super::{Session, State};

/// `_IOC_NR` of `VIDIOC_S_CTRL` and of `VIDIOC_S_EXT_CTRLS`.
pub(super) const S_CTRL: u8 = 28;
pub(super) const S_EXT_CTRLS: u8 = 72;

/// `V4L2_CID_CAMERA_CLASS_BASE` (linux/v4l2-controls.h)
const CAMERA: u32 = 0x009a_0900;
/// `V4L2_CID_*_RELATIVE`: pan, tilt, focus, zoom, iris.
const RELATIVE: [u32; 5] = [CAMERA + 4, CAMERA + 5, CAMERA + 11, CAMERA + 14, CAMERA + 18];

/// The last of these calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Once {
    by: u64,
    /// What the driver said: a result, or a negative errno. `None`: not known.
    outcome: Option<i32>,
}

impl Once {
    /// What request `call` is to be told, if it is this.
    fn answer(self, call: CallId) -> Option<Result<i32, Errno>> {
        let is_it = call.is_resent && call.unique == self.by;
        is_it.then(|| match self.outcome {
            Some(result @ 0..) => Ok(result),
            Some(errno) => Err(Errno::from_raw(-errno)),
            None => Err(Errno::EIO),
        })
    }
}

impl Session {
    /// `VIDIOC_S_CTRL`, whose struct begins with the control.
    pub(super) fn set_control(&self, row: &Row, argument: &mut [u8], call: CallId) -> Result<i32, Errno> {
        let id = argument.first_chunk().map(|id| u32::from_ne_bytes(*id));
        self.once(call, id.into_iter(), || self.node.ioctl(row, argument))
    }

    /// Runs `act`, which sets the controls `ids`, unless `call` has been made already and would move something once more.
    pub(super) fn once(
        &self,
        call: CallId,
        mut ids: impl Iterator<Item = u32>,
        act: impl FnOnce() -> Result<i32, Errno>,
    ) -> Result<i32, Errno> {
        if !self.is_kept() || !ids.any(|id| RELATIVE.contains(&id)) {
            return act();
        }
        let note = |state: &mut State, outcome| {
            state.once = Some(Once {
                by: call.unique,
                outcome,
            });
            self.commit(state);
        };
        {
            let mut state = self.lock();
            if let Some(answer) = state.once.and_then(|once| once.answer(call)) {
                return answer;
            }
            note(&mut state, None);
        }
        let outcome = act();
        let known = outcome.unwrap_or_else(|errno| -errno.raw());
        note(&mut self.lock(), Some(known));
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::{CallId, Errno, Once};

    #[test]
    fn only_the_same_request_is_told_again_and_what_is_not_known_is_an_error() {
        let call = |unique, is_resent| CallId { unique, is_resent };
        let once = |outcome| Once { by: 6, outcome };
        assert_eq!(once(Some(0)).answer(call(6, true)), Some(Ok(0)));
        assert_eq!(
            once(Some(-Errno::EINVAL.raw())).answer(call(6, true)),
            Some(Err(Errno::EINVAL))
        );
        assert_eq!(once(None).answer(call(6, true)), Some(Err(Errno::EIO)));
        assert_eq!(
            once(None).answer(call(6, false)),
            None,
            "a new one has that number"
        );
        assert_eq!(once(None).answer(call(8, true)), None);
    }
}
