//! What needs `unsafe`, each with a safe face: errno, fds that are only numbers, memory that only the program knows.

use std::ffi::{c_int, c_long, c_void};
use std::mem::MaybeUninit;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use vidcompat_proto::Errno;
use vidcompat_proto::shim::{HELLO, Hello, SEEK, Seek};
use zerocopy::FromZeros;

use crate::next;

// Not in the libc crate. Both are async-cancel-safe and make no system call.
unsafe extern "C-unwind" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// `PTHREAD_CANCEL_DISABLE` (pthread.h).
const CANCEL_DISABLE: c_int = 1;

/// The thread's errno.
pub(crate) fn errno() -> i32 {
    // SAFETY: has no preconditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the thread's own variable, which lives as long as the thread.
    unsafe { *errno }
}

/// Sets the thread's errno.
pub(crate) fn set_errno(value: i32) {
    // SAFETY: has no preconditions.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the thread's own variable, which lives as long as the thread.
    unsafe { *errno = value }
}

/// From now on this thread is not cancelled. What [`restore_cancel`] wants.
pub(crate) fn disable_cancel() -> c_int {
    let mut old = 0;
    // SAFETY: `old` is writable.
    unsafe { pthread_setcancelstate(CANCEL_DISABLE, &raw mut old) };
    old
}

/// As it was before [`disable_cancel`].
pub(crate) fn restore_cancel(state: c_int) {
    let mut old = 0;
    // SAFETY: `old` is writable, and `state` is one that the same function has given.
    unsafe { pthread_setcancelstate(state, &raw mut old) };
}

/// The program's fd of this number, for system calls. Whether it is open, and whose, the kernel says.
pub(crate) fn program_fd<'a>(fd: c_int) -> Option<BorrowedFd<'a>> {
    // SAFETY: not negative. That it stays open is the program's affair, as in the call that it has just made: the number
    // is only given to system calls, which say EBADF.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// [`HELLO`] on `fd`.
pub(crate) fn hello(fd: BorrowedFd<'_>) -> rustix::io::Result<Hello> {
    let mut hello = Hello::new_zeroed();
    // SAFETY: HELLO is `_IOR` of this very struct, so a driver that knows it writes no more than that.
    let ioctl = unsafe { rustix::ioctl::Updater::<'_, { HELLO.0 }, Hello>::new(&mut hello) };
    // SAFETY: any bytes are a `Hello`.
    unsafe { rustix::ioctl::ioctl(fd, ioctl) }?;
    Ok(hello)
}

/// [`SEEK`] on `fd`: what comes back.
///
/// # Errors
/// What the daemon says; `ENOTTY` from one that knows of no framebuffers.
pub(crate) fn seek(fd: BorrowedFd<'_>, mut seek: Seek) -> Result<Seek, Errno> {
    // SAFETY: SEEK is `_IOWR` of this very struct, so a driver that knows it reads and writes no more than that.
    let ioctl = unsafe { rustix::ioctl::Updater::<'_, { SEEK.0 }, Seek>::new(&mut seek) };
    // SAFETY: any bytes are a `Seek`.
    unsafe { rustix::ioctl::ioctl(fd, ioctl) }.map_err(errno_of)?;
    Ok(seek)
}

/// mmap of anonymous memory, by no library.
///
/// # Safety
/// As for mmap: with `MAP_FIXED` in `flags`, the program gives up what is there.
pub(crate) unsafe fn mmap_anonymous(
    address: *mut c_void,
    length: usize,
    prot: c_int,
    flags: c_int,
) -> *mut c_void {
    let prot = ProtFlags::from_bits_retain(bits(prot));
    let flags = MapFlags::from_bits_retain(bits(flags));
    // SAFETY: the program's own call.
    match unsafe { rustix::mm::mmap_anonymous(address, length, prot, flags) } {
        Ok(mapped) => mapped,
        Err(errno) => {
            set_errno(errno.raw_os_error());
            libc::MAP_FAILED
        }
    }
}

/// What the program has at `address`.
///
/// The kernel copies, so an address where nothing is (any more) is an error. It does so through a pipe and not by
/// `process_vm_readv`, which seccomp filters of sandboxes and containers refuse or punish.
///
/// # Errors
/// `EFAULT`; `EMFILE` and `ENFILE` of the pipe.
pub(crate) fn read_program(address: usize) -> Result<[u8; 4], Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(errno_of)?;
    transfer(libc::SYS_write, writer.as_fd(), address)?;
    let mut bytes = [MaybeUninit::new(0u8); 4];
    match rustix::io::read(&reader, &mut bytes) {
        Ok((&mut [a, b, c, d], _)) => Ok([a, b, c, d]),
        _ => Err(Errno::EFAULT),
    }
}

/// Puts `bytes` at the program's `address`, as [`read_program`] reads.
///
/// # Errors
/// As there.
pub(crate) fn write_program(address: usize, bytes: [u8; 4]) -> Result<(), Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(errno_of)?;
    rustix::io::write(&writer, &bytes).map_err(errno_of)?;
    transfer(libc::SYS_read, reader.as_fd(), address)
}

/// read() or write() of four bytes at `address`.
fn transfer(call: c_long, fd: BorrowedFd<'_>, address: usize) -> Result<(), Errno> {
    let syscall = next::SYSCALL.get();
    let Ok(fd) = usize::try_from(fd.as_raw_fd()) else {
        return Err(Errno::EFAULT);
    };
    // SAFETY: both calls take fd, address and length; the kernel checks the address, and what is written there is what
    // the program has asked to be written. By `syscall` because rustix wants memory that is known to be there, and
    // libc's read and write are cancellation points.
    match unsafe { syscall(call, fd, address, 4, 0, 0, 0) } {
        4 => Ok(()),
        usize::MAX => Err(Errno::from_raw(errno())),
        _ => Err(Errno::EFAULT),
    }
}

/// The same 32 bits. (`cast_unsigned` is newer than the compiler that the 32-bit library is built with.)
pub(crate) const fn bits(int: c_int) -> u32 {
    u32::from_ne_bytes(int.to_ne_bytes())
}

/// rustix's error as ours.
pub(crate) fn errno_of(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::{errno, hello, program_fd, read_program, set_errno, write_program};
    use std::os::fd::AsFd;
    use vidcompat_proto::Errno;

    #[test]
    fn our_own_system_calls_leave_errno_alone() {
        // They would not with rustix's libc backend.
        set_errno(4711);
        assert!(rustix::fs::fstat(program_fd(1_000_000).unwrap()).is_err());
        assert!(hello(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
        assert_eq!(errno(), 4711);
    }

    #[test]
    fn the_programs_memory_is_copied_by_the_kernel() {
        let mut number = 0x1234_5678u32;
        let address = (&raw mut number).addr();
        assert_eq!(read_program(address), Ok(0x1234_5678u32.to_ne_bytes()));
        assert_eq!(write_program(address, 7u32.to_ne_bytes()), Ok(()));
        assert_eq!(std::hint::black_box(&number), &7);
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        for address in [0, 16, usize::MAX - 15] {
            assert_eq!(read_program(address), Err(Errno::EFAULT));
            assert_eq!(write_program(address, [0; 4]), Err(Errno::EFAULT));
        }
        // Readable, not writable.
        let text = super::errno as fn() -> i32 as usize;
        assert!(read_program(text).is_ok());
        assert_eq!(write_program(text, [0; 4]), Err(Errno::EFAULT));
    }
}
