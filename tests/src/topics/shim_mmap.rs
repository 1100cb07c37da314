//! mmap and EXPBUF in every way that a program may try, on the real node and with the shim on ours: the same errnos, the
//! same bytes, the same numbers of fds.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;

use crate::daemon;
use crate::nodes::{self, Found, Kind, vivid};
use crate::report::{equal, figure};
use crate::setup::{Test, both_real};
use crate::shim::Seat;

pub const TESTS: &[(&str, Test)] = &[
    ("shim_mmap::on_a_camera", || on(0, Kind::VideoCapture)),
    ("shim_mmap::on_an_output", || on(0, Kind::VideoOutput)),
    ("shim_mmap::on_a_dma_contig_camera", || on(1, Kind::VideoCapture)),
    ("shim_mmap::on_a_dma_contig_output", || on(1, Kind::VideoOutput)),
    ("shim_mmap::on_a_multi_planar_camera", || {
        on(2, Kind::VideoCapture)
    }),
    ("shim_mmap::on_a_multi_planar_output", || on(2, Kind::VideoOutput)),
    ("shim_mmap::on_vim2m", || play(&nodes::named("vim2m")?)),
    ("shim_mmap::no_expected_difference_is_stale", none_stale),
];

/// A line that may differ.
struct Expected {
    /// How it begins.
    line: &'static str,
    /// How it goes on on the real node, and on ours.
    ends: (&'static str, &'static str),
    why: &'static str,
}

/// All that may differ. A row that no node shows any more fails too.
const EXPECTED: &[Expected] = &[
    Expected {
        line: "what was there",
        ends: (", readable 0, writable 0", ", readable 1, writable 1"),
        why: "the kernel has taken away what MAP_FIXED goes over before the driver refuses; the shim asks first",
    },
    Expected {
        line: "somebody else's REQBUFS: ",
        ends: ("-1", "2"),
        why: "natively a mapping keeps its file open, and the queue taken, after close(); the shim maps a dma-buf, which keeps \
              its memory and no more",
    },
    Expected {
        line: "not the queue's owner: mmap: ",
        ends: ("ok", "EINVAL"),
        why: "a session has the buffers that it has asked for itself",
    },
    Expected {
        line: "EXPBUF without an fd: EMFILE, fd ",
        ends: ("-77", "1"),
        why: "what the kernel has written there is the ticket by which the shim wanted to fetch the fd",
    },
    Expected {
        line: "mmap without an fd: ",
        ends: ("ok", "ENODEV"),
        why: "the shim needs two fds for a moment",
    },
    Expected {
        line: "mmap with one fd: ",
        ends: ("ok", "ENODEV"),
        why: "the shim needs two fds for a moment",
    },
    Expected {
        line: "EXPBUF with one fd: ",
        ends: ("ok", "EMFILE"),
        why: "the shim needs two fds for a moment",
    },
];

/// Which rows of [`EXPECTED`] were seen.
static SEEN: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
static TESTS_RUN: AtomicUsize = AtomicUsize::new(0);

fn on(instance: u32, kind: Kind) -> anyhow::Result<()> {
    play(&vivid(instance, kind)?)
}

fn play(node: &Found) -> anyhow::Result<()> {
    daemon::shared()?;
    // It imports what the node exports: a camera that nobody else uses. Not a dma-contig one, which takes a vmalloc buffer
    // when its pages happen to be in a row; so that camera has nobody.
    let camera = vivid(0, Kind::VideoCapture)?.real();
    let importer = match node.real() == camera {
        true => "nobody".to_owned(),
        false => camera.display().to_string(),
    };
    let cases = |seat: &Seat| -> anyhow::Result<Vec<Vec<String>>> {
        let (status, said) = seat.play(&["mmap_cases", "NODE", &importer], Duration::from_secs(60))?;
        let case = |lines: &str| lines.lines().map(str::to_owned).collect();
        ensure!(status.success(), "{}: {status}: {said}", seat.name);
        Ok(said.split("\n= ").map(case).collect())
    };
    let native = cases(&Seat::real(node))?;
    ensure!(
        native.len() == CASES && native.concat().len() > 200,
        "on the real node: {native:?}"
    );
    let served = cases(&Seat::preloaded(node)?)?;
    let mut complaints = String::new();
    for (native, mut served) in native.into_iter().zip(served) {
        for (native, served) in native.iter().zip(&mut served) {
            if let Some(row) = row(native, served) {
                SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(row);
                served.clone_from(native);
            }
        }
        if let Err(error) = equal(&native, &served) {
            write!(complaints, "\n{}: {error:#}", native[0])?;
        }
    }
    TESTS_RUN.fetch_add(1, Ordering::Relaxed);
    ensure!(complaints.is_empty(), "{node}:{complaints}");
    Ok(())
}

/// So many are played.
const CASES: usize = 14;

/// The row of [`EXPECTED`] for these lines.
fn row(native: &str, served: &str) -> Option<usize> {
    EXPECTED.iter().position(|row| {
        let ends = (native.strip_prefix(row.line), served.strip_prefix(row.line));
        ends == (Some(row.ends.0), Some(row.ends.1))
    })
}

fn none_stale() -> anyhow::Result<()> {
    if TESTS_RUN.load(Ordering::Relaxed) < TESTS.len() - 1 || both_real() {
        figure("shim_mmap: not all tests were run, so stale rows are not looked for");
        return Ok(());
    }
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for (at, row) in EXPECTED.iter().enumerate() {
        ensure!(seen.contains(&at), "no node shows this any more: {}", row.line);
        figure(format!(
            "shim_mmap: expected: {}{} for {}: {}",
            row.line, row.ends.1, row.ends.0, row.why
        ));
    }
    Ok(())
}
