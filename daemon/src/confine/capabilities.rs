//! What the daemon may do of all that root may: the table, and how the rest is given up.
//!
//! Only what the code really uses has a row. This module does not know where: each row says it in words, so that somebody
//! who must judge the table can look for the place, and so that a unit that takes one away can be told what is lost.

use std::collections::BTreeSet;

use caps::{CapSet, Capability, CapsHashSet};

/// A capability that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Which.
    pub capability: Capability,
    /// What it is used for.
    pub reason: &'static str,
    /// What does not work without it.
    pub lost: &'static str,
}

const fn needed(capability: Capability, reason: &'static str, lost: &'static str) -> Needed {
    Needed {
        capability,
        reason,
        lost,
    }
}

/// All that are kept.
pub const TABLE: &[Needed] = &[
    needed(
        Capability::CAP_SYS_PTRACE,
        "reads and writes the buffers of other users' programs (process_vm_readv, process_vm_writev, /proc/PID/mem), looks \
         what is mapped there (/proc/PID/maps, pagemap, syscall, fdinfo) and fetches their dma-bufs (pidfd_getfd)",
        "USERPTR and read() fail with EFAULT for every program that is not root's",
    ),
    needed(
        Capability::CAP_DAC_OVERRIDE,
        "opens what belongs to others: /proc/PID/mem and /proc/PID/fd of other users' programs, nodes of groups that root is \
         not in, memory files of programs",
        "programs of other users are served as if their memory could not be reached, and a device that another user owns \
         cannot be opened",
    ),
    needed(
        Capability::CAP_CHECKPOINT_RESTORE,
        "finds the file behind a mapping whose descriptor was closed (/proc/PID/map_files)",
        "a dma-buf, memfd or device that a program has mapped and then closed is copied instead of imported",
    ),
    needed(
        Capability::CAP_SYS_ADMIN,
        "frame numbers in /proc/PID/pagemap (which page of a device a pointer lies in), becoming master of a graphics card, \
         the memory of a foreign framebuffer (GETFB2), debug registers for clients that have the capability themselves",
        "no framebuffer on a graphics card (--fb kms:...), and memory of graphics cards and of mapped devices behind a \
         pointer is EFAULT",
    ),
    needed(
        Capability::CAP_BPF,
        "loads the program of an iterator that tells which buffer of a driver a mapping shows; implied by CAP_SYS_ADMIN, and \
         named here so that it is still there where a unit takes that away",
        "buffers of dma-contig devices that a program has mapped are not recognised behind its pointers: EFAULT",
    ),
    needed(
        Capability::CAP_PERFMON,
        "that iterator reads kernel structures; implied by CAP_SYS_ADMIN as well",
        "as without CAP_BPF",
    ),
    needed(
        Capability::CAP_CHOWN,
        "gives a node the owner and group of the real one",
        "a node stays root:root, and vidcompatd does not start for a device that belongs to a group",
    ),
    needed(
        Capability::CAP_FOWNER,
        "sets mode and access list of a node that has been given to another owner",
        "a node of which the real one belongs to another user than root cannot be given its mode",
    ),
    needed(
        Capability::CAP_MKNOD,
        "makes the node of a device that was plugged in while its name was taken over",
        "such a device has no node of its own until vidcompatd gives the name back",
    ),
];

/// What became of the process's capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Held before, and not in the table.
    pub given_up: Vec<Capability>,
    /// In the table, and not held.
    pub missing: Vec<Needed>,
}

/// What would be given up, and what is missing.
///
/// # Errors
/// What the kernel says.
pub fn look() -> Result<Outcome, caps::errors::CapsError> {
    Ok(compare(&caps::read(None, CapSet::Permitted)?))
}

/// Gives up what is not in the table, for this thread and all that it makes: in the bounding, permitted, effective,
/// inheritable and ambient sets. Threads that exist already keep theirs.
///
/// # Errors
/// What the kernel says.
pub fn reduce() -> Result<Outcome, caps::errors::CapsError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let outcome = compare(&held);
    let kept: CapsHashSet = table_set().intersection(&held).copied().collect();
    // Where this is not allowed any more (a unit took it away) nothing can be got back either: no_new_privs.
    if held.contains(&Capability::CAP_SETPCAP) {
        let bounding = caps::read(None, CapSet::Bounding)?;
        for capability in bounding.difference(&table_set()) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(outcome)
}

fn table_set() -> CapsHashSet {
    TABLE.iter().map(|needed| needed.capability).collect()
}

fn compare(held: &CapsHashSet) -> Outcome {
    let given_up: BTreeSet<u8> = held.difference(&table_set()).map(Capability::index).collect();
    let by_index = |index: &u8| caps::all().into_iter().find(|one| one.index() == *index);
    Outcome {
        given_up: given_up.iter().filter_map(by_index).collect(),
        missing: TABLE
            .iter()
            .filter(|needed| !held.contains(&needed.capability))
            .copied()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::{TABLE, compare, table_set};
    use caps::Capability;

    #[test]
    fn every_row_is_there_once_and_says_why() {
        assert_eq!(table_set().len(), TABLE.len());
        for needed in TABLE {
            assert!(needed.reason.len() > 20 && !needed.lost.is_empty(), "{needed:?}");
        }
    }

    #[test]
    fn what_is_missing_and_what_is_too_much_is_told() {
        let held = [
            Capability::CAP_SYS_PTRACE,
            Capability::CAP_NET_RAW,
            Capability::CAP_KILL,
        ];
        let outcome = compare(&held.into_iter().collect());
        // In the kernel's order.
        assert_eq!(outcome.given_up, [Capability::CAP_KILL, Capability::CAP_NET_RAW]);
        assert_eq!(outcome.missing.len(), TABLE.len() - 1);
        assert!(
            outcome
                .missing
                .iter()
                .all(|needed| needed.capability != Capability::CAP_SYS_PTRACE)
        );
    }
}
