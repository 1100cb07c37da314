//! (Being written.)

use std::ops::Range;

use super::{Found, Kind, Look};
use crate::sys::Vma;

/// See the module.
pub(super) struct Framebuffer;

impl Kind for Framebuffer {
    fn name(&self) -> &'static str {
        "framebuffer"
    }

    fn find(&self, _look: &Look<'_>, _vma: &Vma, _range: &Range<u64>) -> Option<Found> {
        None
    }
}
