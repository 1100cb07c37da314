//! `v4l2_buffer` and its planes.
//!
//! `m` holds an offset, a pointer or an fd; widened with zeroes it is right for each of them.

use super::Layout;
use super::piece::{Piece, padding, same, signed, unsigned};

/// `struct v4l2_plane32`. On the way back `m` of a memory that is no `enum v4l2_memory` would be zero in the kernel;
/// no driver answers with such a one.
pub(super) const PLANE: Layout = Layout::new(
    "v4l2_plane",
    60,
    64,
    &[
        same("bytesused", 0, 0, 4),
        same("length", 4, 4, 4),
        unsigned("m", 8, 8),
        same("data_offset", 12, 16, 4),
        same("reserved", 16, 20, 44).neither(),
    ],
);

/// `struct v4l2_buffer32_time32`, the same on both architectures.
pub(super) const BUFFER_TIME32: Layout = buffer(
    68,
    &[
        same("index", 0, 0, 4),
        same("type", 4, 4, 4),
        same("bytesused", 8, 8, 4),
        same("flags", 12, 12, 4),
        same("field", 16, 16, 4),
        signed("timestamp.tv_sec", 20, 24),
        signed("timestamp.tv_usec", 24, 32),
        same("timecode", 28, 40, 16),
        same("sequence", 44, 56, 4),
        same("memory", 48, 60, 4),
        unsigned("m", 52, 64),
        same("length", 56, 72, 4),
        same("reserved2", 60, 76, 4).neither(),
        same("request_fd", 64, 80, 4),
    ],
);

/// `struct v4l2_buffer32` where 64-bit integers are aligned to 4 bytes.
pub(super) const BUFFER_TIME64_I386: Layout = buffer(
    76,
    &[
        same("index", 0, 0, 4),
        same("type", 4, 4, 4),
        same("bytesused", 8, 8, 4),
        same("flags", 12, 12, 4),
        same("field", 16, 16, 4),
        same("timestamp.tv_sec", 20, 24, 8),
        same("timestamp.tv_usec", 28, 32, 8),
        same("timecode", 36, 40, 16),
        same("sequence", 52, 56, 4),
        same("memory", 56, 60, 4),
        unsigned("m", 60, 64),
        same("length", 64, 72, 4),
        same("reserved2", 68, 76, 4).neither(),
        same("request_fd", 72, 80, 4),
    ],
);

/// `struct v4l2_buffer32` where they are aligned to 8 bytes.
pub(super) const BUFFER_TIME64_ARM: Layout = buffer(
    80,
    &[
        same("index", 0, 0, 4),
        same("type", 4, 4, 4),
        same("bytesused", 8, 8, 4),
        same("flags", 12, 12, 4),
        same("field", 16, 16, 4),
        padding(20, 20, 4),
        same("timestamp.tv_sec", 24, 24, 8),
        same("timestamp.tv_usec", 32, 32, 8),
        same("timecode", 40, 40, 16),
        same("sequence", 56, 56, 4),
        same("memory", 60, 60, 4),
        unsigned("m", 64, 64),
        same("length", 68, 72, 4),
        same("reserved2", 72, 76, 4).neither(),
        same("request_fd", 76, 80, 4),
    ],
);

const fn buffer(compat_size: usize, pieces: &'static [Piece]) -> Layout {
    Layout::new("v4l2_buffer", compat_size, 88, pieces).array_of(&PLANE)
}
