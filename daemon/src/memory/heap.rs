//! Dma-heap buffers.

use std::io;

use dma_heap::HeapKind;

use super::{BounceBuffer, Charge};
use crate::sys::{CpuUse, Mapping};

/// Why a heap gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    /// The heap refused.
    #[error("the dma-heap has no memory: {0}")]
    Allocate(#[source] io::Error),
    /// The buffer cannot be mapped.
    #[error("a dma-heap buffer cannot be mapped: {0}")]
    Map(#[source] io::Error),
}

/// The system heap: cached memory in pieces of up to 1 MiB, zeroed.
#[derive(Debug)]
pub struct Heap {
    heap: dma_heap::Heap,
}

impl Heap {
    /// Opens `/dev/dma_heap/system`.
    ///
    /// # Errors
    /// `ENOENT` on kernels without it (Debian's 6.1).
    pub fn system() -> io::Result<Self> {
        Ok(Self {
            heap: dma_heap::Heap::new(HeapKind::System)?,
        })
    }

    /// A buffer of `len` bytes, rounded up to pages, mapped for what `cpu` says. `charge` pays for it: a heap has no bound of its own, it drives
    /// the machine into the OOM killer (KERNEL.md D).
    ///
    /// # Errors
    /// See [`HeapError`].
    pub fn allocate(&self, len: u32, cpu: CpuUse, charge: Charge) -> Result<BounceBuffer, HeapError> {
        let page = 4096;
        let size = (len as usize).next_multiple_of(page);
        let dma_buf = self.heap.allocate(size).map_err(HeapError::Allocate)?;
        let mapping = Mapping::shared(&dma_buf, 0, size, cpu).map_err(HeapError::Map)?;
        Ok(BounceBuffer::from_dma_buf(dma_buf, mapping, charge))
    }
}
