//! The functions that the program would have reached without us: libc's, or those of another preloaded library.

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::marker::PhantomData;
use std::mem::transmute_copy;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};

use crate::sys;

/// The next definition of a symbol, found when it is first needed; `F` is the function's type.
///
/// `dlsym` may lead back to us: in glibc before 2.34 it allocates in a thread's first call, and an allocator may call mmap,
/// close or syscall. Nothing is locked here, so that a thread may come by again, look for the same symbol and find it.
/// Only mmap of anonymous memory, an allocator's own source, must not depend on it ([`Next::found`]).
pub(crate) struct Next<F> {
    symbol: &'static CStr,
    at: AtomicPtr<c_void>,
    function: PhantomData<F>,
}

impl<F: Copy> Next<F> {
    /// Of the function `symbol`, whose type is `F`.
    ///
    /// # Safety
    /// That it is: a function pointer of the C ABI, to a function that returns an `int`, a `long`, a pointer, or nothing.
    pub(crate) const unsafe fn new(symbol: &'static CStr) -> Self {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        Self {
            symbol,
            at: AtomicPtr::new(null_mut()),
            function: PhantomData,
        }
    }

    /// The function.
    #[inline]
    pub(crate) fn get(&self) -> F {
        self.found().unwrap_or_else(|| Self::function(self.find()))
    }

    /// The function if it has been looked for before.
    #[inline]
    pub(crate) fn found(&self) -> Option<F> {
        let at = self.at.load(Ordering::Relaxed);
        (!at.is_null()).then(|| Self::function(at))
    }

    #[inline]
    fn function(at: *mut c_void) -> F {
        // SAFETY: `at` is the address of a function of type `F`, as `new` was promised, or of `missing`.
        unsafe { transmute_copy::<*mut c_void, F>(&at) }
    }

    #[cold]
    #[inline(never)]
    fn find(&self) -> *mut c_void {
        let errno = sys::errno();
        // SAFETY: the symbol ends in a NUL. RTLD_NEXT goes by the caller's address, and this is no tail call.
        let mut at = unsafe { libc::dlsym(libc::RTLD_NEXT, self.symbol.as_ptr()) };
        if at.is_null() {
            at = missing as *mut c_void;
        }
        // Whoever else looks finds the same.
        self.at.store(at, Ordering::Relaxed);
        find_all();
        sys::set_errno(errno);
        at
    }
}

/// Stands for a function that this libc does not have; then no program calls it, unless it has found it through us.
///
/// In the C ABIs of x86-64, i386, aarch64 and armhf the caller removes the arguments, and -1 is -1 as an `int`, as a `long`
/// and as `MAP_FAILED`.
extern "C" fn missing() -> isize {
    sys::set_errno(libc::ENOSYS);
    -1
}

type Close = unsafe extern "C-unwind" fn(c_int) -> c_int;
type CloseRange = unsafe extern "C-unwind" fn(c_uint, c_uint, c_int) -> c_int;
type Closefrom = unsafe extern "C-unwind" fn(c_int);
type Dup2 = unsafe extern "C-unwind" fn(c_int, c_int) -> c_int;
type Dup3 = unsafe extern "C-unwind" fn(c_int, c_int, c_int) -> c_int;
/// Variadic in C, and with all its arguments here: see `entry`. (x86-64 has in `al` how many vector registers a variadic
/// call uses at most. Here it is anything; compiled functions only look whether it is 0, to spare themselves saving them.)
/// So a call can be a jump, which for variadic ones it cannot.
pub(crate) type Ioctl = unsafe extern "C-unwind" fn(c_int, c_ulong, *mut c_void) -> c_int;
type Lseek<Offset> = unsafe extern "C-unwind" fn(c_int, Offset, c_int) -> Offset;
type Mmap<Offset> =
    unsafe extern "C-unwind" fn(*mut c_void, usize, c_int, c_int, c_int, Offset) -> *mut c_void;
type Fopen = unsafe extern "C-unwind" fn(*const c_char, *const c_char) -> *mut c_void;
type Open = unsafe extern "C-unwind" fn(*const c_char, c_int, ...) -> c_int;
type Open2 = unsafe extern "C-unwind" fn(*const c_char, c_int) -> c_int;
type Openat = unsafe extern "C-unwind" fn(c_int, *const c_char, c_int, ...) -> c_int;
type Openat2 = unsafe extern "C-unwind" fn(c_int, *const c_char, c_int) -> c_int;
type Stat = unsafe extern "C-unwind" fn(*const c_char, *mut c_void) -> c_int;
type Fstat = unsafe extern "C-unwind" fn(c_int, *mut c_void) -> c_int;
/// As [`Ioctl`]. The result is a `long`, and an address after mmap.
type Syscall = unsafe extern "C-unwind" fn(c_long, usize, usize, usize, usize, usize, usize) -> usize;

