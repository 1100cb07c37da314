//! The real devices.

pub mod fbdev;
pub mod framebuffer;
pub mod kms;
pub mod output;
pub mod v4l2;
mod watch;

pub use watch::{Readiness, Served, Wanted, Watch};
