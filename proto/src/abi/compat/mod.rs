//! What a 32-bit client's structs look like, as tables, and the conversion by them.
//!
//! Only structs that differ from the 64-bit ones have a table; all others are the same bytes. What is taken from the
//! client and what is given back follows the kernel's own conversion (v4l2-compat-ioctl32.c of 6.12). A pointer is
//! widened and nothing more: whose memory it lies in, and that the kernel must not see it, is for others to know.

mod buffer;
mod control;
mod event;
mod format;
#[cfg(test)]
mod headers;
mod piece;
#[cfg(test)]
mod properties;
mod standard;
#[cfg(test)]
mod tests;

use super::ClientAbi;
use crate::Errno;
use piece::{Piece, Union};

/// How one struct of a 32-bit client lies in its bytes, and where the 64-bit struct has the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// `struct NAME` of `linux/videodev2.h`.
    name: &'static str,
    compat_size: usize,
    native_size: usize,
    pieces: &'static [Piece],
    union: Option<&'static Union>,
    element: Option<&'static Layout>,
}

impl Layout {
    /// # Panics
    /// At compile time, for a table whose pieces overlap or lie outside of their structs.
    const fn new(
        name: &'static str,
        compat_size: usize,
        native_size: usize,
        pieces: &'static [Piece],
    ) -> Self {
        piece::assert_in_order(pieces, compat_size, native_size);
        Self {
            name,
            compat_size,
            native_size,
            pieces,
            union: None,
            element: None,
        }
    }

    /// With a union whose members differ. It must lie between two pieces, or at the end.
    const fn union(mut self, union: &'static Union) -> Self {
        union.assert_within(self.pieces, self.compat_size, self.native_size);
        self.union = Some(union);
        self
    }

    const fn array_of(mut self, element: &'static Layout) -> Self {
        self.element = Some(element);
        self
    }

    /// Size of the 32-bit struct in bytes, which is also what its ioctl number holds.
    #[must_use]
    pub const fn compat_size(&self) -> usize {
        self.compat_size
    }

    /// Size of the 64-bit struct in bytes.
    #[must_use]
    pub const fn native_size(&self) -> usize {
        self.native_size
    }

    /// Layout of the elements of the array that this struct points to, where they differ as well: `v4l2_plane` of a
    /// `v4l2_buffer`, `v4l2_ext_control` of `v4l2_ext_controls`.
    ///
    /// A 32-bit client that calls an ioctl by its 64-bit number has no layout and so none for its array either, as in
    /// the kernel (v4l2-compat-ioctl32.c:1067).
    #[must_use]
    pub const fn element(&self) -> Option<&'static Layout> {
        self.element
    }

    /// Makes the 64-bit struct of what a client gave; bytes that the client does not give are zero.
    ///
    /// Takes slices of any length: a field that either of them has no room for is left out.
    ///
    /// # Errors
    /// `EINVAL`: a format of a type that there is not. The driver is not asked then, not even whether it knows the
    /// ioctl.
    pub fn to_native(&self, compat: &[u8], native: &mut [u8]) -> Result<(), Errno> {
        native.fill(0);
        for piece in self.pieces {
            piece.take(compat, native);
        }
        if let Some(union) = self.union {
            for piece in union.pieces(compat, union.tag.0).ok_or(Errno::EINVAL)? {
                piece.take(compat, native);
            }
        }
        Ok(())
    }

    /// Puts the 64-bit struct of an answer into `compat`, which holds what the client gave (zeroes where it gave
    /// nothing).
    ///
    /// What the kernel would not write to the client stays as it is: an array's pointer, padding, what follows the
    /// member of a union. Takes slices of any length: a field that either of them has no room for is left out.
    pub fn from_native(&self, native: &[u8], compat: &mut [u8]) {
        for piece in self.pieces {
            piece.give(native, compat);
        }
        // A driver gives no other type than it was given.
        let pieces = self.union.and_then(|union| union.pieces(native, union.tag.1));
        for piece in pieces.into_iter().flatten() {
            piece.give(native, compat);
        }
    }
}

/// A `v4l2_plane` of a client of `abi`, where it is not that of this program. Both 32-bit ABIs have the same.
#[must_use]
pub const fn plane(abi: ClientAbi) -> Option<&'static Layout> {
    match abi {
        ClientAbi::Native => None,
        ClientAbi::I386 | ClientAbi::Arm32 => Some(&buffer::PLANE),
    }
}

/// The layouts that the struct of V4L2 ioctl `number` has in `abi`, where it is not that of this program: one, or one
/// for each size of time.
pub(crate) const fn layouts(abi: ClientAbi, number: u8) -> &'static [&'static Layout] {
    match (abi, number) {
        (ClientAbi::Native, _) => &[],
        (_, 4 | 5 | 64) => &[&format::FORMAT],
        (ClientAbi::I386, 9 | 15 | 17 | 93) => &[&buffer::BUFFER_TIME32, &buffer::BUFFER_TIME64_I386],
        (ClientAbi::Arm32, 9 | 15 | 17 | 93) => &[&buffer::BUFFER_TIME32, &buffer::BUFFER_TIME64_ARM],
        (_, 10 | 11) => &[&standard::FRAMEBUFFER],
        (ClientAbi::I386, 25) => &[&standard::STANDARD_I386],
        (ClientAbi::I386, 26) => &[&standard::INPUT_I386],
        (_, 40 | 41) => &[&control::EDID],
        (_, 71..=73) => &[&control::EXT_CONTROLS],
        (ClientAbi::I386, 89) => &[&event::EVENT_TIME32_I386, &event::EVENT_TIME64_I386],
        // With 64-bit time ARM's is the struct of this program.
        (ClientAbi::Arm32, 89) => &[&event::EVENT_TIME32_ARM],
        (_, 92) => &[&format::CREATE_BUFFERS],
        _ => &[],
    }
}

const _: () = assert!(
    cfg!(target_endian = "little"),
    "the union `m` holds an fd in the low half of its eight bytes"
);
