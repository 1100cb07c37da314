//! The exchange of a program's memory by itself, without a daemon: the program that tries to break it
//! (client-shim/examples/adopt), on real dma-bufs, of a heap and of a camera. That its threads would notice a loss it shows
//! with an exchange of its own that takes no care (`a_naive_exchange_is_seen`).

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;

use crate::client::run;
use crate::nodes::{Kind, vivid};
use crate::report::figure;
use crate::setup::{Test, is_long};

pub const TESTS: &[(&str, Test)] = &[
    ("shim_exchange::no_write_of_a_thread_is_lost", || {
        cases(&[
            "a_naive_exchange_is_seen",
            "no_write_is_lost",
            "several_threads_at_once",
        ])
    }),
    ("shim_exchange::the_kernel_and_signals_meet_it", || {
        cases(&["the_kernel_waits_too", "signals_come_at_any_time"])
    }),
    (
        "shim_exchange::contents_are_kept_and_the_memory_is_ordinary_again",
        || {
            cases(&[
                "contents_are_kept_both_ways",
                "ordinary_again_for_every_call",
                "what_is_not_ordinary_is_refused",
                "what_the_program_has_unmapped_is_its_own",
                "protection_stays_the_programs",
                "pages_that_nobody_has_asked_for",
                "a_program_that_drops_privileges",
                "the_daemon_dies",
                "errno_and_the_switch",
            ])
        },
    ),
    ("shim_exchange::malloc_goes_on_with_its_memory", || {
        cases(&["realloc_and_free", "an_arena_is_used_on"])
    }),
    ("shim_exchange::fork_exec_and_privileges", || {
        cases(&[
            "fork_has_a_copy",
            "fork_at_any_time",
            "vfork_and_exec",
            "an_unprivileged_program",
            "no_thread_to_be_had",
        ])
    }),
    ("shim_exchange::limits_are_refusals", || {
        cases(&[
            "no_room_for_mappings",
            "no_room_for_addresses_or_files",
            "a_full_table",
        ])
    }),
    ("shim_exchange::nothing_is_left_behind_by_ten_thousand", || {
        cases(&["nothing_is_left_behind"])
    }),
];

const HEAP: &str = "/dev/dma_heap/system";

/// Plays `cases` on the memory of a heap; where there is none (Linux 6.1), and in long runs, on that of cameras.
fn cases(cases: &[&str]) -> anyhow::Result<()> {
    let camera = |instance| anyhow::Ok(vivid(instance, Kind::VideoCapture)?.real().display().to_string());
    let mut lenders = Vec::new();
    if Path::new(HEAP).exists() {
        lenders.push(HEAP.to_owned());
    }
    if lenders.is_empty() || is_long() {
        lenders.push(camera(0)?);
    }
    if is_long() {
        lenders.push(camera(1)?);
    }
    let program = std::env::current_exe()?.with_file_name("examples").join("adopt");
    for lender in lenders {
        let arguments = [&[lender.as_str()], cases].concat();
        let said = run(
            &program.display().to_string(),
            &arguments,
            Duration::from_secs(600),
        )?;
        let ends: Vec<_> = said.lines().filter(|line| line.starts_with("ok  ")).collect();
        ensure!(ends.len() == cases.len(), "{lender}: {said}");
        figure(format!("{lender}: {}", ends.join(", ")));
    }
    Ok(())
}
