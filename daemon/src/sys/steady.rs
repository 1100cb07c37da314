//! Memory shared with programs that this process reads and writes by CPU.
//!
//! What a program could truncate would kill this process by SIGBUS when it is touched. So only such objects are taken here
//! as nobody can make shorter: a memfd that is sealed against shrinking, whose holes (a program may punch some) the kernel
//! fills with new pages, and a dma-buf, which has one size as long as it lives.
//!
//! A known limit: where the kernel has no memory for such a new page, the touch is a SIGBUS as well. It has none sooner than
//! elsewhere with `vm.overcommit_memory=2`, under which a program that punches holes on purpose can reach that.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::SealFlags;

use super::{CpuUse, Mapping, field, own_fdinfo};

/// A mapping of such an object, to be read and written. Others change the bytes meanwhile: no Rust reference to them is
/// made, they are copied and compared where they are.
#[derive(Debug)]
pub struct SteadyMemory(Mapping);

impl SteadyMemory {
    /// Maps `len` bytes from the start of `object`.
    ///
    /// # Errors
    /// `EINVAL`: it could become shorter, or is too short. Else what mmap says.
    pub fn map(object: impl AsFd, len: usize) -> io::Result<Self> {
        let object = object.as_fd();
        let seals = rustix::fs::fcntl_get_seals(object);
        let steady = if seals.is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
            let size = rustix::fs::fstat(object)?.st_size;
            usize::try_from(size).is_ok_and(|size| size >= len)
        } else {
            // The length of a dma-buf's mapping is checked by mmap itself (dma_buf_mmap_internal).
            field(&own_fdinfo(object)?, "exp_name").is_some()
        };
        if !steady {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self(Mapping::shared(object, 0, len, CpuUse::Write)?))
    }

    /// Bytes of it.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.size()
    }

    /// Is there anything else at `offset` than `bytes`? Yes, where a part of that lies outside.
    #[must_use]
    pub fn differs(&self, offset: usize, bytes: &[u8]) -> bool {
        if !self.0.has(offset, bytes.len()) {
            return true;
        }
        let ours = self.0.host_ptr().wrapping_byte_add(offset);
        // SAFETY: both ranges are readable for that length: one was just checked to lie in the mapping, of an object that
        // cannot become shorter, the other is borrowed. That others write to the first meanwhile can change the answer only.
        unsafe { libc::memcmp(ours, bytes.as_ptr().cast(), bytes.len()) != 0 }
    }

    /// Copies what is at `offset` into `bytes`, as much of it as there is: how many bytes that were.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let len = self.size().saturating_sub(offset).min(bytes.len());
        if len == 0 {
            return 0;
        }
        let from = self.0.host_ptr().wrapping_byte_add(offset);
        // SAFETY: `len` bytes from `offset` lie in the mapping, of an object that cannot become shorter; the target is borrowed
        // exclusively, so they do not overlap.
        unsafe { libc::memcpy(bytes.as_mut_ptr().cast(), from, len) };
        len
    }

    /// Copies `bytes` to `offset`, as much as there is room for: how many bytes that were.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> usize {
        let len = self.size().saturating_sub(offset).min(bytes.len());
        if len == 0 {
            return 0;
        }
        let to = self.0.host_ptr().wrapping_byte_add(offset);
        // SAFETY: as in `read`; the mapping is writable, and no Rust reference to its bytes exists.
        unsafe { libc::memcpy(to, bytes.as_ptr().cast(), len) };
        len
    }
}

#[cfg(test)]
mod tests {
    use super::SteadyMemory;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    use std::os::fd::OwnedFd;

    fn memfd(seals: SealFlags) -> OwnedFd {
        let fd = memfd_create(c"test", MemfdFlags::ALLOW_SEALING).expect("a memfd");
        ftruncate(&fd, 8192).expect("room");
        fcntl_add_seals(&fd, seals).expect("sealed");
        fd
    }

    #[test]
    fn only_what_cannot_become_shorter_is_mapped() {
        assert!(SteadyMemory::map(memfd(SealFlags::SHRINK), 8192).is_ok());
        assert!(SteadyMemory::map(memfd(SealFlags::SHRINK), 8193).is_err());
        assert!(SteadyMemory::map(memfd(SealFlags::GROW), 8192).is_err());
        let file = std::fs::File::open("/proc/self/exe").expect("a file");
        assert!(SteadyMemory::map(file, 4096).is_err());
    }

    #[test]
    fn bytes_are_copied_and_compared_up_to_the_end() {
        let fd = memfd(SealFlags::SHRINK);
        let memory = SteadyMemory::map(&fd, 8192).expect("mapped");
        assert_eq!(
            (
                memory.write(8190, b"abcd"),
                memory.write(8192, b"a"),
                memory.write(9000, b"a")
            ),
            (2, 0, 0)
        );
        let mut bytes = [0; 4];
        assert_eq!((memory.read(8189, &mut bytes), bytes), (3, *b"\0ab\0"));
        assert_eq!(
            (memory.read(8193, &mut bytes), memory.read(usize::MAX, &mut bytes)),
            (0, 0)
        );
        assert!(!memory.differs(8189, b"\0ab") && memory.differs(8189, b"\0ac"));
        assert!(memory.differs(8189, b"\0ab\0") && memory.differs(usize::MAX, b"a"));
        rustix::fs::fallocate(
            &fd,
            rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
            0,
            8192,
        )
        .expect("a hole");
        assert!(!memory.differs(8189, b"\0\0\0"));
    }
}
