//! What clients see: requests of a node turned into calls of sessions.

mod argument;
pub mod fb;
pub mod shim;
pub mod video;