macro_rules! functions {
    ($($(#[$attribute:meta])* $name:ident = $symbol:literal, $function:ty;)*) => {
        $(
            $(#[$attribute])*
            // SAFETY: as glibc's headers declare it.
            pub(crate) static $name: Next<$function> = unsafe { Next::new($symbol) };
        )*

        /// The rest of them together with the first, which comes early in a program: later would be in a signal handler,
        /// a child of vfork, or under an allocator's lock.
        fn find_all() {
            static BEGUN: AtomicBool = AtomicBool::new(false);
            if !BEGUN.swap(true, Ordering::Relaxed) {
                $($(#[$attribute])* { $name.get(); })*
            }
        }
    };
}

functions! {
    CLOSE = c"close", Close;
    CLOSE_RANGE = c"close_range", CloseRange;
    CLOSEFROM = c"closefrom", Closefrom;
    DUP2 = c"dup2", Dup2;
    DUP3 = c"dup3", Dup3;
    IOCTL = c"ioctl", Ioctl;
    #[cfg(target_pointer_width = "32")]
    IOCTL_TIME64 = c"__ioctl_time64", Ioctl;
    MMAP = c"mmap", Mmap<usize>;
    MMAP64 = c"mmap64", Mmap<u64>;
    LSEEK = c"lseek", Lseek<isize>;
    LSEEK64 = c"lseek64", Lseek<i64>;
    SYSCALL = c"syscall", Syscall;
    OPEN = c"open", Open;
    OPEN64 = c"open64", Open;
    OPENAT = c"openat", Openat;
    OPENAT64 = c"openat64", Openat;
    OPEN_2 = c"__open_2", Open2;
    OPEN64_2 = c"__open64_2", Open2;
    OPENAT_2 = c"__openat_2", Openat2;
    OPENAT64_2 = c"__openat64_2", Openat2;
    FOPEN = c"fopen", Fopen;
    FOPEN64 = c"fopen64", Fopen;
    STAT = c"stat", Stat;
    FSTAT = c"fstat", Fstat;
    STAT64 = c"stat64", Stat;
    FSTAT64 = c"fstat64", Fstat;
    #[cfg(target_pointer_width = "32")]
    STAT64_TIME64 = c"__stat64_time64", Stat;
    #[cfg(target_pointer_width = "32")]
    FSTAT64_TIME64 = c"__fstat64_time64", Fstat;
}

/// Is the next `ioctl` that of libv4l's preloads? They convert and emulate, so they must see what the program says and not
/// what we make of it; then they call the kernel through `syscall`, where we are asked again.
pub(crate) fn is_libv4l() -> bool {
    const UNKNOWN: u8 = 0;
    const NO: u8 = 1;
    const YES: u8 = 2;
    static KNOWN: AtomicU8 = AtomicU8::new(UNKNOWN);
    let mut known = KNOWN.load(Ordering::Relaxed);
    if known == UNKNOWN {
        IOCTL.get();
        known = match library_of(IOCTL.at.load(Ordering::Relaxed)) {
            Some(path) if is_libv4ls(path.to_bytes()) => YES,
            _ => NO,
        };
        KNOWN.store(known, Ordering::Relaxed);
    }
    known == YES
}

/// By the names that v4l-utils installs.
fn is_libv4ls(path: &[u8]) -> bool {
    let file = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    file.starts_with(b"v4l2convert.so") || file.starts_with(b"v4l1compat.so")
}

/// The path of the library that `function` is in.
fn library_of(function: *mut c_void) -> Option<&'static CStr> {
    let mut found = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: null_mut(),
    };
    // SAFETY: any address may be asked for, and `found` is writable.
    let known = unsafe { libc::dladdr(function, &raw mut found) };
    if known == 0 || found.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's name of a library, which ends in a NUL and stays while the library is loaded: a preloaded one
    // always is.
    Some(unsafe { CStr::from_ptr(found.dli_fname) })
}

#[cfg(test)]
mod tests {
    use super::{CLOSE, Next, is_libv4l, is_libv4ls};
    use crate::sys;
    use std::ffi::c_int;

    #[test]
    fn the_next_close_is_libcs() {
        sys::set_errno(4711);
        let close = CLOSE.get();
        assert_eq!(sys::errno(), 4711);
        assert!(CLOSE.found().is_some());
        // SAFETY: no fd has this number.
        assert_eq!(unsafe { close(-1) }, -1);
        assert_eq!(sys::errno(), libc::EBADF);
    }

    #[test]
    fn a_function_that_libc_has_not_says_so() {
        type Function = unsafe extern "C-unwind" fn(c_int) -> c_int;
        // SAFETY: there is no such function; the type is as good as any.
        static NOWHERE: Next<Function> = unsafe { Next::new(c"vidcompat_has_no_such_function") };
        assert!(NOWHERE.found().is_none());
        let nowhere = NOWHERE.get();
        // SAFETY: it takes no notice of its argument.
        assert_eq!(unsafe { nowhere(3) }, -1);
        assert_eq!(sys::errno(), libc::ENOSYS);
    }

    #[test]
    fn libv4ls_preloads_are_known_by_name() {
        assert!(!is_libv4l());
        assert!(is_libv4ls(b"/usr/lib/x86_64-linux-gnu/libv4l/v4l2convert.so"));
        assert!(is_libv4ls(b"v4l1compat.so"));
        assert!(!is_libv4ls(b"/opt/v4l2convert.so/libc.so.6"));
    }
}
