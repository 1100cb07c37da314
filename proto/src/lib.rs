//! Everything about V4L2 that can be said without doing it: the ioctl table, the structs, and the state of a
//! buffer queue; and what shim and daemon say to each other.
//!
//! This crate does no I/O, reads no clock and has no `unsafe`. It knows nothing of FUSE, of processes or of how
//! memory is reached; whoever uses it does the work and tells it what came of it.
#![forbid(unsafe_code)]

#[cfg(feature = "tables")]
pub mod abi;
mod errno;
#[cfg(feature = "tables")]
pub mod fourcc;
pub mod ioc;
#[cfg(feature = "tables")]
pub mod ioctl;
#[cfg(feature = "tables")]
pub mod queue;
#[cfg(feature = "tables")]
pub mod screen;
pub mod shim;

pub use errno::Errno;
