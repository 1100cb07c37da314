//! Structs with one pointer to an array: extended controls and EDID.

use super::Layout;
use super::piece::{same, unsigned};

/// `struct v4l2_ext_control32` of a control whose value is a pointer. Only the pointer differs, and it is never written
/// back (v4l2-compat-ioctl32.c:1175): what it points to is. Every other control is the same 20 bytes in both ABIs; which
/// ones hold a pointer only the driver knows (`V4L2_CTRL_FLAG_HAS_PAYLOAD`).
pub(super) const EXT_CONTROL: Layout = Layout::new(
    "v4l2_ext_control",
    20,
    20,
    &[
        same("id", 0, 0, 4),
        same("size", 4, 4, 4),
        same("reserved2", 8, 8, 4),
        unsigned("string", 12, 12).taken(),
    ],
);

/// `struct v4l2_ext_controls32`. The kernel writes back the pointer that it was given, so it stays.
pub(super) const EXT_CONTROLS: Layout = Layout::new(
    "v4l2_ext_controls",
    24,
    32,
    &[
        same("which", 0, 0, 4),
        same("count", 4, 4, 4),
        same("error_idx", 8, 8, 4),
        same("request_fd", 12, 12, 4),
        same("reserved", 16, 16, 4),
        unsigned("controls", 20, 24).taken(),
    ],
)
.array_of(&EXT_CONTROL);

/// `struct v4l2_edid32`. The pointer is not written back.
pub(super) const EDID: Layout = Layout::new(
    "v4l2_edid",
    36,
    40,
    &[
        same("pad", 0, 0, 4),
        same("start_block", 4, 4, 4),
        same("blocks", 8, 8, 4),
        same("reserved", 12, 12, 20),
        unsigned("edid", 32, 32).taken(),
    ],
);
