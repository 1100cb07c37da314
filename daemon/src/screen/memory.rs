//! The memory of a screen: one object for its whole life, so that what programs have mapped survives every change of mode.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, SealFlags};
use vidcompat_proto::Errno;

use crate::backend::output::Direct;
use crate::sys::{
    CpuUse, LeasedFile, Mapping, SteadyMemory, field, own_fdinfo, page_size, sync_end, sync_start, udmabuf,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    bytes: SteadyMemory,
    kind: Kind,
    /// `st_dev` and `st_ino` of what programs map.
    inode: (u64, u64),
    /// A device has written to it since the CPU has looked.
    device_wrote: AtomicBool,
}

#[derive(Debug)]
enum Kind {
    /// A memfd, which is shown by conversion.
    Shadow {
        file: LeasedFile<File>,
        /// Of the same pages, for devices. A program that may write can punch a hole into the memfd, after which the
        /// dma-buf still has the old pages: what devices write is then seen by nobody. It harms that picture only, and the
        /// one seal against it (F_SEAL_WRITE) would keep programs from drawing.
        /// Made when it is asked for: it takes all pages of the memfd.
        dma_buf: OnceLock<Option<Exported>>,
    },
    /// What hardware shows.
    Direct {
        dma_buf: Arc<OwnedFd>,
        /// fdinfo's count with nobody but us.
        count: Option<u64>,
        mirror: Mutex<Option<Mirror>>,
    },
}

/// A dma-buf of a memfd's pages.
#[derive(Debug)]
struct Exported {
    dma_buf: Arc<OwnedFd>,
    /// fdinfo's count with nobody but us.
    count: Option<u64>,
}

/// A copy for programs that may only read: a dma-buf has one struct file, which is writable, and cannot be opened again.
#[derive(Debug)]
struct Mirror {
    file: File,
    bytes: SteadyMemory,
}

/// What a program maps.
pub(super) struct Lent {
    pub(super) fd: OwnedFd,
    pub(super) by: By,
}

/// How the memory and what a program maps are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// It is the memory, by a file of the program's own.
    File,
    /// It is the memory, by the only file of it.
    OnlyFile,
    /// A copy, which [`Memory::refresh_mirror`] keeps like the memory.
    Mirror,
}

