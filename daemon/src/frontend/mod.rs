//! What clients see: requests of a node turned into calls of sessions.

pub mod video;
