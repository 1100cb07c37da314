//! What adoption must not break, tried on a real dma-buf: threads that write into the buffers meanwhile, fork and exec,
//! everything that malloc and the program do with the memory, and the limits at which the kernel refuses.
//!
//! `adopt [LENDER [CASE...]]`: LENDER is `/dev/dma_heap/system` or a V4L2 capture node whose buffers are taken. Root, in
//! the guest: `tests/guest -- target/release/examples/adopt`.
#![allow(unsafe_code, missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_ptr_alignment,
    clippy::cast_sign_loss
)] // A test of C's memory, which does with it what C does.

#[path = "../../src/adopt/mod.rs"]
mod adopt;
/// As the library's, without what a test has no need of.
mod guard {
    pub(crate) fn guard<T>(work: impl FnOnce() -> T) -> Option<T> {
        Some(work())
    }
}
mod limits;
mod link;
mod memory;
mod processes;
mod programs;
mod threads;

use memory::Lender;

type Case = (&'static str, fn(&Lender));

const CASES: &[Case] = &[
    (
        "contents_are_kept_both_ways",
        programs::contents_are_kept_both_ways,
    ),
    (
        "ordinary_again_for_every_call",
        programs::ordinary_again_for_every_call,
    ),
    (
        "what_is_not_ordinary_is_refused",
        programs::what_is_not_ordinary_is_refused,
    ),
    ("realloc_and_free", programs::realloc_and_free),
    ("an_arena_is_used_on", programs::an_arena_is_used_on),
    (
        "what_the_program_has_unmapped_is_its_own",
        programs::what_the_program_has_unmapped_is_its_own,
    ),
    (
        "protection_stays_the_programs",
        programs::protection_stays_the_programs,
    ),
    (
        "pages_that_nobody_has_asked_for",
        programs::pages_that_nobody_has_asked_for,
    ),
    (
        "a_program_that_drops_privileges",
        programs::a_program_that_drops_privileges,
    ),
    ("the_daemon_dies", programs::the_daemon_dies),
    ("errno_and_the_switch", programs::errno_and_the_switch),
    ("a_naive_exchange_is_seen", threads::a_naive_exchange_is_seen),
    ("no_write_is_lost", threads::no_write_is_lost),
    ("the_kernel_waits_too", threads::the_kernel_waits_too),
    ("signals_come_at_any_time", threads::signals_come_at_any_time),
    ("several_threads_at_once", threads::several_threads_at_once),
    ("fork_has_a_copy", processes::fork_has_a_copy),
    ("fork_at_any_time", processes::fork_at_any_time),
    ("vfork_and_exec", processes::vfork_and_exec),
    ("an_unprivileged_program", processes::an_unprivileged_program),
    ("no_thread_to_be_had", processes::no_thread_to_be_had),
    ("no_room_for_mappings", limits::no_room_for_mappings),
    (
        "no_room_for_addresses_or_files",
        limits::no_room_for_addresses_or_files,
    ),
    ("a_full_table", limits::a_full_table),
    ("nothing_is_left_behind", limits::nothing_is_left_behind),
    ("what_it_costs", limits::what_it_costs),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let lender = arguments
        .next()
        .unwrap_or_else(|| "/dev/dma_heap/system".to_owned());
    let wanted: Vec<String> = arguments.collect();
    if let Some(("switched-off", _)) = lender.split_once(' ') {
        return programs::switched_off(&lender);
    }
    processes::close_files_at_fork();
    let lender = Lender::open(&lender);
    // Before the first adoption.
    processes::close_files_at_fork();
    let mut failed = 0;
    for (name, case) in CASES {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let started = std::time::Instant::now();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(&lender)));
        let said = if result.is_ok() { "ok  " } else { "FAIL" };
        println!("{said} {name} ({:.1} s)", started.elapsed().as_secs_f64());
        failed += i32::from(result.is_err());
    }
    std::process::exit(i32::from(failed > 0));
}
