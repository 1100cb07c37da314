//! System calls that no safe crate has: ioctl with any command, and memory of our own to give to drivers.
//!
//! The only module with `unsafe`, together with its parts `area` and `dma_buf`. A driver (or the daemon) writes to the memory of
//! USERPTR buffers long after the ioctl that named it, so such memory is always [`Pages`]: mapped here, never behind a
//! Rust reference, and read and written through `/proc/self/mem`, where a hole is an error and not a signal.

mod area;
mod dma_buf;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::ensure;
use nix::errno::Errno;
use nix::sys::signal::{SigHandler, Signal};
use zerocopy::{FromBytes, IntoBytes};

pub use area::{Area, HUGE, Rights, Source};
pub use dma_buf::DmaBuf;

/// Size of a page here.
pub const PAGE: usize = 4096;

/// `_IOC_SIZE`
const fn size_of_command(command: u64) -> usize {
    // 14 bits always fit.
    #[allow(clippy::cast_possible_truncation)]
    let size = (command >> 16 & 0x3fff) as usize;
    size
}

/// ioctl with a struct, which is read and written in place.
pub fn ioctl<T: FromBytes + IntoBytes>(fd: impl AsFd, command: u64, argument: &mut T) -> Result<i32, Errno> {
    assert!(
        size_of_command(command) <= size_of::<T>(),
        "the kernel would go beyond the struct"
    );
    // SAFETY: the kernel copies `_IOC_SIZE` bytes in and out, which T has room for, and T may hold any bytes.
    // What the struct points to is memory of `Pages`, or no memory at all.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), command, std::ptr::from_mut(argument)) })
}

/// ioctl whose argument lies in `pages` at `offset`; the memory there may be missing or read-only.
pub fn ioctl_in(fd: impl AsFd, command: u64, pages: &Pages, offset: usize) -> Result<i32, Errno> {
    assert!(
        offset + size_of_command(command) <= pages.len,
        "the kernel would go beyond the pages"
    );
    let address = pages.address + offset;
    // SAFETY: the kernel copies at most `_IOC_SIZE` bytes, to memory that belongs to `pages`.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), command, address) })
}

/// As [`ioctl_in`], by the entry that a 64-bit kernel has for 32-bit programs: to the driver the caller is one. The pages
/// must be from [`Pages::below_4g`].
#[cfg(target_arch = "x86_64")]
pub fn ioctl32_in(fd: impl AsFd, command: u32, pages: &Pages, offset: usize) -> Result<i32, Errno> {
    assert!(
        offset + size_of_command(command.into()) <= pages.len,
        "the kernel would go beyond the pages"
    );
    // Number 54 of that entry.
    let mut result = 54_u64;
    // SAFETY: the kernel copies at most `_IOC_SIZE` bytes, to memory that belongs to `pages`; r8 to r11 are all that it
    // may leave changed, and rbx, which the compiler keeps to itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg {fd:r}, rbx",
            "int 0x80",
            "xchg {fd:r}, rbx",
            fd = inout(reg) i64::from(fd.as_fd().as_raw_fd()) => _,
            inout("rax") result,
            in("rcx") u64::from(command),
            in("rdx") pages.at(offset),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // An `int`; the upper half is nothing.
    #[allow(clippy::cast_possible_truncation)]
    let result = (result as u32).cast_signed();
    if result < 0 {
        Err(Errno::from_raw(-result))
    } else {
        Ok(result)
    }
}

/// ioctl with a null pointer, or with 0 for one that takes a number.
pub fn ioctl_null(fd: impl AsFd, command: u64) -> Result<i32, Errno> {
    // SAFETY: nothing can be written through a null pointer.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), command, 0usize) })
}

/// read(2) of at most `len` bytes into `pages` from `offset` on; the memory there may be missing or read-only.
pub fn read(fd: impl AsFd, pages: &Pages, offset: usize, len: usize) -> Result<usize, Errno> {
    assert!(offset + len <= pages.len, "beyond the pages");
    let address = std::ptr::with_exposed_provenance_mut(pages.address + offset);
    // SAFETY: the kernel writes to memory that belongs to `pages`, to which there are no references.
    let count = Errno::result(unsafe { libc::read(fd.as_fd().as_raw_fd(), address, len) })?;
    // Not negative.
    Ok(count.unsigned_abs())
}

