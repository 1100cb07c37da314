//! What was found behind a stretch of memory, as a whole: whether it is still so, and whether one dma-buf is all of it.

use std::ops::Range;

use super::{Found, Importable, plain};
use crate::client::BlockedThread;
use crate::sys::Vma;

/// A part of a stretch that lies in one mapping.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The mapping.
    pub vma: Vma,
    /// What of it belongs to the stretch.
    pub range: Range<u64>,
    /// Which kind has found it.
    pub kind: &'static str,
    /// What it has found.
    pub found: Found,
}

/// What stands behind a stretch of memory, in the order of addresses and without a hole.
#[derive(Clone, Debug)]
pub struct Behind {
    /// Never empty.
    pub segments: Vec<Segment>,
}

impl Behind {
    /// Is all of it still mapped as it was when it was found? This is asked for every frame.
    pub fn still_holds(&self, client: &BlockedThread) -> bool {
        let (Some(first), Some(last)) = (self.segments.first(), self.segments.last()) else {
            return false;
        };
        let range = first.range.start..last.range.end;
        let same = |segment: &Segment| {
            let witness = segment.found.frame;
            witness.is_none_or(|witness| witness.still_holds(client, segment.range.start))
        };
        client.still_has(range, self.segments.iter().map(|segment| &segment.vma))
            && self.segments.iter().all(same)
    }

    /// Plain memory and nothing else: there is nothing that a look before the copy could find out.
    pub fn is_plain(&self) -> bool {
        self.segments.iter().all(|segment| segment.kind == plain::NAME)
    }

    /// The dma-buf of which all `length` bytes are the first ones: a device takes one for a plane, from its start.
    ///
    /// # Errors
    /// Why there is none that could be imported, for people.
    pub fn importable(&self, length: u32) -> Result<&Importable, String> {
        let importable = match &self.segments[..] {
            [segment] => segment.found.import.as_ref().map_err(Clone::clone)?,
            _ => {
                let several = "a driver takes one dma-buf for a plane, and this one is not all of it";
                return Err(several.to_owned());
            }
        };
        let Importable { offset, size, .. } = importable;
        if *offset != 0 {
            return Err(format!(
                "the range begins {offset} bytes into the dma-buf, and a driver begins at its start"
            ));
        }
        if *size < u64::from(length) {
            return Err(format!("the dma-buf ends after {size} bytes"));
        }
        Ok(importable)
    }
}
