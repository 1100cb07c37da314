//! Video standard, input and overlay framebuffer.

use super::Layout;
use super::piece::{same, unsigned};

/// `struct v4l2_standard32` of i386. The client gives nothing but the index.
pub(super) const STANDARD_I386: Layout = Layout::new(
    "v4l2_standard",
    64,
    72,
    &[
        same("index", 0, 0, 4),
        same("id", 4, 8, 8).out(),
        same("name", 12, 16, 24).out(),
        same("frameperiod", 36, 40, 8).out(),
        same("framelines", 44, 48, 4).out(),
        same("reserved", 48, 52, 16).out(),
    ],
);

/// `struct v4l2_input32` of i386: without the padding at the end.
pub(super) const INPUT_I386: Layout = Layout::new(
    "v4l2_input",
    76,
    80,
    &[
        same("index", 0, 0, 4),
        same("name", 4, 4, 32),
        same("type", 36, 36, 4),
        same("audioset", 40, 40, 4),
        same("tuner", 44, 44, 4),
        same("std", 48, 48, 8),
        same("status", 56, 56, 4),
        same("capabilities", 60, 60, 4),
        same("reserved", 64, 64, 12),
    ],
);

/// `struct v4l2_framebuffer32`. A base that the client gives is dropped; the driver's own is cut off to what fits.
pub(super) const FRAMEBUFFER: Layout = Layout::new(
    "v4l2_framebuffer",
    44,
    48,
    &[
        same("capability", 0, 0, 4),
        same("flags", 4, 4, 4),
        unsigned("base", 8, 8).out(),
        same("fmt", 12, 16, 32),
    ],
);
