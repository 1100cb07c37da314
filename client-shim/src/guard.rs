//! The border between a program's call and our own work in it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::sys;

/// Does `work` for the program. `None`: it has panicked, and the program gets the plain call.
///
/// Meanwhile errno does not change, and the thread is not cancelled: that would unwind through frames which have
/// something to put back. Calls of the next library that may wait for long are not to be made in here.
///
/// Nothing is noted about the thread: a thread_local of a library is reached through `__tls_get_addr`, which allocates when
/// the program has loaded another library since. A signal handler in the middle of the work may begin its own.
pub(crate) fn guard<T>(work: impl FnOnce() -> T) -> Option<T> {
    let errno = sys::errno();
    let cancel_state = sys::disable_cancel();
    let done = catch_unwind(AssertUnwindSafe(work)).ok();
    sys::restore_cancel(cancel_state);
    sys::set_errno(errno);
    done
}

#[cfg(test)]
mod tests {
    use super::guard;
    use crate::sys;

    #[test]
    fn a_panic_ends_at_the_border_and_errno_stays() {
        sys::set_errno(4711);
        assert_eq!(guard(|| sys::set_errno(1)), Some(()));
        assert_eq!(sys::errno(), 4711);
        let panicked: Option<()> = guard(|| panic!("seen by nobody but the test's log"));
        assert_eq!(panicked, None);
        assert_eq!(sys::errno(), 4711);
    }
}
