//! What people are told: the state of a running daemon (`vidcompat status`, asked for at its control socket) and what
//! stands behind a stretch of a process's memory (`vidcompat explain`, which needs no daemon).
//!
//! It only looks: nothing here changes what a session does, and nothing of the daemon waits for a person who asks.

pub mod ask;
pub mod claim;
pub mod control;
pub mod model;
