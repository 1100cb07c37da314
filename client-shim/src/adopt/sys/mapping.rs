//! Stretches of memory, and mappings that move over one another.

use std::ffi::c_void;

use rustix::fd::AsFd;
use rustix::io::Result;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use super::with_errno_kept;

/// Addresses of this process, whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::adopt) struct Stretch {
    pub(in crate::adopt) start: usize,
    /// Bytes; `start + len` does not wrap around.
    pub(in crate::adopt) len: usize,
}

impl Stretch {
    pub(in crate::adopt) fn end(self) -> usize {
        self.start.saturating_add(self.len)
    }

    pub(in crate::adopt) fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    pub(super) fn pointer(self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.start)
    }
}

/// Memory that is ours alone, at an address that the kernel has chosen: unmapped with it.
#[derive(Debug)]
pub(in crate::adopt) struct Mapping(Stretch);

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: only we know the address, and nobody has a reference into it.
        let _ = unsafe { rustix::mm::munmap(self.0.pointer(), self.0.len) };
    }
}

impl Mapping {
    /// The first `len` bytes of `file`, shared.
    pub(in crate::adopt) fn of_file(file: impl AsFd, len: usize) -> Result<Self> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address that is free.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, file, 0) }?;
        Ok(Self(Stretch {
            start: start.expose_provenance(),
            len,
        }))
    }

    /// New memory, for reading and writing.
    pub(in crate::adopt) fn anonymous(len: usize) -> Result<Self> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address that is free.
        let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }?;
        Ok(Self(Stretch {
            start: start.expose_provenance(),
            len,
        }))
    }

    /// Takes the pages away from `stretch`, which stays mapped and is empty afterwards; both in one step for every other
    /// thread (`MREMAP_DONTUNMAP`). The program's pages, their advice and their place in its mapping come along.
    pub(in crate::adopt) fn taken_from(stretch: Stretch) -> Result<Self> {
        let (from, len) = (stretch.pointer(), stretch.len);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        let anywhere = std::ptr::null_mut::<c_void>();
        // libc's: the kernel reads the fifth argument here, too (mm/mremap.c, `mremap_to`), and rustix passes none.
        let start = with_errno_kept(|| {
            // SAFETY: the program has given this memory to a driver, to be written at any time: no reference of ours is
            // in it, and the caller has seen to those who touch it meanwhile.
            let start = unsafe { libc::mremap(from, len, len, flags, anywhere) };
            (start != libc::MAP_FAILED).then_some(start)
        })?;
        Ok(Self(Stretch {
            start: start.expose_provenance(),
            len: stretch.len,
        }))
    }

    pub(in crate::adopt) fn stretch(&self) -> Stretch {
        self.0
    }

    /// It goes to `place`, of the same length, and what was there is gone; both in one step for every other thread.
    ///
    /// # Errors
    /// The mapping, where it was: the kernel refuses (too many mappings) before it touches either side
    /// (mm/mremap.c, `mremap_to`).
    pub(in crate::adopt) fn over(self, place: Stretch) -> std::result::Result<(), Self> {
        let from = self.0;
        if from.len != place.len {
            return Err(self);
        }
        let flags = MremapFlags::MAYMOVE;
        // SAFETY: `from` is ours, and `place` is either the program's, see `taken_from`, or ours.
        let moved =
            unsafe { rustix::mm::mremap_fixed(from.pointer(), from.len, from.len, flags, place.pointer()) };
        if moved.is_err() {
            return Err(self);
        }
        std::mem::forget(self);
        Ok(())
    }

    /// Its first `bytes`, and the rest where there is one.
    pub(in crate::adopt) fn split(self, bytes: usize) -> (Self, Option<Self>) {
        let Stretch { start, len } = self.0;
        if bytes >= len {
            return (self, None);
        }
        std::mem::forget(self);
        let rest = Stretch {
            start: start + bytes,
            len: len - bytes,
        };
        (Self(Stretch { start, len: bytes }), Some(Self(rest)))
    }

    /// Both, which lay side by side, in one again.
    pub(in crate::adopt) fn join(self, rest: Self) -> Self {
        let whole = Stretch {
            start: self.0.start,
            len: self.0.len + rest.0.len,
        };
        std::mem::forget(self);
        std::mem::forget(rest);
        Self(whole)
    }

    /// Leaves it where it is, for ever.
    pub(in crate::adopt) fn forget(self) {
        std::mem::forget(self);
    }

    /// Copies all of it to `to`, of the same length.
    pub(in crate::adopt) fn copy_to(&self, to: &Self) {
        let (source, target) = (self.0.pointer().cast::<u8>(), to.0.pointer().cast::<u8>());
        // SAFETY: two mappings that are ours alone, of at least that length, readable and writable.
        unsafe { std::ptr::copy_nonoverlapping(source, target, self.0.len.min(to.0.len)) };
    }

    /// What the program may do with it, once it is the program's.
    pub(in crate::adopt) fn protect(&self, prot: MprotectFlags) -> Result<()> {
        // SAFETY: it is ours; a reference into it there is none.
        unsafe { rustix::mm::mprotect(self.0.pointer(), self.0.len, prot) }
    }

    /// Frees its pages, and keeps the addresses.
    ///
    /// # Errors
    /// The pages stay, with what is in them.
    pub(in crate::adopt) fn discard(&self) -> Result<()> {
        self.advise(Advice::LinuxDontNeed)
            // The program has locked everything that it has since (mlockall). Linux 5.18.
            .or_else(|_| self.advise(Advice::LinuxDontneedLocked))
    }

    fn advise(&self, advice: Advice) -> Result<()> {
        // SAFETY: it is ours, and its content is not looked at through references.
        unsafe { rustix::mm::madvise(self.0.pointer(), self.0.len, advice) }
    }
}
