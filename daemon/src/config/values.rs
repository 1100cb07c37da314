//! Values that a file has as text: read as the command line reads them, so that a mistake is told in the same words.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::cli::{parse_size, parse_socket};
use crate::devices::FbSource;
use crate::resolve::Rule;

/// Text that is read into a `T`.
pub(super) struct Text<T>(pub(super) T);

/// How text is read into it.
pub(super) trait FromText: Sized {
    /// What a value looks like, for somebody who has given no text at all.
    const LOOK: &'static str;

    fn from_text(text: &str) -> Result<Self, String>;
}

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<T: FromText> Visitor<'_> for Reader<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::LOOK)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                T::from_text(text).map(Text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Reader(PhantomData))
    }
}

/// Bytes.
pub(super) struct Size(pub(super) u64);

impl FromText for Size {
    const LOOK: &'static str = "a size in quotes such as \"256M\"";

    fn from_text(text: &str) -> Result<Self, String> {
        parse_size(text).map(Self)
    }
}

/// Where a socket is to be.
pub(super) struct Socket(pub(super) PathBuf);

impl FromText for Socket {
    const LOOK: &'static str = "the path of a socket in quotes, or \"none\"";

    fn from_text(text: &str) -> Result<Self, String> {
        parse_socket(text).map(Self)
    }
}

impl FromText for Rule {
    const LOOK: &'static str = "a rule in quotes such as \"virtio_gpu:vmalloc=forbid\"";

    fn from_text(text: &str) -> Result<Self, String> {
        Self::from_str(text).map_err(|error| error.to_string())
    }
}

impl FromText for FbSource {
    const LOOK: &'static str = "a framebuffer in quotes such as \"kms:/dev/dri/card0\"";

    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

/// A quarter of `/proc/meminfo`'s MemTotal, in bytes.
pub(super) fn quarter_of_memory() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: Option<u64> = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kib.map_or(512 << 20, |kib| kib * 1024 / 4)
}
