//! The raw calls of adoption: mappings that move over others, the lock, the thread that reads one message. All of this
//! folder's `unsafe` is here.
//!
//! What is called goes to the kernel directly: errno stays the program's, and nobody's interposed function is in
//! between. Of libc only what allocates nothing: `clone`, `getenv`, `mremap`,
//! `pthread_atfork`, `pthread_sigmask`, `sysconf`.

mod lock;
mod mapping;
mod thread;

use std::ffi::{CStr, c_int, c_void};
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::{Errno, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::mm::UserfaultfdFlags;
use zerocopy::{FromBytes, IntoBytes};

pub(super) use lock::{Guard, Guarded};
pub(super) use mapping::{Mapping, Stretch};
pub(super) use thread::with_reader;

/// Bytes of a page.
pub(super) fn page_bytes() -> usize {
    // SAFETY: sysconf reads a number of the C library's.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

/// The effective user, as the daemon sees us at this moment.
pub(super) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Does `stretch` hold the stack that this code runs on? Who takes those pages away waits for himself.
pub(super) fn is_under_us(stretch: Stretch) -> bool {
    const BELOW: usize = 64 << 10;
    let here = std::ptr::from_ref(&stretch).addr();
    stretch.overlaps(Stretch {
        start: here.saturating_sub(BELOW),
        len: BELOW + page_bytes(),
    })
}

/// Is `name` in the environment, and does `test` say so of its value?
pub(super) fn environment(name: &CStr, test: impl FnOnce(&[u8]) -> bool) -> bool {
    // SAFETY: a string of ours; what comes back is not kept.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return false;
    }
    // SAFETY: a string of the environment, which ends with a zero.
    test(unsafe { CStr::from_ptr(value) }.to_bytes())
}

/// Registers what runs before each fork, and after it in the parent and in the child.
pub(super) fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> bool {
    // The symbol is of libc_nonshared.a with glibc: it names this library, so that unloading takes the functions away.
    // SAFETY: functions without arguments, which stay.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) == 0 }
}

/// An ioctl that reads and writes `value`, whose size its number tells.
pub(super) fn update<const OPCODE: Opcode, T: FromBytes + IntoBytes>(
    file: impl AsFd,
    value: &mut T,
) -> Result<()> {
    const { assert!((OPCODE >> 16 & 0x3fff) as usize == size_of::<T>()) };
    // SAFETY: the kernel reads and writes as many bytes as the number says; any bytes are a `T`. What UFFDIO_* do to the
    // memory that they name, the caller means: see the fault module.
    let call = unsafe { rustix::ioctl::Updater::<OPCODE, T>::new(value) };
    // SAFETY: as above.
    unsafe { rustix::ioctl::ioctl(file, call) }
}

/// `userfaultfd(2)` with these flags, numbers of linux/userfaultfd.h.
pub(super) fn userfaultfd(flags: u32) -> Result<OwnedFd> {
    // SAFETY: a new fd; what it is used for is the fault module's to answer for.
    unsafe { rustix::mm::userfaultfd(UserfaultfdFlags::from_bits_retain(flags)) }
}

/// The same from `/dev/userfaultfd` (`USERFAULTFD_IOC_NEW`, Linux 6.1).
pub(super) fn userfaultfd_of(device: BorrowedFd<'_>, flags: u32) -> Result<OwnedFd> {
    struct New(usize);
    // SAFETY: `_IO(0xAA, 0)` takes flags instead of an address and returns a new fd (fs/userfaultfd.c).
    unsafe impl Ioctl for New {
        type Output = OwnedFd;
        const IS_MUTATING: bool = false;
        fn opcode(&self) -> Opcode {
            rustix::ioctl::opcode::none(0xaa, 0)
        }
        fn as_ptr(&mut self) -> *mut c_void {
            std::ptr::without_provenance_mut(self.0)
        }
        unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> Result<OwnedFd> {
            // SAFETY: the kernel has just made it for us.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
    }
    // SAFETY: as above.
    unsafe { rustix::ioctl::ioctl(device, New(flags as usize)) }
}

/// Where the calling thread keeps errno: its name for as long as it lives, in a child of fork, too.
fn this_thread() -> usize {
    errno_place().addr()
}

fn errno_place() -> *mut c_int {
    // SAFETY: it only tells the address.
    unsafe { libc::__errno_location() }
}

/// Runs `call`, which is libc's and returns `None` where it fails, and leaves errno as it was.
fn with_errno_kept<R>(call: impl FnOnce() -> Option<R>) -> Result<R> {
    let place = errno_place();
    // SAFETY: this thread's own errno.
    let before = unsafe { place.read() };
    let result = call();
    // SAFETY: this thread's own errno.
    let errno = unsafe { place.read() };
    // SAFETY: this thread's own errno.
    unsafe { place.write(before) };
    result.ok_or_else(|| Errno::from_raw_os_error(errno))
}
