//! The tests, by topic.

mod budget;
mod capture;
mod cases;
mod errnos;
mod injected;
pub mod kernel_log;
mod kill_loop;
mod lifecycle;
mod loopback;
mod m2m;
mod memory;
mod programs;
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
        signals::TESTS,
        random::TESTS,
        read::TESTS,
        memory::TESTS,
        budget::TESTS,
        injected::TESTS,
        programs::TESTS,
        programs::OUTPUT_TESTS,
        m2m::TESTS,
        loopback::TESTS,
        readiness::TESTS,
        kill_loop::TESTS,
        lifecycle::TESTS,
        kernel_log::TESTS,
    ]
    .concat()
}
