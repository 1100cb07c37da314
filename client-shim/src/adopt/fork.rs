//! Fork: the child's memory is a copy, as it would be if it were ordinary; a dma-buf's mapping is shared.
//!
//! So before the fork the contents are copied into *kept*, the program's own mapping without pages, of which the child
//! has its own copy like of all private memory. In the child that moves over the stretch, and there is no adoption. In
//! the parent the pages of *kept* go again.
//!
//! A child of vfork or posix_spawn is in the parent's memory, and one of a bare clone has run none of this: both see
//! that the table is of another process and leave it alone. On exec there is nothing to do: the kernel unmaps
//! everything, the adopted as the ordinary. (A file that stays open over exec keeps its queue, whose buffers then are
//! dma-bufs that nobody has mapped, as natively they would be pages.)

use super::give_back::each_part;
use super::{sys, table};
use crate::guard::guard;

/// From now on. Handlers of fork cannot be taken away.
pub(super) fn watch() -> bool {
    sys::at_fork(before, in_parent, in_child)
}

// Guarded, because a file that these close is no file of the program's, and because libc calls them, not the program.

extern "C" fn before() {
    guard(leave_copies);
}

extern "C" fn in_parent() {
    guard(drop_copies);
}

extern "C" fn in_child() {
    guard(use_copies);
}

fn leave_copies() {
    // Even where nothing is adopted yet: another thread may be about to, and the child must not begin half-way.
    let Some(table) = table::lock() else {
        return;
    };
    for entry in table.entries() {
        entry.adopted.alias.copy_to(&entry.adopted.kept);
    }
    table.leave();
}

fn drop_copies() {
    if let Some(table) = table::resume() {
        for entry in table.entries() {
            let _ = entry.adopted.kept.discard();
        }
    }
}

fn use_copies() {
    let Some(mut table) = table::resume() else {
        return;
    };
    while let Some(entry) = table.take(|_| true) {
        // Where it is refused the stretch stays shared with the parent.
        let _ = each_part(entry.adopted, |part, prot| {
            let _ = part.kept.protect(prot);
            let table::Adopted {
                stretch,
                alias,
                kept,
                object,
            } = part;
            kept.over(stretch).map_err(|kept| table::Adopted {
                stretch,
                alias,
                kept,
                object,
            })
        });
        table.is_gone();
    }
    table.is_nobodys();
}
