//! The tests, by topic.

mod budget;
mod capture;
mod cases;
mod controls;
mod edid;
mod errnos;
mod injected;
pub mod kernel_log;
mod kill_loop;
mod lifecycle;
mod memory;
mod random;
mod read;
mod readiness;
mod signals;

use crate::setup::Test;

/// All tests in the order in which they run.
pub fn all() -> Vec<(&'static str, Test)> {
    [
        capture::TESTS,
        errnos::TESTS,
        controls::TESTS,
        edid::TESTS,
        signals::TESTS,
        random::TESTS,
        read::TESTS,
        memory::TESTS,
        budget::TESTS,
        injected::TESTS,
        readiness::TESTS,
        kill_loop::TESTS,
        lifecycle::TESTS,
        kernel_log::TESTS,
    ]
    .concat()
}
