//! From the table of system calls to what the kernel runs before each call.
//!
//! Three filters, of which the kernel takes the severest answer:
//! - what no part of the daemon can have asked for ends the process;
//! - `clone3` is ENOSYS, since a filter cannot see its flags: the C library then makes threads by `clone`;
//! - of the rest, what is not in the table is *refused*: the call fails with ENOSYS, and the operator gets one sentence
//!   for each number ([`crate::sys::tell_of_refused_calls`]).
//!
//! Why such a call does not end the process, as crosvm's and virtiofsd's do: it is more likely a new C library or a path
//! that no test has taken than an attack, and an attacker gains nothing from it, for the call is not made either way. A process
//! that ends is started again and is sent the same request again: a client that has found such a path could keep all
//! others' streams broken for good. ENOSYS is what every caller has to expect of an older kernel; where it reaches a
//! client at all it is EIO or ENOTTY (`cuse/reply.rs`), and the log says why.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::syscalls::{Call, DEADLY, TABLE, Test};

/// What happens to a call that is not in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// It is made, and the kernel's log has a line of it.
    Logged,
    /// It is refused, or the process ends.
    Refused,
}

/// Filters the calls of all threads of this process, for good. No new privileges can be got by exec from then on.
///
/// # Errors
/// A kernel without seccomp.
pub fn install(unlisted: Unlisted) -> Result<(), seccompiler::Error> {
    // The table does not allow to install any more: it comes last.
    for program in programs(unlisted)? {
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn programs(unlisted: Unlisted) -> Result<Vec<BpfProgram>, seccompiler::Error> {
    let deadly: Rules = DEADLY.iter().map(|call| (call.number, Vec::new())).collect();
    let listed: Result<Rules, seccompiler::BackendError> =
        TABLE.iter().map(|call| Ok((call.number, rules(call)?))).collect();
    let without_sight: Rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let no_such_call = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let hidden = program(without_sight, SeccompAction::Allow, no_such_call)?;
    Ok(match unlisted {
        Unlisted::Logged => vec![
            hidden,
            program(listed?, SeccompAction::Log, SeccompAction::Allow)?,
        ],
        Unlisted::Refused => vec![
            program(deadly, SeccompAction::Allow, SeccompAction::KillProcess)?,
            hidden,
            program(listed?, SeccompAction::Trap, SeccompAction::Allow)?,
        ],
    })
}

fn program(
    rules: Rules,
    others: SeccompAction,
    these: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, others, these, std::env::consts::ARCH.try_into()?)?.try_into()
}

fn rules(call: &Call) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let Some(only) = call.only else {
        return Ok(Vec::new());
    };
    let rule = |test: &Test| {
        let (operator, value) = match *test {
            Test::Is(value) => (SeccompCmpOp::Eq, value),
            Test::Masked(mask, value) => (SeccompCmpOp::MaskedEq(mask), value),
            Test::OurPid => (SeccompCmpOp::Eq, u64::from(std::process::id())),
        };
        // The kernel looks at 32 bits of each of these arguments.
        let condition = SeccompCondition::new(only.argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    only.tests.iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use super::{Unlisted, programs};

    /// linux/bpf_common.h: `BPF_MAXINSNS`
    const LONGEST: usize = 4096;

    #[test]
    fn the_table_becomes_programs_that_the_kernel_takes() {
        for unlisted in [Unlisted::Logged, Unlisted::Refused] {
            let programs = programs(unlisted).expect("programs");
            assert!(
                programs
                    .iter()
                    .all(|program| (4..LONGEST).contains(&program.len()))
            );
        }
    }
}
