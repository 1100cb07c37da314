//! v4l2-compliance, 64-bit and 32-bit, on every real node and on ours beside it, compared test by test.
//!
//! What the program thinks of a driver does not matter here (it is older than the kernel and fails tests on every real
//! node): ours must be judged as the real one is, at the same lines of its source. [`EXPECTED`] has all that may
//! differ.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};

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

/// A difference that CUSE itself makes: it can neither map memory into a client nor hand it a file.
struct Expected {
    /// The test as v4l2-compliance calls it.
    test: &'static str,
    /// The verdict on ours, where it is [`Verdict::Ok`] on the real node.
    ours: Verdict,
    /// In which device sets there are nodes that show it.
    sets: &'static [Set],
    why: &'static str,
}

const BOTH: &[Set] = &[Set::Kinds, Set::M2m];

/// All of them. A row that no node shows any more fails too.
const EXPECTED: &[Expected] = &[
    Expected {
        test: "MC information (see 'Media Driver Info' above)",
        ours: Verdict::Absent,
        sets: BOTH,
        why: "the media device is found through the node's parent in sysfs, and that of a CUSE node is no device",
    },
    Expected {
        test: "VIDIOC_EXPBUF",
        ours: Verdict::NotSupported,
        sets: BOTH,
        why: "it returns a file, which only the client shim can do; REQBUFS(MMAP) says EINVAL, so it is not tried",
    },
    Expected {
        test: "Requests",
        ours: Verdict::NotSupported,
        sets: BOTH,
        why: "a request is a file of the media device, to which there is no link",
    },
    Expected {
        test: "blocking wait",
        ours: Verdict::NotSupported,
        sets: BOTH,
        why: "tested with MMAP buffers only",
    },
    Expected {
        test: "MMAP (no poll)",
        ours: Verdict::NotSupported,
        sets: BOTH,
        why: "CUSE has no mmap; needs the client shim",
    },
    Expected {
        test: "MMAP (select)",
        ours: Verdict::NotSupported,
        sets: BOTH,
        why: "CUSE has no mmap; needs the client shim",
    },
    Expected {
        test: "MMAP (epoll)",
        ours: Verdict::NotSupported,
        sets: BOTH,
        why: "CUSE has no mmap; needs the client shim",
    },
];

/// Which rows of [`EXPECTED`] were seen, and how many tests have been through.
static SEEN: Mutex<(BTreeSet<usize>, usize)> = Mutex::new((BTreeSet::new(), 0));

/// Longer than v4l2-compliance takes for any node under an emulator.
const LIMIT: Duration = Duration::from_secs(60);

/// The same kind of node on all three vivids, which have nothing in common and may be tested side by side.
fn of_vivids(kind: Kind) -> anyhow::Result<()> {
    let nodes = (0..3).map(|instance| nodes::vivid(instance, kind));
    judge(&nodes.collect::<anyhow::Result<Vec<_>>>()?)
}

fn of_named(names: &[&str]) -> anyhow::Result<()> {
    let nodes = names.iter().map(|name| nodes::named(name));
    judge(&nodes.collect::<anyhow::Result<Vec<_>>>()?)
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
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).1 += 1;
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
        if self.streams {
            args.push("-s3");
        }
        let (_, output) = client::run_any(self.program, &args, LIMIT)?;
        parse(&output, path)
    }

    fn compare(self, node: &Found) -> anyhow::Result<()> {
        let (real, ours) = (
            node.real().display().to_string(),
            node.ours().display().to_string(),
        );
        let native = self.verdicts(node, &real)?;
        let served = self.verdicts(node, &ours).context(ours)?;
        let mut unexpected: Vec<Difference> = Vec::new();
        let mut expected = 0;
        for difference in differences(&native, &served) {
            match row(&difference) {
                Some(row) => {
                    expected += 1;
                    SEEN.lock().unwrap_or_else(PoisonError::into_inner).0.insert(row);
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
    // After "SECTION: ".
    let name = |test: &str| {
        difference
            .test
            .strip_suffix(test)
            .is_some_and(|rest| rest.ends_with(": "))
    };
    EXPECTED
        .iter()
        .position(|row| name(row.test) && difference.real == Verdict::Ok && difference.ours == row.ours)
}

fn none_stale(tests: usize) -> anyhow::Result<()> {
    let set = Set::here()?;
    let (seen, run) = SEEN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if run < tests {
        figure(format!(
            "compliance: {run} of {tests} tests were run, so stale rows are not looked for"
        ));
        return Ok(());
    }
    let mut stale = Vec::new();
    for (at, row) in EXPECTED.iter().enumerate() {
        if seen.contains(&at) {
            figure(format!(
                "compliance: expected: {}: {} on ours: {}",
                row.test, row.ours, row.why
            ));
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