impl Memory {
    /// `len` bytes of zeros, which only conversion can show.
    pub(super) fn shadow(len: u32) -> io::Result<Self> {
        let (file, bytes) = sealed(c"vidcompat-screen", len)?;
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self {
            bytes,
            kind: Kind::Shadow {
                // The file that memfd_create has made is not counted among the writers; this one is.
                file: LeasedFile::new(open_again(&file, libc::O_RDWR)?)?,
                dma_buf: OnceLock::new(),
            },
            inode: (stat.st_dev, stat.st_ino),
            device_wrote: AtomicBool::new(false),
        })
    }

    /// The memory that an output shows as it is.
    pub(super) fn direct(direct: &Direct) -> io::Result<Self> {
        let len = usize::try_from(direct.size).map_err(|_| io::ErrorKind::InvalidInput)?;
        let dma_buf = Arc::clone(&direct.dma_buf);
        let bytes = SteadyMemory::map(&*dma_buf, len)?;
        let stat = rustix::fs::fstat(&*dma_buf)?;
        Ok(Self {
            bytes,
            kind: Kind::Direct {
                count: count(&dma_buf),
                dma_buf,
                mirror: Mutex::new(None),
            },
            inode: (stat.st_dev, stat.st_ino),
            device_wrote: AtomicBool::new(false),
        })
    }

    pub(super) fn is_direct(&self) -> bool {
        matches!(self.kind, Kind::Direct { .. })
    }

    pub(super) fn inode(&self) -> (u64, u64) {
        self.inode
    }

    pub(super) fn bytes(&self) -> &SteadyMemory {
        &self.bytes
    }

    pub(super) fn dma_buf(&self) -> Option<Arc<OwnedFd>> {
        match &self.kind {
            Kind::Shadow { file, dma_buf } => {
                let exported = dma_buf.get_or_init(|| self.udmabuf(file.file()));
                exported.as_ref().map(|exported| Arc::clone(&exported.dma_buf))
            }
            Kind::Direct { dma_buf, .. } => Some(Arc::clone(dma_buf)),
        }
    }

    fn udmabuf(&self, file: &File) -> Option<Exported> {
        let made = File::open("/dev/udmabuf").and_then(|device| {
            // A page that nobody has touched since fallocate is cleared when somebody first does (mm/shmem.c, `clear:` in
            // shmem_get_folio_gfp), after a device may have written to it by way of the udmabuf.
            Mapping::shared(file, 0, self.bytes.size(), CpuUse::Write)?.populate_write()?;
            udmabuf(device, file, 0, self.bytes.size() as u64)
        });
        match made {
            Ok(fd) => Some(Exported {
                count: count(&fd),
                dma_buf: Arc::new(fd),
            }),
            Err(error) => {
                tracing::debug!(%error, "a screen's memory cannot be had as a dma-buf");
                None
            }
        }
    }

    /// Makes sure that there is memory behind the first `len` bytes, which are going to be shown.
    ///
    /// # Errors
    /// `ENOMEM`, as vfb says where it has too little.
    pub(super) fn reserve(&self, len: u64) -> Result<(), Errno> {
        let Kind::Shadow { file, .. } = &self.kind else {
            return Ok(());
        };
        let len = len.min(self.bytes.size() as u64);
        rustix::fs::fallocate(file.file(), FallocateFlags::empty(), 0, len).map_err(|_| Errno::ENOMEM)
    }

    /// Copies what is at `offset` to `target`, for a read(2).
    ///
    /// # Errors
    /// The kernel has no memory.
    pub(super) fn read(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        let Kind::Shadow { file, .. } = &self.kind else {
            self.start(CpuUse::Read);
            let count = self
                .bytes
                .read(usize::try_from(offset).unwrap_or(usize::MAX), target);
            self.end(CpuUse::Read);
            return Ok(count);
        };
        if i64::try_from(offset).is_err() {
            return Ok(0);
        }
        self.start(CpuUse::Read);
        file.file().read_at(target, offset)
    }

    /// Copies `source` to `offset`, as much as there is room for, for a write(2).
    ///
    /// # Errors
    /// The kernel has no memory.
    pub(super) fn write(&self, offset: u64, source: &[u8]) -> io::Result<usize> {
        let left = (self.bytes.size() as u64).saturating_sub(offset);
        let len = source.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let source = &source[..len];
        let Kind::Shadow { file, .. } = &self.kind else {
            self.start(CpuUse::Write);
            let count = self
                .bytes
                .write(usize::try_from(offset).unwrap_or(usize::MAX), source);
            self.end(CpuUse::Write);
            return Ok(count);
        };
        if source.is_empty() {
            return Ok(0);
        }
        file.file().write_at(source, offset)
    }

    /// What a program maps that has the node open with `access` (`O_ACCMODE`) and asks for these `PROT_*` and `MAP_*`.
    ///
    /// It gets a file of its own that can do what the node's could. Of direct memory there is only one file: who has the
    /// node open for reading only, and who wants a private mapping, which dma-bufs refuse, gets a copy, which follows the
    /// memory as long as the node is open. There is one for all, whoever asks how often.
    ///
    /// # Errors
    /// `EACCES`: the node is not open for that. What making a file says.
    pub(super) fn lend(&self, access: libc::c_int, prot: u32, flags: u32) -> Result<Lent, Errno> {
        match &self.kind {
            Kind::Shadow { file, .. } => {
                open_again(file.file(), access).map(|file| (OwnedFd::from(file), By::File))
            }
            Kind::Direct { dma_buf, mirror, .. } => {
                let shared = flags & MAP_TYPE != libc::MAP_PRIVATE.cast_unsigned();
                if access == libc::O_WRONLY {
                    return Err(Errno::EACCES);
                } else if !shared {
                    self.mirrored(mirror).map(|fd| (fd, By::Mirror))
                } else if access == libc::O_RDWR {
                    dma_buf.try_clone().map(|fd| (fd, By::OnlyFile))
                } else if prot & libc::PROT_WRITE.cast_unsigned() != 0 {
                    return Err(Errno::EACCES);
                } else {
                    self.mirrored(mirror).map(|fd| (fd, By::Mirror))
                }
            }
        }
        .map(|(fd, by)| Lent { fd, by })
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }

    /// May anybody but us write to it, so that it has to be watched? `card`: the card holds direct memory now
    /// ([`crate::backend::output::Output::holds_direct`]).
    pub(super) fn others_may_write(&self, card: bool) -> bool {
        match &self.kind {
            Kind::Shadow { file, dma_buf } => {
                let exported = dma_buf.get().and_then(Option::as_ref);
                file.others_may_write()
                    || exported
                        .is_some_and(|exported| others_hold(count(&exported.dma_buf), exported.count, false))
            }
            Kind::Direct {
                dma_buf, count: ours, ..
            } => others_hold(count(dma_buf), *ours, card),
        }
    }

    fn mirrored(&self, mirror: &Mutex<Option<Mirror>>) -> io::Result<OwnedFd> {
        let mut mirror = mirror.lock().unwrap_or_else(PoisonError::into_inner);
        match mirror.as_ref() {
            None => *mirror = Some(self.copy()?),
            // Nobody may have looked at it for long.
            Some(mirror) => self.refresh(mirror),
        }
        let made = mirror
            .as_ref()
            .map(|mirror| open_again(&mirror.file, libc::O_RDONLY));
        Ok(made.ok_or(io::ErrorKind::NotFound)??.into())
    }

    fn copy(&self) -> io::Result<Mirror> {
        let len = u32::try_from(self.bytes.size()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (file, bytes) = sealed(c"vidcompat-screen-copy", len)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, u64::from(len))?;
        let mirror = Mirror { file, bytes };
        self.refresh(&mirror);
        Ok(mirror)
    }

    /// Brings the copy that readers of direct memory have up to date.
    pub(super) fn refresh_mirror(&self) {
        if let Kind::Direct { mirror, .. } = &self.kind {
            let mirror = mirror.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(mirror) = mirror.as_ref() {
                self.refresh(mirror);
            }
        }
    }

    fn refresh(&self, mirror: &Mirror) {
        let mut piece = vec![0; 64 << 10];
        let mut at = 0;
        self.start(CpuUse::Read);
        loop {
            let len = self.bytes.read(at, &mut piece);
            if len == 0 {
                break;
            }
            if mirror.bytes.differs(at, &piece[..len]) {
                mirror.bytes.write(at, &piece[..len]);
            }
            at += len;
        }
        self.end(CpuUse::Read);
    }

    /// A device has written to it.
    pub(super) fn device_wrote(&self) {
        self.device_wrote.store(true, Ordering::Release);
    }

    /// The CPU is going to use the bytes; [`Memory::end`] afterwards. A memfd's are the CPU's own, unless a device has written.
    pub(super) fn start(&self, cpu: CpuUse) {
        let wrote = self.device_wrote.swap(false, Ordering::AcqRel);
        match &self.kind {
            Kind::Shadow { dma_buf, .. } => {
                if let Some(Some(exported)) = dma_buf.get().filter(|_| wrote) {
                    crate::memory::sync(exported.dma_buf.as_fd(), CpuUse::Read);
                }
            }
            Kind::Direct { dma_buf, .. } => {
                if let Err(error) = sync_start(&**dma_buf, cpu) {
                    tracing::debug!(%error, "a screen's memory cannot be synced");
                }
            }
        }
    }

    pub(super) fn end(&self, cpu: CpuUse) {
        if let Kind::Direct { dma_buf, .. } = &self.kind
            && let Err(error) = sync_end(&**dma_buf, cpu)
        {
            tracing::debug!(%error, "a screen's memory cannot be synced");
        }
    }
}

