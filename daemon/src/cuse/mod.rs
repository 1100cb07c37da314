//! The CUSE transport: requests of one character device in, answers out, in any order and from any thread.
//!
//! It speaks the FUSE protocol on `/dev/cuse` itself (the structs come from `polyfuse-kernel`, the vocabulary from
//! `fuser`, whose own session cannot carry a CUSE node). It knows nothing of video, of sessions or of clients'
//! memory. Anything that behaves like `/dev/cuse` will do as a channel: the tests use a socket pair.
//!
//! Promises that the layers above rely on:
//! - a request that was read is always answered: a [`Reply`] that is dropped answers `EIO` (a client whose request
//!   stays unanswered cannot even be killed);
//! - OPEN, POLL and INTERRUPT are never answered `ENOSYS`, which the kernel would remember for the whole connection;
//! - a request that may sleep can be interrupted from the moment it was read, whoever reads the interrupt
//!   ([`Interrupts`]).

mod channel;
mod init;
mod interrupts;
mod readers;
mod reply;
mod request;
#[cfg(test)]
mod tests;
mod under_way;

pub use channel::{Channel, MAX_IO, READ_BUFFER};
pub use init::{InitError, Kernel, NodeSpec, initialize};
pub use interrupts::{Interrupted, Interrupts, Ticket};
pub use readers::{Handler, Turn, serve};
pub use reply::{ClientArea, ForIoctl, ForOpen, ForPoll, ForRead, ForRelease, ForWrite, MAX_AREAS, Reply};
pub use request::{Caller, IoctlRequest, Operation, Request};
pub use under_way::{Kind, UnderWay, Work, now};
