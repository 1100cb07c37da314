//! Memory that a device and we can use both: the providers of bounce buffers.
//!
//! Which provider serves is decided once per REQBUFS, by trying (`session::allocate`): a driver does not tell whether
//! it can import what a heap gives. Nothing here knows of clients' addresses or of a queue's state.

mod budget;
mod heap;
mod sync;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use vidcompat_proto::queue::Backing;

use crate::survive::Kept;
use crate::sys::{CpuUse, Mapping};

pub use budget::{Budget, Charge, OverBudget};
pub use heap::{Heap, HeapError};
pub use sync::{CpuAccess, sync};

/// Who made a buffer, as status and log name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Provider {
    /// A dma-buf of `/dev/dma_heap/system`, imported by the device: cached memory.
    DmaHeap,
    /// The device's own MMAP buffer, where it imports nothing that a heap gives.
    Exporter,
    /// The same memory, exported by the device and imported again: in that queue other dma-bufs can be imported too.
    Exported,
}

impl std::fmt::Display for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Provider::DmaHeap => "dma-heap",
            Provider::Exporter => "the device's own buffers",
            Provider::Exported => "the device's own buffers, exported",
        })
    }
}

/// A bounce buffer. It lives as long as anybody holds it: a copy that is under way keeps it past REQBUFS(0).
#[derive(Debug)]
pub struct BounceBuffer {
    mapping: Mapping,
    dma_buf: Option<Arc<OwnedFd>>,
    /// Its number in the store that outlives us, once it is there.
    kept: OnceLock<(u64, Kept)>,
    /// Given back when the memory is.
    charge: Paid,
}

/// What has been paid for a buffer. Behind its memory in the struct above: when it goes, we have nothing mapped any more.
#[derive(Debug)]
struct Paid {
    charge: Option<Charge>,
    /// The dma-buf, once a client has got it.
    handed_out: OnceLock<Arc<OwnedFd>>,
}

impl From<Charge> for Paid {
    fn from(charge: Charge) -> Self {
        Self {
            charge: Some(charge),
            handed_out: OnceLock::new(),
        }
    }
}

impl Drop for Paid {
    fn drop(&mut self) {
        if let (Some(charge), Some(fd)) = (self.charge.take(), self.handed_out.take()) {
            charge.until_let_go(fd);
        }
    }
}

impl BounceBuffer {
    /// A heap's dma-buf of `mapping.size()` bytes.
    pub fn from_dma_buf(dma_buf: OwnedFd, mapping: Mapping, charge: Charge) -> Self {
        Self {
            mapping,
            dma_buf: Some(Arc::new(dma_buf)),
            kept: OnceLock::new(),
            charge: charge.into(),
        }
    }

    /// A device's own buffer. vb2 syncs those itself at QBUF and DQBUF.
    pub fn from_device(mapping: Mapping, charge: Charge) -> Self {
        Self {
            mapping,
            dma_buf: None,
            kept: OnceLock::new(),
            charge: charge.into(),
        }
    }

    /// The buffer as QBUF names it.
    pub fn backing(&self) -> Backing {
        match &self.dma_buf {
            Some(fd) => Backing::DmaBuf {
                fd: fd.as_raw_fd(),
                length: u32::try_from(self.mapping.size()).unwrap_or(u32::MAX),
            },
            None => Backing::Mmap,
        }
    }

    /// Another fd of its dma-buf, for a client: it stays charged as long as the client has it.
    pub fn hand_out(&self) -> Option<OwnedFd> {
        let dma_buf = self.dma_buf.as_ref()?;
        let fd = dma_buf.try_clone().ok()?;
        self.charge.handed_out.get_or_init(|| Arc::clone(dma_buf));
        Some(fd)
    }

    /// Has a client got it?
    pub fn is_handed_out(&self) -> bool {
        self.charge.handed_out.get().is_some()
    }

    /// The process that pays for it.
    pub fn payer(&self) -> Option<i32> {
        self.charge.charge.as_ref().map(Charge::client)
    }

    /// Its number in the store, if it is there.
    pub fn kept_as(&self) -> Option<u64> {
        self.kept.get().map(|(number, _)| *number)
    }

    /// Lets `put` put its dma-buf into the store, which gives it a number there, unless it has none or it is there.
    ///
    /// # Errors
    /// What `put` says.
    pub fn keep(&self, put: impl FnOnce(BorrowedFd<'_>) -> io::Result<(u64, Kept)>) -> io::Result<()> {
        if let (Some(dma_buf), None) = (&self.dma_buf, self.kept.get()) {
            let kept = put(dma_buf.as_fd())?;
            // Nobody else stores it: this is done with the session's lock.
            drop(self.kept.set(kept));
        }
        Ok(())
    }

    /// Its dma-buf, if it is one.
    pub fn dma_buf(&self) -> Option<&Arc<OwnedFd>> {
        self.dma_buf.as_ref()
    }

    /// A device's own buffer that has been exported: from now on it is named by this dma-buf, and synced as every import.
    pub fn exported(self, dma_buf: OwnedFd) -> Self {
        Self {
            dma_buf: Some(Arc::new(dma_buf)),
            ..self
        }
    }

    /// The bytes, for as long as the guard lives: of a buffer that is mapped to be read, what the device wrote before is
    /// seen; of one that is mapped to be written, the device sees what was written when the guard is gone.
    pub fn access(&self) -> CpuAccess<'_> {
        let cpu = if self.mapping.is_writable() {
            CpuUse::Write
        } else {
            CpuUse::Read
        };
        CpuAccess::begin(&self.mapping, self.dma_buf.as_deref().map(AsFd::as_fd), cpu)
    }

    /// Bytes that it holds.
    pub fn size(&self) -> usize {
        self.mapping.size()
    }
}
