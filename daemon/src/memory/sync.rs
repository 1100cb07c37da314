//! CPU access to a buffer that a device writes or reads.

use std::os::fd::BorrowedFd;

use crate::sys::{CpuUse, Mapping, sync_end, sync_start};

/// Between begin and drop the CPU sees what the device wrote, and afterwards the device what the CPU wrote:
/// `DMA_BUF_IOCTL_SYNC` around the access, which vb2 never does for imports (videobuf2-core.c:415).
#[derive(Debug)]
pub struct CpuAccess<'a> {
    mapping: &'a Mapping,
    dma_buf: Option<BorrowedFd<'a>>,
    cpu: CpuUse,
}

impl<'a> CpuAccess<'a> {
    pub(super) fn begin(mapping: &'a Mapping, dma_buf: Option<BorrowedFd<'a>>, cpu: CpuUse) -> Self {
        if let Some(fd) = dma_buf
            && let Err(error) = sync_start(fd, cpu)
        {
            tracing::warn!(%error, "the exporter of a buffer refused a cache sync");
        }
        Self {
            mapping,
            dma_buf,
            cpu,
        }
    }

    /// The bytes.
    pub fn mapping(&self) -> &'a Mapping {
        self.mapping
    }
}

impl Drop for CpuAccess<'_> {
    fn drop(&mut self) {
        if let Some(fd) = self.dma_buf
            && let Err(error) = sync_end(fd, self.cpu)
        {
            tracing::warn!(%error, "the exporter of a buffer refused to end a cache sync");
        }
    }
}