/// How often an open card holds a dma-buf of its own memory that was given to it: for the object and for the handle
/// (drm_gem_prime_fd_to_handle, drm_prime_add_buf_handle). While it is closed, it does not.
const OF_CARD: u64 = 2;

/// Of mmap's flags, what kind of mapping it is: shared, private, or shared with flags checked.
const MAP_TYPE: u32 = 0xf;

/// A memfd that has its length for ever, and which only root can open anew. It takes pages when they are touched, or
/// reserved.
fn sealed(name: &std::ffi::CStr, len: u32) -> io::Result<(File, SteadyMemory)> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    // Who has a file for reading could otherwise open another for writing, through /proc/self/fd.
    rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::ftruncate(&fd, u64::from(len))?;
    // SEAL: a program must not seal it against our writing, or a device's.
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    let bytes = SteadyMemory::map(&fd, len)?;
    Ok((File::from(fd), bytes))
}

/// A file of its own of the same object, which can do no more than `access` says.
fn open_again(file: &File, access: libc::c_int) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut options = OpenOptions::new();
    match access {
        libc::O_WRONLY => options.write(true),
        libc::O_RDWR => options.read(true).write(true),
        _ => options.read(true),
    };
    options.custom_flags(libc::O_CLOEXEC).open(path)
}

