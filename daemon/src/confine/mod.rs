//! Giving up what root may and the daemon need not: capabilities and system calls.
//!
//! What is kept is two tables with reasons, [`capabilities::TABLE`] and [`syscalls::TABLE`], which
//! `vidcompatd --confine-list` prints. Nothing here knows what the daemon does; the rest of the daemon does not know that
//! it is confined, but for what fails where a capability is missing.
//!
//! It is done once, by the only thread there is, before the first device is opened: threads inherit all of it, and the very
//! first client meets a confined daemon.
//!
//! **Landlock is not used, because it cannot be.** A process with Landlock rules may not access any process that has not
//! the same rules, whatever its capabilities (security/landlock/task.c, `hook_ptrace_access_check`): process_vm_readv,
//! /proc/PID/mem, maps, pagemap and pidfd_getfd of every client would be EPERM, and they are what the daemon lives from. No
//! right of Landlock's lifts that. What a path may be opened for is said by the unit instead (ProtectSystem,
//! DeviceAllow).

use std::fmt::Write;

use clap::ValueEnum;

pub mod capabilities;
mod filter;
pub mod syscalls;

use filter::Unlisted;

/// How much of it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Nothing: the daemon may what it was started with.
    Off,
    /// Nothing is taken away; what would be is in the log, and a system call that is not in the table has a line
    /// `type=1326` in the kernel's.
    Log,
    /// Capabilities are given up, and system calls that are not in the table are refused.
    #[default]
    Enforce,
}

/// Confines this process. Whatever cannot be done is told, and the daemon serves all the same: a kernel without seccomp, or
/// a container that has done it already, is no reason not to.
pub fn confine(mode: Mode) {
    match mode {
        Mode::Off => {
            tracing::warn!(
                "not confined (--confine=off): vidcompatd may do everything that it was started with"
            );
        }
        Mode::Log => {
            tell(capabilities::look(), "would be given up");
            filter(Unlisted::Logged);
        }
        Mode::Enforce => {
            tell(capabilities::reduce(), "given up");
            filter(Unlisted::Refused);
        }
    }
}

fn tell(outcome: Result<capabilities::Outcome, caps::errors::CapsError>, what: &str) {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => {
            return tracing::warn!("capabilities cannot be given up ({error}), and all stay as they are");
        }
    };
    if !outcome.given_up.is_empty() {
        let names: Vec<_> = outcome.given_up.iter().map(ToString::to_string).collect();
        tracing::debug!("capabilities {what}: {}", names.join(" "));
    }
    for needed in outcome.missing {
        tracing::warn!("{} is missing, so: {}", needed.capability, needed.lost);
    }
}

fn filter(unlisted: Unlisted) {
    let installed = match unlisted {
        Unlisted::Logged => Ok(()),
        Unlisted::Refused => crate::sys::tell_of_refused_calls(),
    };
    let installed = installed.map_err(|error| error.to_string());
    if let Err(error) = installed.and_then(|()| filter::install(unlisted).map_err(|error| error.to_string()))
    {
        tracing::warn!("system calls are not filtered ({error}): this kernel or container does not allow it");
    }
}

/// Both tables, for somebody who must judge them.
#[must_use]
pub fn list() -> String {
    let mut page = String::from(
        "Capabilities that vidcompatd keeps; all others are given up before the first device is opened.\n\n",
    );
    // Writing to a String cannot fail.
    for needed in capabilities::TABLE {
        let _ = writeln!(
            page,
            "{}\n  for:     {}\n  without: {}",
            needed.capability, needed.reason, needed.lost
        );
    }
    page.push_str(
        "\nSystem calls that it may make; all others are refused (ENOSYS), and the log tells of the first one of each.\n",
    );
    let mut purpose = None;
    for call in syscalls::TABLE {
        if purpose.replace(call.purpose) != Some(call.purpose) {
            let _ = writeln!(page, "\n{}:", call.purpose.heading());
        }
        let _ = writeln!(page, "  {:<18} {}", call.name(), call.reason);
        if let Some(only) = call.only {
            let _ = writeln!(page, "  {:<18}   only: {}", "", only.words);
        }
    }
    page.push_str("\nThese end the process at once, since no part of it makes them:\n ");
    let mut width = 0;
    for call in syscalls::DEADLY {
        if width > 90 {
            page.push_str("\n ");
            width = 0;
        }
        width += call.name().len() + 1;
        let _ = write!(page, " {}", call.name());
    }
    page.push('\n');
    page
}

#[cfg(test)]
mod tests {
    use super::{capabilities, list, syscalls};

    #[test]
    fn the_list_has_every_row_with_its_reason() {
        let page = list();
        for needed in capabilities::TABLE {
            assert!(page.contains(&needed.capability.to_string()) && page.contains(needed.reason));
        }
        for call in syscalls::TABLE {
            assert!(
                page.contains(&format!("  {:<18} {}", call.name(), call.reason)),
                "{call:?}"
            );
        }
        for call in syscalls::DEADLY {
            assert!(page.contains(call.name()), "{call:?}");
        }
    }
}
