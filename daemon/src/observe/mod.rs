//! What people are told: the state of a running daemon (`vidcompat status`, asked for at its control socket) and what
//! stands behind a stretch of a process's memory (`vidcompat explain`, which needs no daemon).
//!
//! It only looks: nothing here changes what a session does, and nothing of the daemon waits for a person who asks.

use std::fmt::Write;

pub mod ask;
pub mod claim;
pub mod command;
pub mod control;
pub mod explain;
pub mod model;
pub mod native;
pub mod show;
pub mod show_explain;

/// Where the control socket of a daemon is, unless it is told otherwise.
pub const CONTROL: &str = "/run/vidcompat/control.sock";

/// `text` without anything that a terminal would obey: names of files and processes are whatever their owners like.
fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            // Into a string: that cannot fail.
            let _ = write!(safe, "{}", character.escape_default());
        } else {
            safe.push(character);
        }
    }
    safe
}
