//! The guest suite: run inside a virtual machine by `tests/guest-tests`, as root, with one of the device sets of
//! `setup::Set`, which also decides what topics run.
//!
//! Nearly every test does one thing on the real node and on ours in the same run and compares; what is right is what
//! the driver does. Arguments are libtest's. `VIDCOMPAT_LONG=1` makes the loops ten times longer.

mod client;
mod daemon;
mod helper;
mod kinds;
mod modules;
mod nodes;
mod picture;
mod report;
mod rival;
mod screens;
mod service;
mod setup;
mod shim;
mod status;
mod sys;
mod topics;
mod video;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(ended) = helper::run() {
        return ended;
    }
    let mut arguments = Arguments::from_args();
    // The tests share a daemon and devices, and some replace them.
    arguments.test_threads = Some(1);
    let set = match sys::default_signals()
        .map_err(Into::into)
        .and_then(|()| setup::devices())
        .and_then(|()| setup::Set::here())
    {
        Ok(set) => set,
        Err(error) => {
            eprintln!("guest-suite: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    topics::kernel_log::watch();
    let trials = topics::all(set).into_iter().map(|(name, test)| {
        Trial::test(name, move || {
            setup::run_test(name, test).map_err(|error| format!("{error:#}").into())
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    daemon::stop_shared();
    report::print_figures();
    conclusion.exit_code()
}
