//! A userfaultfd over one stretch of memory: whoever touches it waits until we say go on.
//!
//! Made anew for each exchange and closed after it. An unprivileged program may get only one that knows of no accesses
//! by the kernel (`UFFD_USER_MODE_ONLY`; sysctl vm.unprivileged_userfaultfd is 0 by default): then a read(2) or write(2)
//! of another thread that meets these very pages in that very moment gets EFAULT instead of waiting. Memory is never
//! lost by it.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, Result};
use rustix::ioctl::opcode::{read, read_write};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::sys::{self, Mapping, Stretch};

/// `UFFDIO`, and the numbers of linux/userfaultfd.h.
const UFFDIO: u8 = 0xaa;
const USER_MODE_ONLY: u32 = 1;
const API: u64 = 0xaa;
const FEATURE_EVENT_REMAP: u64 = 1 << 2;
const MODE_MISSING: u64 = 1;
/// A registered mapping has moved.
pub(super) const EVENT_REMAP: u8 = 0x14;

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

impl From<Stretch> for Range {
    fn from(stretch: Stretch) -> Self {
        Self {
            start: stretch.start as u64,
            len: stretch.len as u64,
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Copy {
    target: u64,
    source: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// A userfaultfd.
pub(super) struct Fault(OwnedFd);

impl Fault {
    /// One that forgets a mapping that moves.
    pub(super) fn new() -> Result<Self> {
        Self::with(0)
    }

    /// One that stays with a mapping that moves, and tells of it: the move ends when that has been read.
    pub(super) fn that_follows() -> Result<Self> {
        Self::with(FEATURE_EVENT_REMAP)
    }

    fn with(features: u64) -> Result<Self> {
        let flags = (OFlags::CLOEXEC | OFlags::NONBLOCK).bits();
        let file = sys::userfaultfd(flags)
            .or_else(|_| {
                // Whom the administrator lets.
                let device = open(c"/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
                sys::userfaultfd_of(device.as_fd(), flags)
            })
            .or_else(|_: Errno| sys::userfaultfd(flags | USER_MODE_ONLY))?;
        let mut api = Api {
            api: API,
            features,
            ioctls: 0,
        };
        sys::update::<{ read_write::<Api>(UFFDIO, 0x3f) }, _>(&file, &mut api)?;
        Ok(Self(file))
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// From now on whoever finds no page in `stretch` waits.
    pub(super) fn register(&self, stretch: Stretch) -> Result<()> {
        let mut register = Register {
            range: stretch.into(),
            mode: MODE_MISSING,
            ioctls: 0,
        };
        sys::update::<{ read_write::<Register>(UFFDIO, 0) }, _>(&self.0, &mut register)
    }

    /// It is ordinary memory again, and who waits goes on.
    pub(super) fn unregister(&self, stretch: Stretch) -> Result<()> {
        sys::update::<{ read::<Range>(UFFDIO, 1) }, _>(&self.0, &mut Range::from(stretch))
    }

    /// Who waits for a page of `stretch` looks again. (Closing does that too, but another process may have the file: a
    /// child that has not come to its exec.)
    pub(super) fn wake(&self, stretch: Stretch) {
        let _ = sys::update::<{ read::<Range>(UFFDIO, 2) }, _>(&self.0, &mut Range::from(stretch));
    }

    fn drain(&self) {
        let mut message = [0; 32];
        while rustix::io::read(&self.0, &mut message).is_ok() {}
    }

    /// Puts a copy of `source`, of the same length, into the pages of `stretch` behind the first `done` bytes, none of
    /// which is there, and wakes those who wait.
    ///
    /// # Errors
    /// What the kernel says, and how far it has come.
    pub(super) fn fill(
        &self,
        stretch: Stretch,
        source: &Mapping,
        done: usize,
    ) -> std::result::Result<(), (usize, Errno)> {
        let mut done = done;
        while done < stretch.len {
            let mut copy = Copy {
                target: (stretch.start + done) as u64,
                source: (source.stretch().start + done) as u64,
                len: (stretch.len - done) as u64,
                mode: 0,
                copied: 0,
            };
            let result = sys::update::<{ read_write::<Copy>(UFFDIO, 3) }, _>(&self.0, &mut copy);
            done += usize::try_from(copy.copied).unwrap_or(0);
            match result {
                Ok(()) | Err(Errno::INTR) => {}
                // Stopped half-way. Or a thread moves this very mapping, which ends when somebody has read of it.
                Err(Errno::AGAIN) => self.drain(),
                Err(error) => return Err((done, error)),
            }
        }
        Ok(())
    }
}
