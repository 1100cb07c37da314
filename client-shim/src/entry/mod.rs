//! The symbols that stand before libc's. Each finds out whether the call may be our affair, and if not jumps to the next.
//!
//! Functions that are variadic in C are declared with as many arguments as they ever take: in the C ABIs that we build
//! for (x86-64, i386, aarch64 and armhf of Linux) a variadic integer or pointer travels where a fixed one does, and an
//! argument that the caller has not given is a register or a word of its stack, which may be read and means nothing.
//!
//! The next function is called outside of [`guard()`] and with nothing to put back in our frames: `close` is a cancellation
//! point, and glibc cancels by unwinding.

mod open;
mod syscall;

use std::ffi::{c_int, c_uint, c_ulong, c_void};

use vidcompat_proto::ioc::Command;

use crate::guard::guard;
use crate::map::{Wanted, map};
use crate::video::{self, Way};
use crate::{adopt, next, node, seek, sys};

/// `vidcompat doctor` finds the version of an installed library by this. Exported, because what `#[used]` keeps Debian's linker
/// throws away for i386.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[allow(non_upper_case_globals)]
pub static vidcompat_shim_version: &str = concat!("vidcompat-shim ", env!("CARGO_PKG_VERSION"), "\0");

/// The kernel has 32 bits of a request; old programs pass it sign-extended.
const fn command(request: c_ulong) -> Command {
    #[allow(clippy::cast_possible_truncation)]
    Command(request as u32)
}

/// # Safety
/// ioctl(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let next = if video::is_spoken(command(request)) {
        speaking
    } else {
        next::IOCTL.found().unwrap_or(speaking)
    };
    // SAFETY: the program's own call.
    unsafe { next(fd, request, argument) }
}

/// Looks for the next `ioctl` where it must, and at whether we have something to say.
///
/// # Safety
/// ioctl(2).
unsafe extern "C-unwind" fn speaking(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let next = next::IOCTL.get();
    if video::is_spoken(command(request)) && !next::is_libv4l() {
        // SAFETY: the program's own call.
        return unsafe { speak(next, fd, request, argument) };
    }
    // SAFETY: the program's own call.
    unsafe { next(fd, request, argument) }
}

/// An ioctl that [`video::is_spoken`], with the `next` of its name.
///
/// # Safety
/// ioctl(2).
#[inline(never)]
unsafe fn speak(next: next::Ioctl, fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    video::ioctl(fd, command(request), argument.addr(), |way| match way {
        // SAFETY: the program's own call.
        Way::Plain => unsafe { next(fd, request, argument) },
        // SAFETY: the program's own call but for the letter; a driver that knows the letter uses the argument as V4L2
        // does.
        Way::As(spoken) => unsafe { next(fd, c_ulong::from(spoken.0), argument) },
    })
}

/// ioctl, for programs with a 64-bit `time_t` on 32 bits.
///
/// # Safety
/// ioctl(2).
#[cfg(target_pointer_width = "32")]
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn __ioctl_time64(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    if video::is_spoken(command(request)) {
        // SAFETY: the program's own call.
        return unsafe { speak(next::IOCTL_TIME64.get(), fd, request, argument) };
    }
    let next = next::IOCTL_TIME64.get();
    // SAFETY: the program's own call.
    unsafe { next(fd, request, argument) }
}

macro_rules! mmaps {
    ($($(#[$doc:meta])* $name:ident, $next:ident, $offset:ty;)*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// mmap(2).
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C-unwind" fn $name(
            address: *mut c_void,
            length: usize,
            prot: c_int,
            flags: c_int,
            fd: c_int,
            offset: $offset,
        ) -> *mut c_void {
            if flags & libc::MAP_ANONYMOUS != 0 {
                return match next::$next.found() {
                    // SAFETY: the program's own call.
                    Some(next) => unsafe { next(address, length, prot, flags, fd, offset) },
                    // SAFETY: the program's own call.
                    None => unsafe { sys::mmap_anonymous(address, length, prot, flags) },
                };
            }
            let next = next::$next.get();
            let wanted = Wanted { fd, offset: offset as u64, length, prot, flags };
            map(wanted, |fd, offset| {
                let offset = <$offset>::try_from(offset).map_err(|_| sys::set_errno(libc::EOVERFLOW));
                // SAFETY: the program's own call, but perhaps for the file that the memory comes from.
                offset.map_or(libc::MAP_FAILED, |offset| unsafe { next(address, length, prot, flags, fd, offset) })
            })
        }
    )* };
}

