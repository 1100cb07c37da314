//! What was found behind a stretch of memory, as a whole: whether it is still so, and whether one dma-buf is all of it.

use std::ops::Range;

use super::{Found, Importable, plain};
use crate::client::BlockedThread;
use crate::sys::Vma;

/// A part of a stretch that lies in one mapping; of plain memory, in several.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The mapping, or the first of them.
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
    /// Are all objects in it still mapped as they were when they were found? This is asked for every frame. Plain memory
    /// is not looked at: whoever copies to or from it goes by its address, and is told.
    pub fn still_holds(&self, client: &BlockedThread) -> bool {
        let mut objects = self.segments.iter().filter(|segment| segment.kind != plain::NAME);
        objects.all(|segment| {
            let witness = segment.found.frame;
            client.still_has(segment.range.clone(), &segment.vma)
                && witness.is_none_or(|witness| witness.still_holds(client, segment.range.start))
        })
    }

    /// Plain memory and nothing else: there is nothing that a look before the copy could find out.
    pub fn is_plain(&self) -> bool {
        self.segments.iter().all(|segment| segment.kind == plain::NAME)
    }

    /// Something has been written there: framebuffers are told of it.
    pub fn flush(&self) {
        let flushes = self
            .segments
            .iter()
            .filter_map(|segment| segment.found.flush.as_ref());
        for flush in flushes {
            if let Err(error) = flush.run() {
                tracing::debug!(%error, "a framebuffer could not be told that it has changed");
            }
        }
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
