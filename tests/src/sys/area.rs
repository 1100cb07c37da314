//! A stretch of addresses of our own into which anything can be mapped: files, devices, dma-bufs, or nothing.
//!
//! Its bytes are read and written by write(2) and read(2) of a memfd: the kernel copies through the very pointer that
//! the suite gives to a driver, also where `/proc/self/mem` does not reach (device memory), and a hole is EFAULT.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{PAGE, unmap};

/// Size of a huge page.
pub const HUGE: usize = 2 << 20;

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    ReadWrite,
    ReadOnly,
    None,
}

impl Rights {
    const fn protection(self) -> i32 {
        match self {
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
            Self::ReadOnly => libc::PROT_READ,
            Self::None => libc::PROT_NONE,
        }
    }
}

/// What is to be mapped.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Memory of our own.
    Anonymous,
    /// The same, shared with whom we fork.
    SharedAnonymous,
    /// The same in huge pages.
    Huge,
    /// A file from this offset on, `MAP_SHARED`.
    Shared(BorrowedFd<'a>, u64),
    /// A file from this offset on, `MAP_PRIVATE`.
    Private(BorrowedFd<'a>, u64),
}

#[derive(Debug)]
enum Owner {
    /// What was reserved: where, and how much.
    Reserved(usize, usize),
    /// malloc gave it.
    Malloc(usize),
}

/// The stretch. Nothing is mapped beside it.
#[derive(Debug)]
pub struct Area {
    address: usize,
    len: usize,
    owner: Owner,
}

impl Area {
    /// `len` bytes in whole pages, at the beginning of a huge page, with nothing mapped in them yet.
    pub fn reserve(len: usize) -> anyhow::Result<Self> {
        let len = len.next_multiple_of(PAGE);
        let total = len + 2 * HUGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED a new mapping touches no memory that is in use.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        ensure!(base != libc::MAP_FAILED, "no addresses: {}", Errno::last());
        let base = base.expose_provenance();
        Ok(Self {
            // There is a page before it.
            address: (base + PAGE).next_multiple_of(HUGE),
            len,
            owner: Owner::Reserved(base, total),
        })
    }

    /// `len` bytes that malloc gives.
    pub fn malloc(len: usize) -> anyhow::Result<Self> {
        // SAFETY: any size is allowed.
        let address = unsafe { libc::malloc(len) };
        ensure!(!address.is_null(), "malloc of {len} bytes");
        let address = address.expose_provenance();
        Ok(Self {
            address,
            len,
            owner: Owner::Malloc(address),
        })
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The address of byte `at`.
    pub fn at(&self, at: usize) -> u64 {
        self.address as u64 + at as u64
    }

    /// Maps `len` bytes at byte `at` (a page's first), instead of what is there.
    pub fn map(&self, at: usize, len: usize, source: Source<'_>, rights: Rights) -> Result<(), Errno> {
        assert!(
            at + len.next_multiple_of(PAGE) <= self.len && matches!(self.owner, Owner::Reserved(..)),
            "not in the area"
        );
        let (flags, fd, offset) = match source {
            Source::Anonymous => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
            Source::SharedAnonymous => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0),
            Source::Huge => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, -1, 0),
            Source::Shared(fd, offset) => (libc::MAP_SHARED, fd.as_raw_fd(), offset),
            Source::Private(fd, offset) => (libc::MAP_PRIVATE, fd.as_raw_fd(), offset),
        };
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let to = std::ptr::with_exposed_provenance_mut(self.address + at);
        let flags = flags | libc::MAP_FIXED;
        // SAFETY: all of it lies within the addresses that `reserve` got for this area, to which there are no references.
        let mapped = unsafe { libc::mmap(to, len, rights.protection(), flags, fd, offset) };
        if mapped == libc::MAP_FAILED {
            Err(Errno::last())
        } else {
            Ok(())
        }
    }

    /// Takes away what is mapped in these bytes (whole pages); the addresses stay ours.
    pub fn unmap(&self, at: usize, len: usize) -> Result<(), Errno> {
        self.map(at, len, Source::Anonymous, Rights::None)
    }

    /// Changes what may be done with these bytes (whole pages).
    pub fn protect(&self, at: usize, len: usize, rights: Rights) -> Result<(), Errno> {
        assert!(
            at + len.next_multiple_of(PAGE) <= self.len && matches!(self.owner, Owner::Reserved(..)),
            "not in the area"
        );
        let address = std::ptr::with_exposed_provenance_mut(self.address + at);
        // SAFETY: the pages are ours and nobody has a reference to them.
        Errno::result(unsafe { libc::mprotect(address, len, rights.protection()) }).map(drop)
    }

    /// mlock(2)
    pub fn lock(&self) -> Result<(), Errno> {
        let address = std::ptr::with_exposed_provenance(self.address);
        // SAFETY: it changes nothing of what is there.
        Errno::result(unsafe { libc::mlock(address, self.len) }).map(drop)
    }

    /// What is mapped at byte `at`, as `/proc/self/maps` calls it: `memory` if it has no name.
    pub fn named(&self, at: usize) -> anyhow::Result<String> {
        let address = self.at(at);
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let is_there = |line: &&str| {
            let range = line
                .split_whitespace()
                .next()
                .and_then(|range| range.split_once('-'));
            let number = |text| u64::from_str_radix(text, 16).unwrap_or_default();
            range.is_some_and(|(from, to)| (number(from)..number(to)).contains(&address))
        };
        let line = maps.lines().find(is_there).context("nothing is mapped there")?;
        Ok(line.split_whitespace().nth(5).unwrap_or("memory").to_owned())
    }

    /// A copy of `len` bytes from `at` on.
    pub fn read(&self, at: usize, len: usize) -> anyhow::Result<Vec<u8>> {
        assert!(at + len <= self.len, "beyond the area");
        let mut copy = File::from(memfd_create(c"copy", MFdFlags::MFD_CLOEXEC)?);
        let from = std::ptr::with_exposed_provenance(self.address + at);
        // SAFETY: only the kernel reads there; what is not mapped is EFAULT.
        let count = Errno::result(unsafe { libc::write(copy.as_raw_fd(), from, len) });
        let count = count.with_context(|| format!("reading {len} bytes from {at}"))?;
        // Not negative.
        ensure!(
            count.unsigned_abs() == len,
            "only {count} of {len} bytes can be read"
        );
        copy.rewind()?;
        let mut bytes = Vec::with_capacity(len);
        copy.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Puts `bytes` at `at`.
    pub fn write(&self, at: usize, bytes: &[u8]) -> anyhow::Result<()> {
        assert!(at + bytes.len() <= self.len, "beyond the area");
        let mut copy = File::from(memfd_create(c"copy", MFdFlags::MFD_CLOEXEC)?);
        copy.write_all(bytes)?;
        copy.rewind()?;
        let to = std::ptr::with_exposed_provenance_mut(self.address + at);
        // SAFETY: only the kernel writes there, to memory of this area without references; what is not mapped is EFAULT.
        let count = Errno::result(unsafe { libc::read(copy.as_raw_fd(), to, bytes.len()) });
        let count = count.with_context(|| format!("writing {} bytes at {at}", bytes.len()))?;
        ensure!(
            count.unsigned_abs() == bytes.len(),
            "only {count} bytes can be written"
        );
        Ok(())
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        match self.owner {
            Owner::Reserved(base, total) => unmap(base, total),
            // SAFETY: malloc gave it, and it is freed once; there are no references to it.
            Owner::Malloc(address) => unsafe {
                libc::free(std::ptr::with_exposed_provenance_mut(address));
            },
        }
    }
}
