//! Our own dma-bufs: what a provider has made, found by the inode of a mapping whatever became of the client's fd.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{CopyBy, Found, Importable, Kind, Look};
use crate::sys::Vma;

/// The dma-bufs of all sessions, by `st_dev` and `st_ino`. An entry ends with its dma-buf, so no number is recycled
/// while it is here.
#[derive(Debug, Default)]
pub struct OwnBuffers(Mutex<HashMap<(u64, u64), Weak<OwnedFd>>>);

impl OwnBuffers {
    /// Remembers `fd` as long as it is open.
    ///
    /// # Errors
    /// What fstat says.
    pub fn add(&self, fd: &Arc<OwnedFd>) -> io::Result<()> {
        let stat = rustix::fs::fstat(fd)?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, fd| fd.strong_count() > 0);
        known.insert((stat.st_dev, stat.st_ino), Arc::downgrade(fd));
        Ok(())
    }

    fn find(&self, vma: &Vma) -> Option<Arc<OwnedFd>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(vma.st_dev(), vma.inode))?.upgrade()
    }
}

/// See the module.
pub(super) struct Own;

impl Kind for Own {
    fn name(&self) -> &'static str {
        "our own buffer"
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        let fd = look.own.find(vma)?;
        // Only heaps' dma-bufs are registered: their mappings begin where the offset says.
        let exporter = "system";
        let size = rustix::fs::seek(&*fd, rustix::fs::SeekFrom::End(0)).ok()?;
        let offset = vma.offset + (range.start - vma.start);
        let file = Arc::new(File::from(fd.try_clone().ok()?));
        Some(Found {
            what: format!("our own buffer (dma-buf {})", vma.inode),
            import: look.may_import(exporter).map(|()| Importable {
                fd,
                exporter: exporter.to_owned(),
                inode: vma.inode,
                size,
                offset,
                flush: None,
            }),
            copy: Ok(CopyBy::Object {
                file,
                offset: offset / 4096 * 4096,
                skip: offset % 4096,
                sync: true,
            }),
            frame: None,
        })
    }
}
