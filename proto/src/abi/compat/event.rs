//! `v4l2_event`. A client only receives it.

use super::Layout;
use super::piece::{same, signed};

/// `struct v4l2_event32_time32` where 64-bit integers are aligned to 4 bytes.
pub(super) const EVENT_TIME32_I386: Layout = Layout::new(
    "v4l2_event",
    120,
    136,
    &[
        same("type", 0, 0, 4).out(),
        same("u", 4, 8, 64).out(),
        same("pending", 68, 72, 4).out(),
        same("sequence", 72, 76, 4).out(),
        signed("timestamp.tv_sec", 76, 80).out(),
        signed("timestamp.tv_nsec", 80, 88).out(),
        same("id", 84, 96, 4).out(),
        same("reserved", 88, 100, 32).out(),
    ],
);

/// `struct v4l2_event32`, of i386 only.
pub(super) const EVENT_TIME64_I386: Layout = Layout::new(
    "v4l2_event",
    128,
    136,
    &[
        same("type", 0, 0, 4).out(),
        same("u", 4, 8, 64).out(),
        same("pending", 68, 72, 4).out(),
        same("sequence", 72, 76, 4).out(),
        // Eight bytes each for the kernel; libc calls the upper half of the nanoseconds padding.
        same("timestamp", 76, 80, 16).out(),
        same("id", 92, 96, 4).out(),
        same("reserved", 96, 100, 32).out(),
    ],
);

/// `struct v4l2_event32_time32` where 64-bit integers are aligned to 8 bytes.
pub(super) const EVENT_TIME32_ARM: Layout = Layout::new(
    "v4l2_event",
    128,
    136,
    &[
        same("type", 0, 0, 4).out(),
        same("u", 8, 8, 64).out(),
        same("pending", 72, 72, 4).out(),
        same("sequence", 76, 76, 4).out(),
        signed("timestamp.tv_sec", 80, 80).out(),
        signed("timestamp.tv_nsec", 84, 88).out(),
        same("id", 88, 96, 4).out(),
        same("reserved", 92, 100, 32).out(),
    ],
);
