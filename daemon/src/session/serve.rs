//! How a plane of a client's buffer is served: by import of the dma-buf behind it, or by copies between our memory and
//! what stands behind it, piece by piece.
//!
//! A way is made at QBUF, outside the session's lock, and holds what it needs to be gone: the dma-buf, the mappings of
//! objects. It knows nothing of the queue or of the device.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vidcompat_proto::queue::{Backing, Claim};

use super::counters::Counters;
use super::proof::{Mark, Proof};
use crate::client::{BlockedThread, Client};
use crate::memory::{self, BounceBuffer, CpuAccess};
use crate::resolve::{self, Access, Behind, CopyBy, Importable, Look, Segment};
use crate::sys::{self, CpuUse, Mapping, MemoryFault};

/// The way of one plane.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) claim: Claim,
    /// `None`: its mapping has gone since it was queued first; whoever dequeues will be told.
    behind: Option<Behind>,
    pub(super) how: How,
    /// Of an import that the device fills, until it has been shown that frames arrive.
    proof: Mutex<Option<Proof>>,
}

#[derive(Debug)]
pub(super) enum How {
    /// The device has the client's own memory.
    Import(Importable),
    /// Copied, and why.
    Copy { pieces: Vec<Piece>, why: String },
    /// The device has the client's own memory from a daemon before us, which had the dma-buf, and left these words in it.
    Inherited(Vec<Mark>),
}

#[derive(Debug)]
pub(super) struct Piece {
    client_addr: u64,
    len: usize,
    by: By,
}

#[derive(Debug)]
enum By {
    Memory,
    Object {
        mapping: Mapping,
        skip: usize,
        /// The dma-buf that is to be synced.
        dma_buf: Option<Arc<std::fs::File>>,
    },
}

impl Way {
    /// Looks at what stands behind `claim`. Imports what `may_import` gives no reason against.
    ///
    /// # Errors
    /// [`MemoryFault::Fault`] where there is no way.
    pub(super) fn find(
        look: &Look<'_>,
        claim: Claim,
        may_import: impl FnOnce(&Importable) -> Result<(), &'static str>,
    ) -> Result<Self, MemoryFault> {
        let behind = resolve::resolve(look, claim.client_addr, claim.length)?;
        let allowed = behind.importable(claim.length).and_then(|importable| {
            may_import(importable)?;
            Ok(importable)
        });
        let how = match allowed {
            Ok(importable) => How::Import(importable.clone()),
            Err(why) => How::Copy {
                pieces: behind
                    .segments
                    .iter()
                    .map(|segment| Piece::of(segment, look.access))
                    .collect::<Result<_, _>>()?,
                why,
            },
        };
        Ok(Self {
            claim,
            behind: Some(behind),
            how,
            proof: Mutex::default(),
        })
    }

    /// Of an import that the device will fill: what comes of the first frame is to show that it arrives. Where that is
    /// waited for already it stays so.
    ///
    /// # Errors
    /// [`MemoryFault`] where nothing can be shown.
    pub(super) fn prove(&self) -> Result<(), MemoryFault> {
        let mut proof = self.lock_proof();
        if let (How::Import(importable), None) = (&self.how, &*proof) {
            *proof = Some(Proof::begin(importable, self.claim.length)?);
        }
        Ok(())
    }

    /// No frame will come: what was written to prove it is taken away.
    pub(super) fn prove_no_more(&self) {
        *self.lock_proof() = None;
    }

    /// A frame of `bytes` bytes is there: has it arrived? `None`: that was not asked, or cannot be told.
    pub(super) fn arrived(&self, bytes: usize) -> Option<(u64, bool)> {
        let How::Import(importable) = &self.how else {
            return None;
        };
        let mut proof = self.lock_proof();
        let arrived = proof.as_ref()?.arrived(bytes)?;
        *proof = None;
        Some((importable.inode, arrived))
    }

    /// The words that are to prove it.
    pub(super) fn marks(&self) -> Vec<Mark> {
        match &self.how {
            How::Inherited(marks) => marks.clone(),
            _ => self
                .lock_proof()
                .as_ref()
                .map_or_else(Vec::new, |proof| proof.marks().to_vec()),
        }
    }