mmaps! {
    /// mmap, with the platform's own `off_t`. glibc, too, takes it as unsigned.
    mmap, MMAP, usize;
    /// mmap of large files.
    mmap64, MMAP64, u64;
}

macro_rules! lseeks {
    ($($(#[$doc:meta])* $name:ident, $next:ident, $offset:ty;)*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// lseek(2).
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C-unwind" fn $name(fd: c_int, offset: $offset, whence: c_int) -> $offset {
            let next = next::$next.get();
            // SAFETY: the program's own call.
            let at = unsafe { next(fd, offset, whence) };
            if at != 0 {
                return at;
            }
            #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)]
            match seek::told(fd, offset as i64, whence) {
                None => at,
                Some(Ok(at)) => <$offset>::try_from(at).unwrap_or_else(|_| {
                    sys::set_errno(libc::EOVERFLOW);
                    -1
                }),
                Some(Err(errno)) => {
                    sys::set_errno(errno.raw());
                    -1
                }
            }
        }
    )* };
}

lseeks! {
    /// lseek, with the platform's own `off_t`.
    lseek, LSEEK, isize;
    /// lseek of large files.
    lseek64, LSEEK64, i64;
}

/// Is `fd`, which is about to be closed, a file of ours, with anything adopted? One load for most programs. Who closes
/// other files is not to wait for the daemon.
#[inline]
fn concerns_us(fd: c_int) -> bool {
    adopt::any() && is_ours(fd)
}

#[cold]
#[inline(never)]
fn is_ours(fd: c_int) -> bool {
    guard(|| sys::program_fd(fd).is_some_and(node::is_ours)) == Some(true)
}

/// A file of ours may have been closed, perhaps the last of a session's: what was adopted for it is the program's again.
#[cold]
#[inline(never)]
fn closed() {
    guard(adopt::reconcile);
}

/// # Safety
/// close(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    let next = next::CLOSE.get();
    if !concerns_us(fd) {
        // SAFETY: the program's own call.
        return unsafe { next(fd) };
    }
    // SAFETY: the program's own call.
    let result = unsafe { next(fd) };
    closed();
    result
}

/// # Safety
/// dup2(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn dup2(old: c_int, new: c_int) -> c_int {
    let next = next::DUP2.get();
    if !concerns_us(new) {
        // SAFETY: the program's own call.
        return unsafe { next(old, new) };
    }
    // SAFETY: the program's own call.
    let result = unsafe { next(old, new) };
    closed();
    result
}

/// # Safety
/// dup3(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int {
    let next = next::DUP3.get();
    if !concerns_us(new) {
        // SAFETY: the program's own call.
        return unsafe { next(old, new, flags) };
    }
    // SAFETY: the program's own call.
    let result = unsafe { next(old, new, flags) };
    closed();
    result
}

/// # Safety
/// close_range(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let next = next::CLOSE_RANGE.get();
    if !adopt::any() {
        // SAFETY: the program's own call.
        return unsafe { next(first, last, flags) };
    }
    // SAFETY: the program's own call.
    let result = unsafe { next(first, last, flags) };
    closed();
    result
}

/// # Safety
/// closefrom(3).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn closefrom(first: c_int) {
    let next = next::CLOSEFROM.get();
    // SAFETY: the program's own call.
    unsafe { next(first) };
    if adopt::any() {
        closed();
    }
}
