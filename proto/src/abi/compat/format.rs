//! `v4l2_format`, and `v4l2_create_buffers`, which holds one.
//!
//! Of the union only the member that the type means is converted; a type that there is not cannot be.

use super::Layout;
use super::piece::{Member, Piece, Union, padding, same, unsigned};

/// `struct v4l2_format32`.
pub(super) const FORMAT: Layout =
    Layout::new("v4l2_format", 204, 208, &[same("type", 0, 0, 4)]).union(&Union {
        tag: (0, 0),
        start: (4, 8),
        len: 200,
        field: "fmt",
        members: MEMBERS,
    });

/// `struct v4l2_create_buffers32`.
pub(super) const CREATE_BUFFERS: Layout = Layout::new(
    "v4l2_create_buffers",
    248,
    256,
    &[
        same("index", 0, 0, 4),
        same("count", 4, 4, 4),
        same("memory", 8, 8, 4),
        same("format.type", 12, 16, 4),
        same("capabilities", 216, 224, 4).out(),
        same("flags", 220, 228, 4),
        same("max_num_buffers", 224, 232, 4),
        same("reserved", 228, 236, 20).out(),
    ],
)
.union(&Union {
    tag: (12, 16),
    start: (16, 24),
    len: 200,
    field: "format.fmt",
    members: MEMBERS,
});

/// The members by `enum v4l2_buf_type`, in its order.
const MEMBERS: &[Member] = &[
    member(&[1, 2], &[same("pix", 0, 0, 48)]),
    member(&[3, 8], WINDOW),
    member(&[4, 5], &[same("vbi", 0, 0, 44)]),
    member(&[6, 7], &[same("sliced", 0, 0, 112)]),
    member(&[9, 10], &[same("pix_mp", 0, 0, 192)]),
    member(&[11, 12], &[same("sdr", 0, 0, 32)]),
    member(&[13, 14], &[same("meta", 0, 0, 20)]),
];

/// `struct v4l2_window32`. Clips and bitmap are nothing for 6.12; 6.1 follows them, and gets no bitmap.
const WINDOW: &[Piece] = &[
    same("win.w", 0, 0, 16),
    same("win.field", 16, 16, 4),
    same("win.chromakey", 20, 20, 4),
    unsigned("win.clips", 24, 24),
    same("win.clipcount", 28, 32, 4),
    unsigned("win.bitmap", 32, 40).neither(),
    same("win.global_alpha", 36, 48, 1),
    padding(37, 49, 3),
];

const fn member(is_one_of: &'static [u32], pieces: &'static [Piece]) -> Member {
    Member { is_one_of, pieces }
}
