//! What outlives the daemon: files that somebody else holds for it, and what it has written down.
//!
//! A daemon that is killed loses its memory and its threads. What makes its clients' files go on lies outside: the
//! [`Store`] (systemd's fd store, or the keeper's) holds channels, real nodes, dma-bufs and [`Record`]s; the next daemon
//! gets all of them as its [`Inheritance`], reads the records, and asks the kernel for the requests that nobody has answered
//! (`FUSE_NOTIFY_RESEND`, Linux 6.9). What has been executed and not answered is executed again, so everything that a
//! request does is recorded before it is answered, and doing it again does it once.
//!
//! Nothing here knows of video, of sessions or of CUSE: names, files and bytes.

mod record;
mod store;
mod tries;

pub use record::{Record, RecordError};
pub use store::{Inheritance, Kept, Store};
pub use tries::{ENDED_BY, Tries, What, tell_end};
