//! v4l2-compliance, 64-bit and 32-bit, on every real node and on ours beside it, compared test by test.
//!
//! What the program thinks of a driver does not matter here (it is older than the kernel and fails tests on every real
//! node): ours must be judged as the real one is, at the same lines of its source. [`EXPECTED`] has all that may
//! differ.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::ensure;

use super::verdicts::{Verdict, parse};
use crate::client;
use crate::daemon;
use crate::nodes::{self, Found, Kind};
use crate::report::figure;
use crate::setup::{Set, Test, is_long};

/// For the set `kinds`.
pub const KINDS: &[(&str, Test)] = &[
    ("compliance::video_capture", || of_vivids(Kind::VideoCapture)),
    ("compliance::video_output", || of_vivids(Kind::VideoOutput)),
    ("compliance::vbi_capture", || of_vivids(Kind::VbiCapture)),
    ("compliance::vbi_output", || of_vivids(Kind::VbiOutput)),
    ("compliance::radio_receiver", || of_vivids(Kind::RadioRx)),
    ("compliance::radio_transmitter", || of_vivids(Kind::RadioTx)),
    ("compliance::sdr", || of_vivids(Kind::Sdr)),
    ("compliance::meta_capture", || of_vivids(Kind::MetaCapture)),
    ("compliance::meta_output", || of_vivids(Kind::MetaOutput)),
    ("compliance::touch", || of_vivids(Kind::Touch)),
    ("compliance::no_expected_difference_is_stale", || {
        none_stale(KINDS.len() - 1)
    }),
];

/// For the set `m2m`.
pub const M2M: &[(&str, Test)] = &[
    ("compliance::vim2m", || of_named(&["vim2m"])),
    ("compliance::vicodec_encoder", || of_named(&["stateful-encoder"])),
    ("compliance::vicodec_decoders", || {
        of_named(&["stateful-decoder", "stateless-decoder"])
    }),
    ("compliance::vicodec_multi_planar", multi_planar_codec),
    ("compliance::no_expected_difference_is_stale", || {
        none_stale(M2M.len() - 1)
    }),
];

/// What v4l2-compliance says of our node, where the real one is judged otherwise.
enum Ours {
    /// Nothing: the test is not made.
    Absent,
    /// Not supported.
    NotSupported,
    /// Failed, and one of the conditions that were not met contains this.
    Fails(&'static str),
}

impl Ours {
    fn is(&self, verdict: &Verdict) -> bool {
        match (self, verdict) {
            (Self::Absent, Verdict::Absent) | (Self::NotSupported, Verdict::NotSupported) => true,
            (Self::Fails(what), Verdict::Fail(failures)) => {
                failures.iter().any(|failure| failure.what.contains(what))
            }
            _ => false,
        }
    }
}

/// A difference that CUSE itself makes: it can neither map memory into a client nor hand it a file.
struct Expected {
    /// How the test is called by v4l2-compliance, from its beginning.
    test: &'static str,
    ours: Ours,
    /// In which device sets there are nodes that show it.
    sets: &'static [Set],
    why: &'static str,
}

const BOTH: &[Set] = &[Set::Kinds, Set::M2m];
const NO_MMAP: &str = "CUSE has no mmap; needs the client shim";
const NO_MEDIA: &str =
    "the media device is found through the node's parent in sysfs, and that of a CUSE node is no device";

/// All of them. A row that no node shows any more fails too.
const EXPECTED: &[Expected] = &[
    Expected {
        test: "MC information",
        ours: Ours::Absent,
        sets: BOTH,
        why: NO_MEDIA,
    },
    Expected {
        test: "VIDIOC_(TRY_)",
        ours: Ours::Fails("node->function != MEDIA_ENT_F_PROC_VIDEO_"),
        sets: &[Set::M2m],
        why: NO_MEDIA,
    },
    Expected {
        test: "VIDIOC_REQBUFS/CREATE_BUFS/QUERYBUF",
        ours: Ours::Fails("!mmap_valid && userptr_valid"),
        sets: BOTH,
        why: "it wants MMAP wherever there is USERPTR",
    },
    Expected {
        test: "VIDIOC_EXPBUF",
        ours: Ours::NotSupported,
        sets: BOTH,
        why: "it returns a file, which only the client shim can do",
    },
    Expected {
        test: "Requests",
        ours: Ours::NotSupported,
        sets: BOTH,
        why: "a request is a file of the media device, to which there is no link",
    },
    Expected {
        test: "blocking wait",
        ours: Ours::Fails("q.reqbufs(node, 2)"),
        sets: BOTH,
        why: "it waits with MMAP buffers",
    },
    Expected {
        test: "MMAP (",
        ours: Ours::Fails("can_stream"),
        sets: BOTH,
        why: NO_MMAP,
    },
    Expected {
        test: "USERPTR (",
        ours: Ours::Fails("setupM2M(node_m2m_cap, m2m_q)"),
        sets: &[Set::M2m],
        why: "the other queue of an m2m device is always MMAP in these tests",
    },
];

/// Which rows of [`EXPECTED`] were seen.
static SEEN: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
static TESTS_RUN: AtomicUsize = AtomicUsize::new(0);

/// Longer than v4l2-compliance takes for any node under an emulator.
const LIMIT: Duration = Duration::from_secs(60);

/// The same kind of node on all three vivids, which have nothing in common and may be tested side by side.
fn of_vivids(kind: Kind) -> anyhow::Result<()> {
    let nodes = (0..3).map(|instance| nodes::vivid(instance, kind));
    let nodes = nodes.collect::<anyhow::Result<Vec<_>>>()?;
    TESTS_RUN.fetch_add(1, Ordering::Relaxed);
    judge(&nodes)
}

fn of_named(names: &[&str]) -> anyhow::Result<()> {
    // One after the other: all have their dma-bufs from the same vivid.
    let each = names.iter().map(|name| judge(&[nodes::named(name)?]));
    let complaints: Vec<String> = each
        .filter_map(|judged| judged.err().map(|error| format!("{error:#}")))
        .collect();
    TESTS_RUN.fetch_add(1, Ordering::Relaxed);
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

/// vicodec is one or the other for all its nodes.
fn multi_planar_codec() -> anyhow::Result<()> {
    let reload = |arguments: &[&str]| -> anyhow::Result<()> {
        daemon::stop_shared();
        client::run("modprobe", &["-r", "vicodec"], LIMIT)?;
        client::run("modprobe", arguments, LIMIT).map(drop)
    };
    reload(&["vicodec", "multiplanar=1"])?;
    let outcome = nodes::named("stateful-encoder").and_then(|node| {
        ensure!(node.is_mplane(), "{node} is not multi-planar");
        of_named(&["stateful-encoder", "stateful-decoder", "stateless-decoder"])
    });
    reload(&["vicodec"])?;
    outcome
}

/// Compares each of these nodes with ours beside it, all nodes at once.
fn judge(nodes: &[Found]) -> anyhow::Result<()> {
    daemon::shared()?;
    let complaints: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(|| judge_node(node)))
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| match thread.join() {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(_) => Some(String::from("the thread panicked")),
            })
            .collect()
    });
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}

