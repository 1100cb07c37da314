//! (Being written.)

use std::ops::Range;

use super::{Found, Kind, Look};
use crate::sys::Vma;

/// See the module.
pub(super) struct V4l2Buffer;

impl Kind for V4l2Buffer {
    fn name(&self) -> &'static str {
        "V4L2 buffer"
    }

    fn find(&self, _look: &Look<'_>, _vma: &Vma, _range: &Range<u64>) -> Option<Found> {
        None
    }
}

/// Number of the page frame behind `client_addr`; `None` where the kernel does not tell.
pub(super) fn frame_of(_client: &crate::client::BlockedThread, _client_addr: u64) -> Option<u64> {
    None
}
