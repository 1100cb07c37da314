//! `syscall`, through which libv4l2 makes its calls, and some programs theirs.

use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::ptr::with_exposed_provenance_mut;

use vidcompat_proto::Errno;

use super::{closed, command, concerns_us, open};
use crate::map::{Wanted, map};
use crate::video::{self, Way};
use crate::{adopt, next, redirect, seek, sys};

/// The mmap of this architecture that takes its arguments in registers, and the bytes of one unit of its offset.
#[cfg(target_pointer_width = "64")]
const MMAP: (c_long, u64) = (libc::SYS_mmap, 1);
#[cfg(target_pointer_width = "32")]
const MMAP: (c_long, u64) = (libc::SYS_mmap2, 4096);
const SYS_MMAP: c_long = MMAP.0;

/// The low half of an argument, which is all of it that the kernel reads as an `int`.
pub(super) const fn int(argument: usize) -> c_int {
    #[allow(clippy::cast_possible_truncation)]
    c_int::from_ne_bytes((argument as u32).to_ne_bytes())
}

/// All words, whatever they mean: as many as any system call has. The result is a `long` in C, whose bits are an address
/// after mmap.
///
/// # Safety
/// syscall(2).
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C-unwind" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> usize {
    match number {
        // SAFETY: the program's own call.
        libc::SYS_ioctl => unsafe { ioctl(number, a, b, c, d, e, f) },
        // SAFETY: the program's own call.
        SYS_MMAP => unsafe { mmap(number, a, b, c, d, e, f) },
        // SAFETY: the program's own call.
        libc::SYS_close | libc::SYS_dup3 | libc::SYS_close_range => unsafe {
            closing(number, a, b, c, d, e, f)
        },
        // SAFETY: the program's own call.
        #[cfg(not(target_arch = "aarch64"))]
        libc::SYS_dup2 => unsafe { closing(number, a, b, c, d, e, f) },
        // SAFETY: the program's own call.
        libc::SYS_lseek => unsafe { lseek(number, a, b, c, d, e, f) },
        // SAFETY: the program's own call.
        #[cfg(target_pointer_width = "32")]
        libc::SYS__llseek => unsafe { lseek(number, a, b, c, d, e, f) },
        // SAFETY: the program's own call.
        libc::SYS_openat | libc::SYS_openat2 if redirect::is_on() => unsafe {
            opening(number, a, b, c, d, e, f)
        },
        // SAFETY: the program's own call.
        #[cfg(not(target_arch = "aarch64"))]
        libc::SYS_open if redirect::is_on() => unsafe { opening(number, a, b, c, d, e, f) },
        _ => {
            let next = next::SYSCALL.found().unwrap_or(closing);
            // SAFETY: the program's own call.
            unsafe { next(number, a, b, c, d, e, f) }
        }
    }
}