    /// The same dma-buf has `marks` in it, by which a daemon before us would prove it.
    pub(super) fn prove_by(&self, marks: Vec<Mark>) {
        if let (How::Import(importable), false) = (&self.how, marks.is_empty()) {
            // Where it cannot be mapped nothing can be shown, or taken away.
            *self.lock_proof() = Proof::again(importable, self.claim.length, marks).ok();
        }
    }

    fn lock_proof(&self) -> MutexGuard<'_, Option<Proof>> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of memory that was good once, and is no longer mapped.
    pub(super) fn gone(claim: Claim) -> Self {
        let piece = Piece {
            client_addr: claim.client_addr,
            len: claim.length as usize,
            by: By::Memory,
        };
        Self {
            claim,
            behind: None,
            how: How::Copy {
                pieces: vec![piece],
                why: "its memory is no longer mapped".to_owned(),
            },
            proof: Mutex::default(),
        }
    }

    /// As a daemon before us has left it: what stands behind it is not known any more, only what the device has.
    pub(super) fn inherited(claim: Claim, is_imported: bool, marks: Vec<Mark>) -> Self {
        let how = if is_imported {
            How::Inherited(marks)
        } else {
            Self::gone(claim).how
        };
        Self {
            claim,
            behind: None,
            how,
            proof: Mutex::default(),
        }
    }

    /// Has the device the client's own memory?
    pub(super) fn is_imported(&self) -> bool {
        matches!(self.how, How::Import(_) | How::Inherited(_))
    }

    /// Is the device's memory the client's, and the dma-buf not at hand?
    pub(super) fn is_inherited(&self) -> bool {
        matches!(self.how, How::Inherited(_))
    }

    /// Who made the dma-buf behind it, if there is one that may be imported.
    pub(super) fn exporter(&self) -> Option<&str> {
        let [segment] = &self.behind.as_ref()?.segments[..] else {
            return None;
        };
        segment
            .found
            .import
            .as_ref()
            .ok()
            .map(|importable| &*importable.exporter)
    }

    /// What stands behind it, for people.
    pub(super) fn what(&self) -> String {
        let segments = self.behind.iter().flat_map(|behind| &behind.segments);
        let what: Vec<_> = segments.map(|segment| segment.found.what.as_str()).collect();
        what.join(", ")
    }

    /// Is there nothing that a look could find out before the copy does?
    pub(super) fn is_plain(&self) -> bool {
        let copied = matches!(self.how, How::Copy { .. });
        copied && self.behind.as_ref().is_some_and(Behind::is_plain)
    }

    /// The mapping, or the first of several, of memory that a look has found to be plain.
    pub(super) fn plain_segment(&self) -> Option<&Segment> {
        let behind = self.behind.as_ref().filter(|_| self.is_plain())?;
        behind.segments.first()
    }

    /// Is the client's memory still what it was?
    pub(super) fn still_holds(&self, client: &BlockedThread) -> bool {
        self.behind
            .as_ref()
            .is_some_and(|behind| behind.still_holds(client))
    }

    /// The client's dma-buf, if the device is to import it.
    pub(super) fn backing(&self) -> Option<Backing> {
        match &self.how {
            How::Import(importable) => Some(Backing::DmaBuf {
                fd: std::os::fd::AsRawFd::as_raw_fd(&*importable.fd),
                // The client's own length: the device must not go beyond what the client has given.
                length: self.claim.length,
            }),
            // Of a prepared buffer, the only one that is given to a device so, no driver looks at it.
            How::Inherited(_) => Some(Backing::DmaBuf {
                fd: -1,
                length: self.claim.length,
            }),
            How::Copy { .. } => None,
        }
    }

    /// What a device has written by import is seen by who looks: the client, and the screen.
    pub(super) fn show(&self) {
        self.sync(CpuUse::Read);
        self.flush();
    }

    fn flush(&self) {
        if let Some(behind) = &self.behind {
            behind.flush();
        }
    }

    /// An import is not synced by vb2 (videobuf2-core.c:415), and the client, which knows of no dma-buf, does not do it.
    pub(super) fn sync(&self, cpu: CpuUse) {
        if let How::Import(importable) = &self.how {
            memory::sync(importable.fd.as_fd(), cpu);
        }
    }

