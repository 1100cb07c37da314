//! A shared mapping of memory that others, devices among them, use at the same time.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use nix::libc::c_void;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, mmap, munmap};

use super::CpuUse;

/// `len` bytes of an object, mapped shared. Devices and other processes may change them at any time, so no Rust
/// reference to the bytes is ever made.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<c_void>,
    len: NonZeroUsize,
    writable: bool,
}

// SAFETY: the mapping is plain address space that belongs to no thread; it is used through system calls only.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method hands out a reference to the bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `object` from `offset`, for system calls of ours that use them as `cpu` says.
    ///
    /// # Errors
    /// What mmap says; `EINVAL` for an empty range.
    pub fn shared(object: impl AsFd, offset: i64, len: usize, cpu: CpuUse) -> io::Result<Self> {
        let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let protection = match cpu {
            CpuUse::Read => ProtFlags::PROT_READ,
            CpuUse::Write => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: the kernel picks a fresh address, so no mapping that something else relies on is replaced.
        let start = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, object, offset) }?;
        Ok(Self {
            start,
            len,
            writable: cpu == CpuUse::Write,
        })
    }

    /// May system calls of ours write to it?
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Bytes mapped; never 0.
    pub fn size(&self) -> usize {
        self.len.get()
    }

    /// Do `len` bytes from its byte `from` on lie in it?
    pub fn has(&self, from: usize, len: usize) -> bool {
        from.checked_add(len).is_some_and(|end| end <= self.size())
    }

    /// Faults every page in as a write to it would, and changes no byte (`MADV_POPULATE_WRITE`, Linux 5.14). Who watches
    /// for writes, such as a framebuffer with deferred I/O, takes the pages for changed.
    ///
    /// # Errors
    /// `EFAULT`: a page is no more; `EINVAL`: it is memory without pages.
    pub fn populate_write(&self) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // SAFETY: the range is this mapping, alive while it is borrowed; the call changes no byte and unmaps nothing.
        unsafe { nix::sys::mman::madvise(self.start, self.len.get(), MmapAdvise::MADV_POPULATE_WRITE) }?;
        Ok(())
    }

    /// Fills it with zeros, and so finds out whether it can be written.
    ///
    /// # Errors
    /// `EFAULT`: a page cannot be written, or is no more.
    pub fn clear(&self) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let zero = File::open("/dev/zero")?;
        let mut done = 0;
        while done < self.size() {
            let at = self.host_ptr().wrapping_byte_add(done);
            // SAFETY: the range is the rest of this mapping, alive while it is borrowed. The kernel writes to it, and says
            // EFAULT where that cannot be done; no Rust reference to the bytes exists.
            let read = unsafe { nix::libc::read(zero.as_raw_fd(), at, self.size() - done) };
            match usize::try_from(read) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Address in this process.
    pub fn host_ptr(&self) -> *mut c_void {
        self.start.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `shared` and nothing else knows its address.
        if let Err(error) = unsafe { munmap(self.start, self.len.get()) } {
            tracing::error!(%error, "a buffer's mapping could not be released");
        }
    }
}