/// Opens ours where the program opens a real node.
///
/// # Safety
/// syscall(2).
#[inline(never)]
unsafe extern "C-unwind" fn opening(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> usize {
    let next = next::SYSCALL.get();
    // Where the path is, and whether flags follow: openat2 has them in a struct.
    let (path_at, has_flags) = match number {
        libc::SYS_openat => (1, true),
        libc::SYS_openat2 => (1, false),
        _ => (0, true),
    };
    open::by_syscall(path_at, has_flags, [a, b, c, d, e, f], |[a, b, c, d, e, f]| {
        // SAFETY: the program's own call, but perhaps for a path of ours.
        unsafe { next(number, a, b, c, d, e, f) }
    })
}

/// Looks for the next `syscall` where it must, and afterwards at what was closed.
///
/// Each of these has the signature of [`syscall`], so that going there is a jump.
///
/// # Safety
/// syscall(2).
#[inline(never)]
unsafe extern "C-unwind" fn closing(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> usize {
    let next = next::SYSCALL.get();
    let concerns_us = match number {
        libc::SYS_close => concerns_us(int(a)),
        libc::SYS_dup3 => concerns_us(int(b)),
        #[cfg(not(target_arch = "aarch64"))]
        libc::SYS_dup2 => concerns_us(int(b)),
        libc::SYS_close_range => adopt::any(),
        _ => false,
    };
    // SAFETY: the program's own call.
    let result = unsafe { next(number, a, b, c, d, e, f) };
    if concerns_us {
        closed();
    }
    result
}

/// # Safety
/// syscall(2).
#[inline(never)]
unsafe extern "C-unwind" fn ioctl(
    number: c_long,
    fd: usize,
    request: usize,
    argument: usize,
    d: usize,
    e: usize,
    f: usize,
) -> usize {
    let next = next::SYSCALL.get();
    let said = command(request as c_ulong);
    if !video::is_spoken(said) {
        // SAFETY: the program's own call.
        return unsafe { next(number, fd, request, argument, d, e, f) };
    }
    let result = video::ioctl(int(fd), said, argument, |way| {
        let request = match way {
            Way::Plain => request,
            Way::As(spoken) => spoken.0 as usize,
        };
        // SAFETY: the program's own call, but perhaps for the letter; a driver that knows the letter uses the argument
        // as V4L2 does. An ioctl's result is an `int`.
        int(unsafe { next(number, fd, request, argument, d, e, f) })
    });
    // Else -1.
    usize::try_from(result).unwrap_or(usize::MAX)
}

/// lseek(fd, offset, whence), and on 32 bits also _llseek(fd, high, low, result, whence).
///
/// # Safety
/// syscall(2).
#[inline(never)]
unsafe extern "C-unwind" fn lseek(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> usize {
    let next = next::SYSCALL.get();
    // SAFETY: the program's own call.
    let at = unsafe { next(number, a, b, c, d, e, f) };
    if at != 0 {
        return at;
    }
    let is_long = number != libc::SYS_lseek;
    let (offset, whence) = if is_long {
        ((b as u64) << 32 | c as u64, e)
    } else {
        // As wide as a register, signed.
        (signed(b), c)
    };
    let found = match seek::told(int(a), i64::from_ne_bytes(offset.to_ne_bytes()), int(whence)) {
        None => return at,
        Some(Ok(at)) if is_long => {
            let [low, high] = halves(at);
            let written = sys::write_program(d, low);
            written
                .and_then(|()| sys::write_program(d.wrapping_add(4), high))
                .map(|()| 0)
        }
        Some(Ok(at)) => usize::try_from(at)
            .ok()
            .filter(|at| isize::try_from(*at).is_ok())
            .ok_or(Errno::EOVERFLOW),
        Some(Err(errno)) => Err(errno),
    };
    found.unwrap_or_else(|errno| {
        sys::set_errno(errno.raw());
        usize::MAX
    })
}

/// The sign of a register, in 64 bits.
const fn signed(register: usize) -> u64 {
    let value = isize::from_ne_bytes(register.to_ne_bytes()) as i64;
    u64::from_ne_bytes(value.to_ne_bytes())
}

/// The low and the high half, as `loff_t` lies in memory.
const fn halves(value: i64) -> [[u8; 4]; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_ne_bytes();
    [[a, b, c, d], [e, f, g, h]]
}

/// # Safety
/// syscall(2).
#[inline(never)]
unsafe extern "C-unwind" fn mmap(
    number: c_long,
    address: usize,
    length: usize,
    prot: usize,
    flags: usize,
    fd: usize,
    offset: usize,
) -> usize {
    const UNIT: u64 = MMAP.1;
    if int(flags) & libc::MAP_ANONYMOUS != 0 {
        if let Some(next) = next::SYSCALL.found() {
            // SAFETY: the program's own call.
            return unsafe { next(number, address, length, prot, flags, fd, offset) };
        }
        let address = with_exposed_provenance_mut(address);
        // SAFETY: the program's own call.
        return unsafe { sys::mmap_anonymous(address, length, int(prot), int(flags)) }.addr();
    }
    let next = next::SYSCALL.get();
    let wanted = Wanted {
        fd: int(fd),
        offset: (offset as u64).saturating_mul(UNIT),
        length,
        prot: int(prot),
        flags: int(flags),
    };
    let mapped = map(wanted, |file, from| {
        let call = if file == wanted.fd {
            Ok((fd, offset))
        } else {
            usize::try_from(from / UNIT).map(|from| (file.unsigned_abs() as usize, from))
        };
        let Ok((file, from)) = call else {
            sys::set_errno(libc::EOVERFLOW);
            return libc::MAP_FAILED;
        };
        // SAFETY: the program's own call, but perhaps for the file that the memory comes from.
        let mapped = unsafe { next(number, address, length, prot, flags, file, from) };
        with_exposed_provenance_mut::<c_void>(mapped)
    });
    mapped.addr()
}