    /// Copies the first `len` bytes of `source` to the client's memory.
    ///
    /// # Errors
    /// [`MemoryFault`] where they do not get there; a part may have.
    pub(super) fn deliver(
        &self,
        source: &BounceBuffer,
        len: usize,
        client: &Client,
        caller: Option<&BlockedThread>,
        counters: &Counters,
    ) -> Result<(), MemoryFault> {
        let access = source.access();
        counters.add(|counters| &counters.copied_bytes, len as u64);
        let copied = self.each_piece(len, counters, |piece, at, len| match &piece.by {
            By::Memory => client.write(access.mapping(), at, len, piece.client_addr, caller),
            By::Object {
                mapping,
                skip,
                dma_buf,
            } => {
                let object = CpuAccess::begin(mapping, dma_buf.as_ref().map(AsFd::as_fd), CpuUse::Write);
                sys::copy(access.mapping(), at, object.mapping(), *skip, len)
            }
        });
        // A part may have got there.
        self.flush();
        copied
    }

    /// Copies the client's bytes to the start of `target`: as many as it has room for.
    ///
    /// # Errors
    /// As [`Way::deliver`].
    pub(super) fn fetch(
        &self,
        target: &BounceBuffer,
        client: &Client,
        caller: Option<&BlockedThread>,
        counters: &Counters,
    ) -> Result<(), MemoryFault> {
        let access = target.access();
        let len = target.size().min(self.claim.length as usize);
        counters.add(|counters| &counters.copied_bytes, len as u64);
        self.each_piece(len, counters, |piece, at, len| match &piece.by {
            By::Memory => client.read(access.mapping(), at, len, piece.client_addr, caller),
            By::Object {
                mapping,
                skip,
                dma_buf,
            } => {
                let object = CpuAccess::begin(mapping, dma_buf.as_ref().map(AsFd::as_fd), CpuUse::Read);
                sys::copy(object.mapping(), *skip, access.mapping(), at, len)
            }
        })
    }

    /// Calls `copy` with each piece, its place in the plane and its length, as far as the first `len` bytes go.
    fn each_piece(
        &self,
        len: usize,
        counters: &Counters,
        mut copy: impl FnMut(&Piece, usize, usize) -> Result<(), MemoryFault>,
    ) -> Result<(), MemoryFault> {
        let How::Copy { pieces, .. } = &self.how else {
            return Err(MemoryFault::Fault);
        };
        let mut at = 0;
        for piece in pieces {
            let count = piece.len.min(len - at);
            if count > 0 {
                counters.add(
                    |counters| match piece.by {
                        By::Memory => &counters.through_memory,
                        By::Object { .. } => &counters.through_object,
                    },
                    1,
                );
                copy(piece, at, count)?;
            }
            at += count;
        }
        if at == len {
            Ok(())
        } else {
            Err(MemoryFault::Fault)
        }
    }
}

impl Piece {
    fn of(segment: &Segment, access: Access) -> Result<Self, MemoryFault> {
        let len = segment.range.end - segment.range.start;
        let len = usize::try_from(len).map_err(|_| MemoryFault::Fault)?;
        let by = match &segment.found.copy {
            Ok(CopyBy::Memory) => By::Memory,
            Ok(CopyBy::Object {
                file,
                offset,
                skip,
                sync,
            }) => {
                let cpu = match access {
                    Access::Write => CpuUse::Write,
                    Access::Read => CpuUse::Read,
                };
                let skip = usize::try_from(*skip).map_err(|_| MemoryFault::Fault)?;
                let offset = i64::try_from(*offset).map_err(|_| MemoryFault::Fault)?;
                let span = skip.checked_add(len).ok_or(MemoryFault::Fault)?;
                let mapping = Mapping::shared(file, offset, span, cpu).map_err(|error| {
                    tracing::debug!(what = segment.found.what, %error, "the object behind a buffer cannot be mapped");
                    MemoryFault::Fault
                })?;
                By::Object {
                    mapping,
                    skip,
                    dma_buf: sync.then(|| Arc::clone(file)),
                }
            }
            Err(why) => {
                tracing::debug!(
                    what = segment.found.what,
                    why,
                    "there is no way to a buffer's memory"
                );
                return Err(MemoryFault::Fault);
            }
        };
        Ok(Self {
            client_addr: segment.range.start,
            len,
            by,
        })
    }
}
