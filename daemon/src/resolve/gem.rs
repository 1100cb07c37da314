//! (Being written.)

use std::ops::Range;

use super::{Found, Kind, Look};
use crate::sys::Vma;

/// See the module.
pub(super) struct Gem;

impl Kind for Gem {
    fn name(&self) -> &'static str {
        "DRM buffer"
    }

    fn find(&self, _look: &Look<'_>, _vma: &Vma, _range: &Range<u64>) -> Option<Found> {
        None
    }
}
