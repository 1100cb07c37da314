//! The tests, by topic.

mod budget;
mod capture;
mod cases;
mod controls;
mod edid;
mod errnos;
mod faults;
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

use crate::setup::{Set, Test};

/// The tests for these devices, in the order in which they run.
pub fn all(set: Set) -> Vec<(&'static str, Test)> {
    let topics: &[&[(&'static str, Test)]] = match set {
        Set::Cameras => &[
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
            programs::TESTS,
            readiness::TESTS,
            kill_loop::TESTS,
            lifecycle::TESTS,
            kernel_log::TESTS,
        ],
        Set::Kinds => &[kernel_log::TESTS],
        Set::M2m => &[
            m2m::TESTS,
            programs::OUTPUT_TESTS,
            loopback::TESTS,
            faults::TESTS,
            kernel_log::TESTS,
        ],
    };
    topics.concat()
}
