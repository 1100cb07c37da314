//! Memory of ours that is as accessible as a piece of a client's: where the client's ends or cannot be written, so does
//! this, and the kernel fails on it at the same byte.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use nix::libc::c_void;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect, munmap};
use nix::unistd::{SysconfVar, sysconf};

/// Bytes of a page.
///
/// # Errors
/// The system does not say.
pub fn page_size() -> io::Result<usize> {
    let size = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| usize::try_from(size).ok());
    size.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A range of addresses that begins as deep in a page as the client's, of which a first part can be written, a first
/// part read, and the rest is out of reach. Its bytes are a file's: no Rust reference to them is ever made.
#[derive(Debug)]
pub struct Mirror {
    file: File,
    start: NonNull<c_void>,
    span: NonZeroUsize,
    in_page: usize,
    size: usize,
}

impl Mirror {
    /// `size` bytes that begin `in_page` bytes into a page; the first ones are `readable`, and the first `writable` of
    /// these can be written. Both end where a page ends, or at `size`.
    ///
    /// # Errors
    /// What memfd_create, mmap and mprotect say; `EINVAL` for lengths that are none.
    pub fn new(in_page: usize, size: usize, readable: &[u8], writable: usize) -> io::Result<Self> {
        let page = page_size()?;
        let span = size
            .checked_add(in_page)
            .and_then(|len| len.checked_next_multiple_of(page))
            .and_then(NonZeroUsize::new)
            .filter(|_| in_page < page && size >= readable.len() && readable.len() >= writable)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let file = File::from(memfd_create(c"vidcompat-mirror", MFdFlags::MFD_CLOEXEC)?);
        let length = |len: usize| u64::try_from(len).map_err(|_| io::ErrorKind::InvalidInput);
        file.set_len(length(span.get())?)?;
        file.write_all_at(readable, length(in_page)?)?;
        // SAFETY: the kernel picks a fresh address, so no mapping that something else relies on is replaced.
        let start = unsafe { mmap(None, span, ProtFlags::PROT_NONE, MapFlags::MAP_SHARED, &file, 0) }?;
        let mirror = Self {
            file,
            start,
            span,
            in_page,
            size,
        };
        let pages = |len: usize| match len {
            0 => 0,
            len => (in_page + len).next_multiple_of(page),
        };
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        for (len, access) in [(readable.len(), ProtFlags::PROT_READ), (writable, both)] {
            // SAFETY: `pages` of a length within `size` is within `span`, which is this mapping's alone, and nobody has
            // a reference to it.
            unsafe { mprotect(start, pages(len), access) }?;
        }
        Ok(mirror)
    }

    /// Bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Address in this process.
    pub fn host_ptr(&self) -> *mut c_void {
        self.start.as_ptr().wrapping_byte_add(self.in_page)
    }

    /// The first bytes as they are now.
    ///
    /// # Errors
    /// More than there are.
    pub fn read(&self, bytes: &mut [u8]) -> io::Result<()> {
        let offset = u64::try_from(self.in_page).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.file.read_exact_at(bytes, offset)
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and nothing else knows its address.
        if let Err(error) = unsafe { munmap(self.start, self.span.get()) } {
            tracing::error!(%error, "a control's memory could not be released");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Mirror, page_size};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    /// How many bytes the kernel reads from `mirror`, and writes to it, before it fails.
    fn reach(mirror: &Mirror) -> (isize, isize) {
        let target = memfd_create(c"test", MFdFlags::empty()).expect("a memfd");
        let zero = File::open("/dev/zero").expect("a zero device");
        // SAFETY: the range is the mirror's, and its bytes are nobody's.
        let read = unsafe { libc::write(target.as_raw_fd(), mirror.host_ptr(), mirror.size()) };
        // SAFETY: as above.
        let wrote = unsafe { libc::read(zero.as_raw_fd(), mirror.host_ptr(), mirror.size()) };
        (read, wrote)
    }

    #[test]
    fn the_kernel_gets_as_far_as_the_client_would() {
        let page = page_size().expect("pages");
        let whole = isize::try_from(page + 4).expect("small");
        let bytes = vec![7; page + 4];
        for (readable, writable, expected) in [
            (page + 4, page + 4, (whole, whole)),
            (page + 4, 4, (whole, 4)),
            (page + 4, 0, (whole, -1)),
            (4, 4, (4, 4)),
            (4, 0, (4, -1)),
            (0, 0, (-1, -1)),
        ] {
            let mirror = Mirror::new(page - 4, page + 4, &bytes[..readable], writable).expect("a mirror");
            assert_eq!(reach(&mirror), expected, "{readable} {writable}");
            let mut back = vec![1; readable];
            mirror.read(&mut back).expect("its bytes");
            assert!(back[..writable].iter().all(|byte| *byte == 0));
            assert!(back[writable..].iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let page = page_size().expect("pages");
        assert!(Mirror::new(page, 1, &[], 0).is_err());
        assert!(Mirror::new(0, 1, &[0; 2], 0).is_err());
        assert!(Mirror::new(0, 2, &[0; 1], 2).is_err());
        assert!(Mirror::new(1, usize::MAX, &[], 0).is_err());
        assert!(Mirror::new(0, 0, &[], 0).is_err());
    }
}
