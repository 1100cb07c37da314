//! The real devices.

pub mod v4l2;
mod watch;

pub use watch::{Readiness, Served, Wanted, Watch};
