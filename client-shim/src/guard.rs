//! The border between a program's call and our own work in it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sys;

thread_local! {
    /// Constant and without a destructor: a load at a fixed place of the thread's memory, which is there for a preloaded
    /// library when the thread begins. A vfork child has its parent's, who stands still.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Is this thread doing work of ours? Then a close is our own, or a signal handler's in the middle of it.
pub(crate) fn inside() -> bool {
    INSIDE.try_with(Cell::get).unwrap_or(false)
}

/// Does `work` for the program. `None`: it has panicked, and the program gets the plain call.
///
/// Meanwhile errno does not change, and the thread is not cancelled: that would unwind through frames which have
/// something to put back. Calls of the next library that may wait for long are not to be made in here.
pub(crate) fn guard<T>(work: impl FnOnce() -> T) -> Option<T> {
    let errno = sys::errno();
    let cancel_state = sys::disable_cancel();
    let outer = INSIDE.try_with(|inside| inside.replace(true));
    let done = catch_unwind(AssertUnwindSafe(work)).ok();
    if let Ok(outer) = outer {
        let _ = INSIDE.try_with(|inside| inside.set(outer));
    }
    sys::restore_cancel(cancel_state);
    sys::set_errno(errno);
    done
}

#[cfg(test)]
mod tests {
    use super::{guard, inside};
    use crate::sys;

    #[test]
    fn a_panic_ends_at_the_border_and_errno_stays() {
        sys::set_errno(4711);
        assert_eq!(guard(|| sys::set_errno(1)), Some(()));
        assert_eq!(sys::errno(), 4711);
        let panicked: Option<()> = guard(|| panic!("seen by nobody but the test's log"));
        assert_eq!(panicked, None);
        assert_eq!(sys::errno(), 4711);
        assert!(!inside());
    }

    #[test]
    fn work_within_work_is_inside_until_the_outer_ends() {
        guard(|| {
            guard(|| assert!(inside()));
            assert!(inside());
        })
        .unwrap();
        assert!(!inside());
    }
}
