//! A thread that reads one message and is gone. It is the kernel's only: no TLS of its own, unknown to libc, and so
//! it makes raw system calls and nothing else.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::io::{Errno, Result};
use rustix::thread::futex;

use super::{Mapping, with_errno_kept};

/// Bytes: two calls, a message and an array of one.
const STACK: usize = 32 << 10;

/// How long it may take to see that nothing will come.
const LOOK_AGAIN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 20_000_000,
};

struct Reader<'a> {
    file: BorrowedFd<'a>,
    event: u8,
    /// Nothing will come.
    stop: AtomicBool,
    /// Not 0 for as long as it runs: the kernel writes 0 at its end, when it no longer needs its stack, and wakes.
    runs: AtomicU32,
}

/// Does `work` while another thread reads the messages of the userfaultfd `file`, which must not block, up to one of the
/// kind `event`. `work` may wait for that.
///
/// # Errors
/// There can be no thread; then nothing was done.
pub(in crate::adopt) fn with_reader<R>(
    file: BorrowedFd<'_>,
    event: u8,
    work: impl FnOnce() -> R,
) -> Result<R> {
    let stack = Mapping::anonymous(STACK)?;
    let reader = Reader {
        file,
        event,
        stop: AtomicBool::new(false),
        runs: AtomicU32::new(1),
    };
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_CHILD_CLEARTID;
    let top = stack.stretch().pointer().wrapping_byte_add(STACK);
    let argument = std::ptr::from_ref(&reader).cast_mut().cast::<c_void>();
    let none = std::ptr::null_mut::<c_void>();
    with_errno_kept(|| {
        // SAFETY: stack and argument stay until it has ended, which is waited for below. It has our thread pointer and
        // does not use it. Signals are blocked: the caller holds the lock.
        let id = unsafe { libc::clone(read_one, top, flags, argument, none, none, reader.runs.as_ptr()) };
        (id >= 0).then_some(id)
    })?;
    let result = work();
    reader.stop.store(true, Ordering::Relaxed);
    loop {
        let runs = reader.runs.load(Ordering::Acquire);
        if runs == 0 {
            break;
        }
        // Not FUTEX_PRIVATE: the kernel's own wake is not (kernel/fork.c, mm_release).
        let _ = futex::wait(&reader.runs, futex::Flags::empty(), runs, None);
    }
    Ok(result)
}

extern "C" fn read_one(argument: *mut c_void) -> c_int {
    // SAFETY: `with_reader`'s, which waits for us.
    let reader = unsafe { &*argument.cast::<Reader<'_>>() };
    while !reader.stop.load(Ordering::Relaxed) {
        let _ = poll(&mut [PollFd::new(&reader.file, PollFlags::IN)], Some(&LOOK_AGAIN));
        loop {
            // struct uffd_msg: 32 bytes, the first says of which kind. Those of threads that wait for a page come first.
            let mut message = [0; 32];
            match rustix::io::read(reader.file, &mut message) {
                Ok(_) if message[0] == reader.event => return 0,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }
    0
}