fn judge_node(node: &Found) -> anyhow::Result<()> {
    let mut complaints = String::new();
    for run in Run::all() {
        if !run.ends_on_the_real(node) {
            continue;
        }
        if let Err(error) = run.compare(node) {
            write!(complaints, "\n{node}, {}: {error:#}", run.title())?;
        }
    }
    ensure!(complaints.is_empty(), "{complaints}");
    Ok(())
}

/// One way of running v4l2-compliance.
#[derive(Clone, Copy)]
struct Run {
    program: &'static str,
    streams: bool,
}

impl Run {
    fn all() -> Vec<Self> {
        let (long, short) = ("v4l2-compliance", "v4l2-compliance-i386");
        let mut all = vec![(long, false), (long, true), (short, true)];
        // With -s all tests are made that are made without, so one of these shows whether it matters.
        if is_long() {
            all.push((short, false));
        }
        all.into_iter()
            .map(|(program, streams)| Self { program, streams })
            .collect()
    }

    fn title(self) -> String {
        format!("{}{}", self.program, if self.streams { " -s3" } else { "" })
    }

    /// A stateful decoder waits for a header in its input for ever, and v4l2-compliance 1.22 gives it zeros.
    fn ends_on_the_real(self, node: &Found) -> bool {
        !(self.streams && node.name == "stateful-decoder")
    }

    fn verdicts(self, node: &Found, path: &str) -> anyhow::Result<Vec<(String, Verdict)>> {
        let option = match node.kind {
            Kind::VbiCapture | Kind::VbiOutput => "-V",
            Kind::RadioRx | Kind::RadioTx => "-r",
            Kind::Sdr => "-S",
            Kind::Touch => "-t",
            _ => "-d",
        };
        let mut args = vec![option, path];
        let exporter = exporter(node)?;
        if self.streams {
            args.extend(["-s3", "-e", &exporter]);
        }
        let (_, output) = client::run_any(self.program, &args, LIMIT)?;
        parse(&output, path)
    }

