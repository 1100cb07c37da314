//! The kernel's log since boot: whatever the tests have done, the kernel must not have complained.

use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::ensure;

use crate::report::figure;
use crate::setup::Test;

/// To be the last.
pub const TESTS: &[(&str, Test)] = &[("kernel_log::the_kernel_has_not_complained_since_boot", clean)];

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What a complaint looks like.
const COMPLAINTS: &[&str] = &[
    "BUG",
    "WARNING:",
    "Oops",
    "Call Trace",
    "general protection",
    "unable to handle",
    "refcount_t",
    "use-after-free",
    "UBSAN",
    "KASAN",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "bad unlock balance",
    "suspicious RCU usage",
    "blocked for more than",
    "soft lockup",
    "detected stall",
    "self-detected stall",
    "invoked oom-killer",
    "Out of memory",
    "segfault",
    "trap ",
    "unbalanced",
    "wrong timeout value",
    // A call that the daemon's own filter does not know, with --confine=log, or that has ended it.
    "type=1326",
];

/// Complaints that are not about us, each with the number of further complaints that belong to it, and why.
const ALLOWED: &[(&str, usize, &str)] = &[
    (
        "zbarcam[",
        0,
        "zbarcam of Debian 12 without a display crashes in libc, on every real node too",
    ),
    (
        "schedule_timeout: wrong timeout value",
        1,
        "vivid's capture thread, when a jiffy passes between two of its looks at the clock (vivid-kthread-cap.c, \
     `cur_jiffies + wait_jiffies - jiffies`): it computes a timeout of -1, and schedule_timeout shows a trace",
    ),
    (
        "sig=31 arch=c000003e syscall=59",
        0,
        "confine::a_program_cannot_be_started_from_within makes a daemon call execve, which ends it",
    ),
];

/// Keeps every line from now on, and those that are there. The ring may be full before the end otherwise.
pub fn watch() {
    thread::spawn(|| {
        let Ok(mut kmsg) = File::open("/dev/kmsg") else {
            return;
        };
        let mut record = [0; 8192];
        loop {
            match kmsg.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]).into_owned();
                    // "6,339,5140900,-;NET: Registered protocol family 10"
                    let line = text.lines().next().and_then(|line| line.split_once(';'));
                    let line = line.map_or(text.as_str(), |(_, line)| line).to_owned();
                    LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
                // EPIPE: the ring has gone round, and the next read goes on where it now begins.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => return,
            }
        }
    });
}

fn clean() -> anyhow::Result<()> {
    // What the last test has made the kernel say.
    thread::sleep(Duration::from_millis(500));
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    ensure!(
        lines.iter().any(|line| line.contains("Linux version")),
        "the log does not begin at boot"
    );
    let (mut complaints, mut allowed, mut belonging) = (vec![], vec![], 0);
    for line in &lines {
        if !COMPLAINTS.iter().any(|complaint| line.contains(complaint)) {
            continue;
        }
        if let Some((what, more, why)) = ALLOWED.iter().find(|(what, ..)| line.contains(what)) {
            belonging = *more;
            allowed.push((*what, *why));
        } else if belonging > 0 {
            belonging -= 1;
        } else {
            complaints.push(line.clone());
        }
    }
    figure(format!(
        "{} lines in the kernel's log, {} of them allowed complaints",
        lines.len(),
        allowed.len()
    ));
    allowed.dedup();
    for (what, why) in allowed {
        figure(format!("allowed in the kernel's log: {what}: {why}"));
    }
    let first = complaints.first().cloned().unwrap_or_default();
    let at = lines.iter().position(|line| *line == first).unwrap_or_default();
    ensure!(
        complaints.is_empty(),
        "{complaints:#?}; the first:\n{}",
        lines[at..]
            .iter()
            .take(30)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
    Ok(())
}
