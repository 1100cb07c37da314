//! Giving back: ordinary memory takes the place of the dma-buf, contents kept, while other threads use it.
//!
//! A dma-buf's mapping is the driver's (VM_PFNMAP): no userfaultfd watches it. But *kept*, the program's own mapping
//! without its pages, can be watched, and stays so when it moves (UFFD_FEATURE_EVENT_REMAP). So:
//!
//! 1. *kept* is registered, and moves over the stretch: one step for all threads. Who touches the stretch now waits. The
//!    move ends when somebody has read of it, which a thread does that lives for this only.
//! 2. The kernel copies the contents from *alias* into the stretch (UFFDIO_COPY), and who waits goes on.
//!
//! Only what still shows the dma-buf is touched: the program may have unmapped the stretch, or put something else there,
//! all or part of it.

use rustix::io::Errno;
use rustix::mm::MprotectFlags;

use super::fault::{EVENT_REMAP, Fault};
use super::maps;
use super::sys::{self, Mapping, Stretch};
use super::table::Adopted;

/// Makes the stretch ordinary memory again where it is still ours. Was there any?
///
/// # Errors
/// The kernel has refused: what is still to be given back, untouched.
pub(super) fn give_back(adopted: Adopted) -> Result<bool, Adopted> {
    each_part(adopted, part_back)
}

/// Calls `exchange` with each part of the stretch that is still ours, and what the program may do there. What is not is
/// forgotten.
///
/// # Errors
/// From the part on that `exchange` has handed back.
pub(super) fn each_part(
    adopted: Adopted,
    mut exchange: impl FnMut(Adopted, MprotectFlags) -> Result<(), Adopted>,
) -> Result<bool, Adopted> {
    let mut any = false;
    let mut rest = Some(adopted);
    while let Some(adopted) = rest.take() {
        let (part, prot) = match maps::first_part(adopted.stretch, adopted.object) {
            Ok(Some(found)) => found,
            Ok(None) => break,
            // Not to be found out (no /proc, no file left): what lies there may be the program's own.
            Err(_) => return Err(adopted),
        };
        let ours = match part.start - adopted.stretch.start {
            0 => Some(adopted),
            before => adopted.split(before).1,
        };
        let Some((here, behind)) = ours.map(|ours| ours.split(part.len)) else {
            break;
        };
        if let Err(here) = exchange(here, prot) {
            return Err(match behind {
                Some(behind) => here.join(behind),
                None => here,
            });
        }
        any = true;
        rest = behind;
    }
    Ok(any)
}

/// A part that is ours from end to end, and may be used as `prot` says.
fn part_back(adopted: Adopted, prot: MprotectFlags) -> Result<(), Adopted> {
    let Ok(fault) = Fault::that_follows() else {
        return part_copied(adopted, prot);
    };
    let (kept_at, stretch) = (adopted.kept.stretch(), adopted.stretch);
    if fault.register(kept_at).is_err() {
        return part_copied(adopted, prot);
    }
    // A page that is there would stay, and hide the contents: mlockall, a debugger that has read all of the memory, a fork
    // after which it could not be emptied.
    if adopted.kept.discard().is_err() {
        let _ = fault.unregister(kept_at);
        return part_copied(adopted, prot);
    }
    let Adopted {
        alias, kept, object, ..
    } = adopted;
    let _ = kept.protect(prot);
    let mut kept = Some(kept);
    let moved = sys::with_reader(fault.file(), EVENT_REMAP, || {
        kept.take().map(|kept| kept.over(stretch))
    });
    let (kept, refused) = match (moved, kept) {
        (Ok(Some(Ok(())) | None), _) | (Err(_), None) => {
            fill(&fault, stretch, alias);
            return Ok(());
        }
        (Ok(Some(Err(kept))), _) => (kept, true),
        (Err(_), Some(kept)) => (kept, false),
    };
    let _ = fault.unregister(kept_at);
    let _ = kept.protect(READ_WRITE);
    let adopted = Adopted {
        stretch,
        alias,
        kept,
        object,
    };
    match refused {
        true => Err(adopted),
        false => part_copied(adopted, prot),
    }
}

const READ_WRITE: MprotectFlags = MprotectFlags::READ.union(MprotectFlags::WRITE);

/// Fills the stretch, which is empty, and lets those go on who wait.
fn fill(fault: &Fault, stretch: Stretch, alias: Mapping) {
    let mut done = 0;
    while let Err((filled, error)) = fault.fill(stretch, &alias, done) {
        done = match error {
            // The program has just unmapped this page, or filled it: it is not ours to fill.
            Errno::NOENT | Errno::EXIST => filled + sys::page_bytes(),
            _ => {
                // No memory. What is not filled becomes the dma-buf again, and stays it.
                let rest = Stretch {
                    start: stretch.start + filled,
                    len: stretch.len - filled,
                };
                let (first, behind) = alias.split(filled);
                let _ = behind.unwrap_or(first).over(rest).map_err(Mapping::forget);
                break;
            }
        }
    }
    let _ = fault.unregister(stretch);
    fault.wake(stretch);
}

/// The same where there is no userfaultfd any more, or no thread (the program has locked itself in since, with seccomp):
/// as good as it can be. What another thread writes in the moment between copy and move is lost.
fn part_copied(adopted: Adopted, prot: MprotectFlags) -> Result<(), Adopted> {
    let Adopted {
        stretch,
        alias,
        kept,
        object,
    } = adopted;
    alias.copy_to(&kept);
    let _ = kept.protect(prot);
    kept.over(stretch).map_err(|kept| {
        let _ = kept.protect(READ_WRITE);
        let _ = kept.discard();
        Adopted {
            stretch,
            alias,
            kept,
            object,
        }
    })
}