/// How many hold a dma-buf: files, mappings and devices. `None`: this kernel does not say.
fn count(dma_buf: &OwnedFd) -> Option<u64> {
    let fdinfo = own_fdinfo(dma_buf).ok()?;
    field(&fdinfo, "count")?.parse().ok()
}

/// Does anybody hold a dma-buf but us, who are `ours` of those that are counted, and the card? Who cannot tell says yes.
fn others_hold(counted: Option<u64>, ours: Option<u64>, card: bool) -> bool {
    let most = ours.map(|ours| ours + if card { OF_CARD } else { 0 });
    counted.is_none_or(|counted| most.is_none_or(|most| counted > most))
}

/// As many bytes as are needed and whole pages, at most what a framebuffer can say.
pub(super) fn whole_pages(len: u64) -> io::Result<u32> {
    let page = page_size()? as u64;
    u32::try_from(len.next_multiple_of(page)).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::{By, Memory, others_hold};
    use crate::sys::{CpuUse, Mapping};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    const SHARED: u32 = libc::MAP_SHARED as u32;
    const WRITE: u32 = (libc::PROT_READ | libc::PROT_WRITE) as u32;

    #[test]
    fn a_program_gets_a_file_that_can_do_what_the_nodes_could() {
        let memory = Memory::shadow(8192).expect("memory");
        for (access, reads, writes) in [
            (libc::O_RDONLY, true, false),
            (libc::O_WRONLY, false, false),
            (libc::O_RDWR, true, true),
        ] {
            let lent = memory.lend(access, WRITE, SHARED).expect("a file");
            assert_eq!(lent.by, By::File);
            let flags = rustix::fs::fcntl_getfl(&lent.fd)
                .expect("flags")
                .bits()
                .cast_signed();
            assert_eq!(flags & libc::O_ACCMODE, access);
            assert_eq!(Mapping::shared(&lent.fd, 0, 8192, CpuUse::Read).is_ok(), reads);
            assert_eq!(Mapping::shared(&lent.fd, 0, 8192, CpuUse::Write).is_ok(), writes);
            assert!(File::from(lent.fd).set_len(4096).is_err());
        }
    }

    #[test]
    fn what_a_program_has_mapped_is_watched_until_it_is_gone() {
        let memory = Memory::shadow(8192).expect("memory");
        assert!(!memory.others_may_write(false));
        let reader = memory.lend(libc::O_RDONLY, 1, SHARED).expect("a file");
        let writer = memory.lend(libc::O_RDWR, WRITE, SHARED).expect("a file");
        let mapping = Mapping::shared(&writer.fd, 0, 8192, CpuUse::Write).expect("mapped");
        drop(writer);
        assert!(memory.others_may_write(false));
        drop(mapping);
        drop(reader);
        assert!(!memory.others_may_write(false));
    }

    #[test]
    fn the_card_counts_among_those_who_hold_direct_memory_only_while_it_does() {
        let held = |counted, card| others_hold(Some(counted), Some(2), card);
        assert_eq!(
            [2, 3, 4, 5].map(|counted| held(counted, false)),
            [false, true, true, true]
        );
        assert_eq!(
            [2, 3, 4, 5].map(|counted| held(counted, true)),
            [false, false, false, true]
        );
        assert!(others_hold(None, Some(2), false) && others_hold(Some(2), None, true));
    }

    #[test]
    fn the_files_are_of_the_inode_that_is_said_and_cannot_be_sealed_further() {
        let memory = Memory::shadow(4096).expect("memory");
        let lent = memory.lend(libc::O_RDWR, WRITE, SHARED).expect("a file");
        let stat = rustix::fs::fstat(&lent.fd).expect("stat");
        assert_eq!((stat.st_dev, stat.st_ino), memory.inode());
        assert_eq!(stat.st_mode & 0o777, 0o600);
        let seal = rustix::fs::fcntl_add_seals(&lent.fd, rustix::fs::SealFlags::FUTURE_WRITE);
        assert_eq!(seal, Err(rustix::io::Errno::PERM));
        assert!(std::fs::read_link(format!("/proc/self/fd/{}", lent.fd.as_raw_fd())).is_ok());
    }
}
