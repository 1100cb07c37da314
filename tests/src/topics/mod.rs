//! The tests, by topic.

mod capture;
mod cases;
mod errnos;
mod kill_loop;
mod lifecycle;
mod readiness;
mod signals;

use crate::setup::Test;

/// All tests in the order in which they run.
pub fn all() -> Vec<(&'static str, Test)> {
    [
        capture::TESTS,
        errnos::TESTS,
        signals::TESTS,
        readiness::TESTS,
        kill_loop::TESTS,
        lifecycle::TESTS,
    ]
    .concat()
}
