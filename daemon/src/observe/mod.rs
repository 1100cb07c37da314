//! What people are told: the state of a running daemon (`vidcompat status`, asked for at its control socket) and what
//! stands behind a stretch of a process's memory (`vidcompat explain`, which needs no daemon).
//!
//! It only looks: nothing here changes what a session does, and nothing of the daemon waits for a person who asks.

pub mod ask;
mod bug_report;
pub mod command;
pub mod control;
pub mod doctor;
pub mod explain;
pub mod latency;
pub mod metrics;
pub mod model;
pub mod native;
mod page;
pub mod scrape;
pub mod screenshot;
pub mod show;
pub mod show_explain;
mod show_fb;
mod table;
mod watch;

/// Where the control socket of a daemon is, unless it is told otherwise.
pub const CONTROL: &str = "/run/vidcompat/control.sock";
