//! Kernel structs as bytes: explicit padding, no pointers, safe to read from any memory.

pub mod v4l2;
