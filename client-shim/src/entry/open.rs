//! The symbols that open files and tell what they are: for programs that are redirected (`redirect.rs`), else one load more
//! than libc's.

use std::ffi::{c_char, c_int, c_void};

use crate::{next, redirect};

macro_rules! opens {
    ($($name:ident, $next:ident, ($($before:ident: $before_type:ty,)*) path, flags $(, $mode:ident)?;)*) => { $(
        /// # Safety
        /// open(2).
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C-unwind" fn $name(
            $($before: $before_type,)*
            path: *const c_char,
            flags: c_int,
            $($mode: libc::mode_t,)?
        ) -> c_int {
            let next = next::$next.get();
            // SAFETY: the program's own call, but perhaps for a path of ours.
            redirect::open(path, flags, |path| unsafe { next($($before,)* path, flags, $($mode)?) })
        }
    )* };
}

opens! {
    open, OPEN, () path, flags, mode;
    open64, OPEN64, () path, flags, mode;
    openat, OPENAT, (folder: c_int,) path, flags, mode;
    openat64, OPENAT64, (folder: c_int,) path, flags, mode;
    // What open is with _FORTIFY_SOURCE.
    __open_2, OPEN_2, () path, flags;
    __open64_2, OPEN64_2, () path, flags;
    __openat_2, OPENAT_2, (folder: c_int,) path, flags;
    __openat64_2, OPENAT64_2, (folder: c_int,) path, flags;
}

macro_rules! fopens {
    ($($name:ident, $next:ident;)*) => { $(
        /// # Safety
        /// fopen(3).
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C-unwind" fn $name(path: *const c_char, mode: *const c_char) -> *mut c_void {
            let next = next::$next.get();
            // SAFETY: the program's own call, but perhaps for a path of ours.
            redirect::open_other(path, |path| unsafe { next(path, mode) })
        }
    )* };
}

fopens! {
    fopen, FOPEN;
    fopen64, FOPEN64;
}

/// What `syscall` is asked to open: the arguments of SYS_open, SYS_openat, SYS_openat2, of which the path is the one at
/// `path_at` and its flags, where they are one of the arguments, the next.
pub(super) fn by_syscall(
    path_at: usize,
    has_flags: bool,
    arguments: [usize; 6],
    call: impl Fn([usize; 6]) -> usize,
) -> usize {
    let path = arguments.get(path_at).copied().unwrap_or_default();
    let flags = arguments.get(path_at + 1).copied().unwrap_or_default();
    let result = redirect::open(
        std::ptr::with_exposed_provenance(path),
        if has_flags { super::syscall::int(flags) } else { 0 },
        |path| {
            let mut arguments = arguments;
            if let Some(argument) = arguments.get_mut(path_at) {
                *argument = path.expose_provenance();
            }
            // An fd or -1.
            super::syscall::int(call(arguments))
        },
    );
    usize::try_from(result).unwrap_or(usize::MAX)
}

/// Changes the device number in what stat has told, if it is one of ours.
macro_rules! stats {
    ($($(#[$attribute:meta])* $name:ident, $next:ident, $of:ident: $of_type:ty, $stat:ty;)*) => { $(
        $(#[$attribute])*
        /// # Safety
        /// stat(2).
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C-unwind" fn $name($of: $of_type, found: *mut c_void) -> c_int {
            let next = next::$next.get();
            // SAFETY: the program's own call.
            let result = unsafe { next($of, found) };
            if result == 0 && redirect::is_on() {
                let found: *mut $stat = found.cast();
                // SAFETY: libc has just filled in this struct there, which the program has given for it.
                let found = unsafe { &mut *found };
                found.st_rdev = redirect::seen(found.st_rdev);
            }
            result
        }
    )* };
}

/// `struct stat` with a 64-bit `time_t` on 32 bits (glibc's bits/struct_stat_time64_helper.h), as far as we know it.
#[cfg(target_pointer_width = "32")]
#[repr(C)]
struct StatTime64 {
    device_and_inode: [u64; 2],
    mode_links_owner: [u32; 4],
    st_rdev: u64,
}

stats! {
    stat, STAT, path: *const c_char, libc::stat;
    fstat, FSTAT, fd: c_int, libc::stat;
    stat64, STAT64, path: *const c_char, libc::stat64;
    fstat64, FSTAT64, fd: c_int, libc::stat64;
    #[cfg(target_pointer_width = "32")]
    __stat64_time64, STAT64_TIME64, path: *const c_char, StatTime64;
    #[cfg(target_pointer_width = "32")]
    __fstat64_time64, FSTAT64_TIME64, fd: c_int, StatTime64;
}
