//! CPU access to a buffer that a device writes or reads.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Once;

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
    /// `mapping` is going to be used so; where it is a dma-buf's, that is synced.
    pub fn begin(mapping: &'a Mapping, dma_buf: Option<BorrowedFd<'a>>, cpu: CpuUse) -> Self {
        if let Some(fd) = dma_buf {
            complain(sync_start(fd, cpu));
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
        if let Some(fd) = self.dma_buf {
            complain(sync_end(fd, self.cpu));
        }
    }
}

/// Syncs `dma_buf` for one access, which the caller or a client makes elsewhere.
pub fn sync(dma_buf: BorrowedFd<'_>, cpu: CpuUse) {
    complain(sync_start(dma_buf, cpu).and_then(|()| sync_end(dma_buf, cpu)));
}

/// The operator hears of it once: a client can bring an exporter that refuses at every frame.
fn complain(synced: io::Result<()>) {
    static TOLD: Once = Once::new();
    if let Err(error) = synced {
        tracing::debug!(%error, "the exporter of a buffer refused a cache sync");
        TOLD.call_once(|| {
            tracing::warn!(
                %error,
                "the exporter of a buffer refused a cache sync, and frames may have stale bytes; said once"
            );
        });
    }
}
