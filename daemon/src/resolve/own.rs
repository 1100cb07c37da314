//! What is our own. The dma-bufs: what a provider has made, and what a client with the shim has mapped in place of a buffer of its
//! device, found by the inode of a mapping whatever became of the client's fd.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vidcompat_proto::abi::v4l2::V4l2ExportBuffer;

use super::screen::Screens;
use super::{CopyBy, Found, Importable, Kind, Look};
use crate::backend::framebuffer::ScreenMemory;
use crate::sys::{Vma, field, own_fdinfo};

/// What of ours can stand behind a pointer.
#[derive(Debug, Default)]
pub struct OwnBuffers {
    /// The dma-bufs of all sessions, by `st_dev` and `st_ino`. An entry ends with its dma-buf or its session.
    buffers: Mutex<HashMap<(u64, u64), Known>>,
    screens: Screens,
}

#[derive(Debug)]
struct Known {
    fd: Held,
    /// As fdinfo names it.
    exporter: String,
}

#[derive(Debug)]
enum Held {
    /// As long as its owner has it.
    Ours(Weak<OwnedFd>),
    /// Nobody has the fd, which would keep the buffer busy: it can be exported again.
    Again(Weak<dyn Exports>, Export),
}

impl Held {
    fn is_there(&self) -> bool {
        match self {
            Self::Ours(fd) => fd.strong_count() > 0,
            Self::Again(exports, _) => exports.strong_count() > 0,
        }
    }
}

/// A buffer of a device's own queue.
#[derive(Clone, Copy, Debug)]
pub struct Export {
    /// Which.
    pub request: V4l2ExportBuffer,
    /// As long as the buffer has this name.
    pub name: u64,
}

/// Who has such a queue.
pub trait Exports: Send + Sync + std::fmt::Debug {
    /// Exports the buffer once more, to be read and written, if it is still there.
    fn export_again(&self, export: &Export) -> Option<OwnedFd>;
}

impl OwnBuffers {
    /// Remembers `fd` as long as it is open.
    ///
    /// # Errors
    /// What fstat and fdinfo say.
    pub fn add(&self, fd: &Arc<OwnedFd>) -> io::Result<()> {
        self.insert(fd, Held::Ours(Arc::downgrade(fd))).map(drop)
    }

    /// Remembers what `fd` is an export of. A dma-buf's inode number is never used again. What comes back is what it is known
    /// by: `st_dev`, `st_ino`, and its exporter.
    ///
    /// # Errors
    /// As [`OwnBuffers::add`].
    pub fn add_export(
        &self,
        fd: &OwnedFd,
        exports: Weak<dyn Exports>,
        export: Export,
    ) -> io::Result<(u64, u64, String)> {
        self.insert(fd, Held::Again(exports, export))
    }

    /// The same of what a daemon before us has exported.
    pub fn add_export_again(
        &self,
        key: (u64, u64),
        exporter: &str,
        exports: Weak<dyn Exports>,
        export: Export,
    ) {
        let known = Known {
            fd: Held::Again(exports, export),
            exporter: exporter.to_owned(),
        };
        let mut all = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(key, known);
    }

    /// Remembers `memory`, which programs map as what has the `st_dev` and `st_ino` of `key`, as long as its owner has it.
    pub fn add_screen(&self, key: (u64, u64), memory: &Arc<dyn ScreenMemory>) {
        self.screens.add(key, memory);
    }

    pub(super) fn screens(&self) -> &Screens {
        &self.screens
    }

    fn insert(&self, fd: &OwnedFd, held: Held) -> io::Result<(u64, u64, String)> {
        let stat = rustix::fs::fstat(fd)?;
        let fdinfo = own_fdinfo(fd)?;
        let exporter = field(&fdinfo, "exp_name").unwrap_or_default().to_owned();
        let mut known = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, known| known.fd.is_there());
        forget_oldest(&mut known, &held);
        let told = (stat.st_dev, stat.st_ino, exporter.clone());
        known.insert((stat.st_dev, stat.st_ino), Known { fd: held, exporter });
        Ok(told)
    }

    /// Who exports `fd`, if it is known.
    pub fn exporter(&self, fd: &Arc<OwnedFd>) -> Option<String> {
        let ours = Arc::as_ptr(fd);
        let known = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |known: &&Known| matches!(&known.fd, Held::Ours(fd) if fd.as_ptr() == ours);
        known.values().find(is_it).map(|known| known.exporter.clone())
    }

    fn find(&self, vma: &Vma) -> Option<(Arc<OwnedFd>, String)> {
        let (exports, export, exporter) = {
            let known = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
            let known = known.get(&(vma.st_dev(), vma.inode))?;
            match &known.fd {
                Held::Ours(fd) => return Some((fd.upgrade()?, known.exporter.clone())),
                Held::Again(exports, export) => (exports.upgrade()?, *export, known.exporter.clone()),
            }
        };
        // Not under the lock: this asks a driver.
        let fd = exports.export_again(&export)?;
        Some((Arc::new(fd), exporter))
    }
}

/// A client may map its buffers as often as it likes: of each session so many exports are remembered.
const MOST_EXPORTS: usize = 512;

/// Makes room for another export of the same session. Inode numbers of dma-bufs grow.
fn forget_oldest(known: &mut HashMap<(u64, u64), Known>, held: &Held) {
    let Held::Again(exports, _) = held else { return };
    let same = |known: &Known| matches!(&known.fd, Held::Again(other, _) if other.ptr_eq(exports));
    let of_session = known.iter().filter(|(_, known)| same(known)).map(|(key, _)| *key);
    let of_session: Vec<_> = of_session.collect();
    if of_session.len() >= MOST_EXPORTS
        && let Some(oldest) = of_session.iter().min_by_key(|(_, inode)| *inode)
    {
        known.remove(oldest);
    }
}

/// See the module.
pub(super) struct Own;

impl Kind for Own {
    fn name(&self) -> &'static str {
        "our own buffer"
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        // The mappings of heaps' and vb2's dma-bufs begin where the offset says.
        let (fd, exporter) = look.own.find(vma)?;
        let size = rustix::fs::seek(&*fd, rustix::fs::SeekFrom::End(0)).ok()?;
        let offset = vma.offset + (range.start - vma.start);
        let file = Arc::new(File::from(fd.try_clone().ok()?));
        Some(Found {
            what: format!("our own buffer (dma-buf {})", vma.inode),
            import: look.may_import(&exporter).map(|()| Importable {
                fd,
                exporter,
                inode: vma.inode,
                size,
                offset,
            }),
            copy: Ok(CopyBy::Object {
                file,
                offset: offset / 4096 * 4096,
                skip: offset % 4096,
                sync: true,
            }),
            frame: None,
            flush: None,
        })
    }
}