/// Does mmap of the file give memory? It is unmapped at once.
pub fn try_mmap(fd: impl AsFd, len: usize) -> Result<(), Errno> {
    map(0, len, libc::MAP_SHARED, fd.as_fd().as_raw_fd()).map(|address| unmap(address, len))
}

fn map(hint: usize, len: usize, flags: i32, fd: i32) -> Result<usize, Errno> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let hint = std::ptr::without_provenance_mut(hint);
    // SAFETY: without MAP_FIXED a new mapping touches no memory that is in use.
    let address = unsafe { libc::mmap(hint, len, protection, flags, fd, 0) };
    if address == libc::MAP_FAILED {
        Err(Errno::last())
    } else {
        Ok(address.addr())
    }
}

fn unmap(address: usize, len: usize) {
    // SAFETY: only ever called with (parts of) mappings of this module, to which there are no references.
    unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(address), len) };
}

/// A number of an fd that means one file after the other.
#[derive(Debug)]
pub struct Slot(OwnedFd);

impl AsFd for Slot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Slot {
    /// A new number, for this file.
    pub fn new(file: BorrowedFd<'_>) -> std::io::Result<Self> {
        file.try_clone_to_owned().map(Self)
    }

    /// Makes it another file's, in one step.
    pub fn put(&self, file: &impl AsFd) -> Result<(), Errno> {
        let (from, to) = (file.as_fd().as_raw_fd(), self.0.as_raw_fd());
        // SAFETY: the number is ours, and stays an open fd; what it means matters to nobody but the tests.
        Errno::result(unsafe { libc::dup3(from, to, libc::O_CLOEXEC) }).map(drop)
    }
}

/// Lets SIGINT and SIGQUIT end our children again: a shell that starts something in the background has them ignored.
pub fn default_signals() -> Result<(), Errno> {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: the default action is no handler that could do anything wrong.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// What may be done with a part of [`Pages`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    ReadOnly,
    /// Nothing.
    None,
}

/// Anonymous memory, at addresses that the kernel gives to nobody who does not ask for them: a hole in it stays one.
#[derive(Debug)]
pub struct Pages {
    address: usize,
    len: usize,
    mem: File,
}

impl Pages {
    /// At least `len` bytes.
    pub fn new(len: usize) -> anyhow::Result<Self> {
        static NEXT: AtomicUsize = AtomicUsize::new(0x1000_0000_0000);
        let len = len.next_multiple_of(PAGE);
        // Some room between two, so that running off the end meets nothing.
        let hint = NEXT.fetch_add(len + 16 * PAGE, Ordering::Relaxed);
        let mem = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
        let address = map(hint, len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        ensure!(address == hint, "no memory at {hint:#x}");
        Ok(Self { address, len, mem })
    }

    /// At least `len` bytes that a 32-bit pointer reaches.
    #[cfg(target_arch = "x86_64")]
    pub fn below_4g(len: usize) -> anyhow::Result<Self> {
        let len = len.next_multiple_of(PAGE);
        let mem = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        let address = map(0, len, flags, -1)?;
        Ok(Self { address, len, mem })
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The address of byte `offset`.
    pub fn at(&self, offset: usize) -> u64 {
        self.address as u64 + offset as u64
    }

    /// A copy of `len` bytes from `offset`.
    pub fn read(&self, offset: usize, len: usize) -> anyhow::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.mem.read_exact_at(&mut bytes, self.at(offset))?;
        Ok(bytes)
    }

    /// Puts `bytes` at `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> anyhow::Result<()> {
        assert!(offset + bytes.len() <= self.len, "beyond the pages");
        Ok(self.mem.write_all_at(bytes, self.at(offset))?)
    }

    /// Changes what may be done with `len` bytes from `offset` (whole pages).
    pub fn protect(&self, offset: usize, len: usize, access: Access) -> Result<(), Errno> {
        assert!(offset + len <= self.len, "beyond the pages");
        let protection = match access {
            Access::ReadOnly => libc::PROT_READ,
            Access::None => libc::PROT_NONE,
        };
        let address = std::ptr::with_exposed_provenance_mut(self.address + offset);
        // SAFETY: the pages are ours and nobody has a reference to them.
        Errno::result(unsafe { libc::mprotect(address, len, protection) }).map(drop)
    }

    /// Unmaps `len` bytes from `offset` (whole pages).
    pub fn unmap(&self, offset: usize, len: usize) {
        assert!(offset + len <= self.len, "beyond the pages");
        unmap(self.address + offset, len);
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        unmap(self.address, self.len);
    }
}