    /// On ours too, the dma-bufs come from a real node.
    fn compare(self, node: &Found) -> anyhow::Result<()> {
        let (real, ours) = (
            node.real().display().to_string(),
            node.ours().display().to_string(),
        );
        let native = self.verdicts(node, &real)?;
        let mut served = self.verdicts(node, &ours)?;
        for _ in 0..3 {
            // It measures how late a frame comes, in milliseconds that an emulator on a busy machine has not always.
            let is_late = served
                .iter()
                .any(|(_, verdict)| Ours::Fails("delta_ms > ").is(verdict));
            if is_late {
                served = self.verdicts(node, &ours)?;
            }
        }
        let mut unexpected: Vec<Difference> = Vec::new();
        let mut expected = 0;
        for difference in differences(&native, &served) {
            match row(&difference) {
                Some(row) => {
                    expected += 1;
                    SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(row);
                }
                None => unexpected.push(difference),
            }
        }
        if !unexpected.is_empty() {
            // A test that the real node passes now and then is no yardstick; say so instead.
            let again = self.verdicts(node, &real)?;
            unexpected.retain(|difference| {
                let now = again.iter().find(|(test, _)| *test == difference.test);
                let now = now.map_or(Verdict::Absent, |(_, verdict)| verdict.clone());
                let steady = now == difference.real || now != difference.ours;
                if !steady {
                    figure(format!(
                        "compliance: {node}, {}: {}: the real node is {} and then {now}",
                        self.title(),
                        difference.test,
                        difference.real
                    ));
                }
                steady
            });
        }
        let lines: Vec<String> = unexpected.iter().map(ToString::to_string).collect();
        ensure!(
            unexpected.is_empty(),
            "{} of {} tests differ:\n  {}",
            lines.len(),
            native.len(),
            lines.join("\n  ")
        );
        let failed = |verdicts: &[(String, Verdict)]| {
            let failed = verdicts
                .iter()
                .filter(|(_, verdict)| matches!(verdict, Verdict::Fail(_)));
            failed.count()
        };
        figure(format!(
            "compliance: {node}, {}: {} tests ({} fail on the real node, {} on ours), {expected} expected differences",
            self.title(),
            native.len(),
            failed(&native),
            failed(&served)
        ));
        Ok(())
    }
}

/// Where the dma-bufs for a node come from: a video node of the same vivid, or the only vivid's, that nobody else uses.
fn exporter(node: &Found) -> anyhow::Result<String> {
    let instance = node
        .bus_info
        .strip_prefix("platform:vivid-")
        .and_then(|n| n.parse().ok());
    let kind = match node.kind {
        Kind::VideoCapture => Kind::VideoOutput,
        _ => Kind::VideoCapture,
    };
    Ok(nodes::vivid(instance.unwrap_or(0), kind)?
        .real()
        .display()
        .to_string())
}

/// A test with two verdicts.
struct Difference {
    test: String,
    real: Verdict,
    ours: Verdict,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: real {}, ours {}", self.test, self.real, self.ours)
    }
}

fn differences(real: &[(String, Verdict)], ours: &[(String, Verdict)]) -> Vec<Difference> {
    let on = |verdicts: &[(String, Verdict)], test: &str| {
        let found = verdicts.iter().find(|(name, _)| name == test);
        found.map_or(Verdict::Absent, |(_, verdict)| verdict.clone())
    };
    let more = ours.iter().filter(|(test, _)| on(real, test) == Verdict::Absent);
    real.iter()
        .chain(more)
        .map(|(test, _)| Difference {
            real: on(real, test),
            ours: on(ours, test),
            test: test.clone(),
        })
        .filter(|difference| difference.real != difference.ours)
        .collect()
}

/// The row of [`EXPECTED`] for this difference.
fn row(difference: &Difference) -> Option<usize> {
    // "SECTION: TEST"
    let (_, test) = difference
        .test
        .split_once("): ")
        .unwrap_or(("", &difference.test));
    let test = test.split_once("ioctls: ").map_or(test, |(_, test)| test);
    EXPECTED
        .iter()
        .position(|row| test.starts_with(row.test) && row.ours.is(&difference.ours))
}

fn none_stale(tests: usize) -> anyhow::Result<()> {
    let set = Set::here()?;
    let seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let run = TESTS_RUN.load(Ordering::Relaxed);
    if run < tests {
        figure(format!(
            "compliance: {run} of {tests} tests were run, so stale rows are not looked for"
        ));
        return Ok(());
    }
    let mut stale = Vec::new();
    for (at, row) in EXPECTED.iter().enumerate() {
        if seen.contains(&at) {
            figure(format!("compliance: expected: {}: {}", row.test, row.why));
        } else if row.sets.contains(&set) {
            stale.push(row.test);
        }
    }
    ensure!(
        stale.is_empty(),
        "no node shows these expected differences any more: {stale:?}"
    );
    Ok(())
}
