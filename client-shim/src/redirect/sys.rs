//! What redirection needs `unsafe` for.

use std::ffi::{CStr, c_char};

use rustix::fd::{AsRawFd, BorrowedFd};

unsafe extern "C" {
    /// libc's (environ(7)); null until it has begun.
    static environ: *const *const c_char;
}

/// What the environment has under `name`, if libc has begun.
pub(super) fn environment(name: &CStr) -> Option<Option<&'static CStr>> {
    // SAFETY: libc's variable, which it sets before the program has threads.
    if unsafe { environ }.is_null() {
        return None;
    }
    // SAFETY: a name that ends in a NUL.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: a string of the environment. `vidcompat run` has put it there, and libc never frees what it has not made.
    Some((!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }))
}

/// The program's path, if it begins so.
///
/// It is read before the kernel has looked at it: unlike open, this dies of an address where nothing is, as fopen and
/// every function of libc that takes a string. Of a null pointer it does not.
pub(super) fn program_path<'a>(path: *const c_char, start: &[u8]) -> Option<&'a CStr> {
    // The first page is nobody's.
    if path.addr() < 4096 {
        return None;
    }
    for (at, byte) in start.iter().enumerate() {
        let there = path.cast::<u8>().wrapping_add(at);
        // SAFETY: within the program's string: no byte before this one was its end.
        if unsafe { *there } != *byte {
            return None;
        }
    }
    // SAFETY: the program's string, which stays during its own call.
    Some(unsafe { CStr::from_ptr(path) })
}

/// Closes an fd that the next open has just made for us.
pub(super) fn close(fd: BorrowedFd<'_>) {
    // SAFETY: it is ours, and nobody else has learned of it. By the kernel itself: nothing was adopted for it.
    unsafe { rustix::io::close(fd.as_raw_fd()) };
}

#[cfg(test)]
mod tests {
    use super::{environment, program_path};

    #[test]
    fn the_environment_is_there_and_what_is_not_in_it_is_not() {
        assert!(environment(c"PATH").flatten().is_some());
        assert_eq!(environment(c"VIDCOMPAT_HAS_NO_SUCH_VARIABLE"), Some(None));
    }

    #[test]
    fn only_paths_that_begin_so_are_read_and_null_is_none() {
        let path = |text: &'static std::ffi::CStr| program_path(text.as_ptr(), b"/dev/");
        assert_eq!(path(c"/dev/video0"), Some(c"/dev/video0"));
        assert_eq!(path(c"/dev/"), Some(c"/dev/"));
        assert_eq!(path(c"/dev"), None);
        assert_eq!(path(c""), None);
        assert_eq!(program_path(std::ptr::null(), b"/dev/"), None);
    }
}
