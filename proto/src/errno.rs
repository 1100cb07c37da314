//! The error number that a client sees.

use std::fmt;

/// A positive Linux error number, as `errno` holds it.
///
/// A number and not an enum: what a driver returns must reach the client as it is, also the numbers that no
/// header for user space names (`ENOTSUPP`, 524, is returned by several drivers).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident = $value:literal,)*) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "` of `asm-generic/errno.h`.")]
            pub const $name: Errno = Errno($value);)*
        }

        const NAMES: &[(i32, &str)] = &[$(($value, stringify!($name)),)*];
    };
}

errnos! {
    EPERM = 1,
    ENOENT = 2,
    ESRCH = 3,
    EINTR = 4,
    EIO = 5,
    ENXIO = 6,
    E2BIG = 7,
    EAGAIN = 11,
    ENOMEM = 12,
    EACCES = 13,
    EFAULT = 14,
    EBUSY = 16,
    ENODEV = 19,
    EINVAL = 22,
    ENFILE = 23,
    ENOTTY = 25,
    EPIPE = 32,
    EBADR = 53,
    EOVERFLOW = 75,
    ENOBUFS = 105,
}

impl Errno {
    /// The error number `raw`, or `EIO` where `raw` is no error number at all.
    #[must_use]
    pub const fn from_raw(raw: i32) -> Self {
        if raw > 0 && raw < 4096 {
            Self(raw)
        } else {
            Self::EIO
        }
    }

    /// The number, positive.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(value, _)| *value == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::Errno;

    #[test]
    fn numbers_without_a_name_are_kept_and_non_errors_become_eio() {
        assert_eq!(Errno::from_raw(524).raw(), 524);
        assert_eq!(Errno::from_raw(524).to_string(), "errno 524");
        assert_eq!(Errno::from_raw(0), Errno::EIO);
        assert_eq!(Errno::from_raw(-22), Errno::EIO);
        assert_eq!(Errno::from_raw(22).to_string(), "EINVAL");
    }
}
