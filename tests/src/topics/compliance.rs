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

use super::is_for_this_kernel;
use super::verdicts::{Verdict, parse};
use crate::client;
use crate::daemon;
use crate::nodes::{self, Found, Kind};
use crate::report::figure;
use crate::setup::{self, Set, Test, is_6_1, is_long, still};
use crate::shim::Seat;

/// For the set `kinds`: each kind of node in each way, which is a test of its own so that none takes too long.
pub const KINDS: &[(&str, Test)] = &[
    ("compliance::video_capture", || {
        of_vivids(Kind::VideoCapture, Run::PLAIN)
    }),
    ("compliance::video_capture_streams", || {
        of_vivids(Kind::VideoCapture, Run::STREAMS)
    }),
    ("compliance::video_capture_streams_i386", || {
        of_vivids(Kind::VideoCapture, Run::STREAMS_I386)
    }),
    ("compliance::video_output", || {
        of_vivids(Kind::VideoOutput, Run::PLAIN)
    }),
    ("compliance::video_output_streams", || {
        of_vivids(Kind::VideoOutput, Run::STREAMS)
    }),
    ("compliance::video_output_streams_i386", || {
        of_vivids(Kind::VideoOutput, Run::STREAMS_I386)
    }),
    ("compliance::vbi_capture", || {
        of_vivids(Kind::VbiCapture, Run::PLAIN)
    }),
    ("compliance::vbi_capture_streams", || {
        of_vivids(Kind::VbiCapture, Run::STREAMS)
    }),
    ("compliance::vbi_capture_streams_i386", || {
        of_vivids(Kind::VbiCapture, Run::STREAMS_I386)
    }),
    ("compliance::vbi_output", || {
        of_vivids(Kind::VbiOutput, Run::PLAIN)
    }),
    ("compliance::vbi_output_streams", || {
        of_vivids(Kind::VbiOutput, Run::STREAMS)
    }),
    ("compliance::vbi_output_streams_i386", || {
        of_vivids(Kind::VbiOutput, Run::STREAMS_I386)
    }),
    ("compliance::radio_receiver", || {
        of_vivids(Kind::RadioRx, Run::PLAIN)
    }),
    ("compliance::radio_receiver_streams", || {
        of_vivids(Kind::RadioRx, Run::STREAMS)
    }),
    ("compliance::radio_receiver_streams_i386", || {
        of_vivids(Kind::RadioRx, Run::STREAMS_I386)
    }),
    ("compliance::radio_transmitter", || {
        of_vivids(Kind::RadioTx, Run::PLAIN)
    }),
    ("compliance::radio_transmitter_streams", || {
        of_vivids(Kind::RadioTx, Run::STREAMS)
    }),
    ("compliance::radio_transmitter_streams_i386", || {
        of_vivids(Kind::RadioTx, Run::STREAMS_I386)
    }),
    ("compliance::sdr", || of_vivids(Kind::Sdr, Run::PLAIN)),
    ("compliance::sdr_streams", || of_vivids(Kind::Sdr, Run::STREAMS)),
    ("compliance::sdr_streams_i386", || {
        of_vivids(Kind::Sdr, Run::STREAMS_I386)
    }),
    ("compliance::meta_capture", || {
        of_vivids(Kind::MetaCapture, Run::PLAIN)
    }),
    ("compliance::meta_capture_streams", || {
        of_vivids(Kind::MetaCapture, Run::STREAMS)
    }),
    ("compliance::meta_capture_streams_i386", || {
        of_vivids(Kind::MetaCapture, Run::STREAMS_I386)
    }),
    ("compliance::meta_output", || {
        of_vivids(Kind::MetaOutput, Run::PLAIN)
    }),
    ("compliance::meta_output_streams", || {
        of_vivids(Kind::MetaOutput, Run::STREAMS)
    }),
    ("compliance::meta_output_streams_i386", || {
        of_vivids(Kind::MetaOutput, Run::STREAMS_I386)
    }),
    ("compliance::touch", || of_vivids(Kind::Touch, Run::PLAIN)),
    ("compliance::touch_streams", || {
        of_vivids(Kind::Touch, Run::STREAMS)
    }),
    ("compliance::touch_streams_i386", || {
        of_vivids(Kind::Touch, Run::STREAMS_I386)
    }),
    ("compliance::no_expected_difference_is_stale", || {
        none_stale(KINDS)
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
    ("compliance::no_expected_difference_is_stale", || none_stale(M2M)),
];

/// For the set `shim`: ours with the client shim, by which nothing is left that the real node can do and ours cannot.
pub const SHIM: &[(&str, Test)] = &[
    ("shim_compliance::video_capture", of_slow_cameras),
    ("shim_compliance::video_output", || {
        of_vivids(Kind::VideoOutput, Run::SHIM)
    }),
    ("shim_compliance::vim2m", || judge_named(&["vim2m"], &[Run::SHIM])),
    ("shim_compliance::no_expected_difference_is_stale", || {
        none_stale(SHIM)
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
    /// Passed, where the real node has none of it.
    Served,
}

impl Ours {
    fn is(&self, difference: &Difference) -> bool {
        match (self, &difference.real, &difference.ours) {
            (Self::Absent, _, Verdict::Absent) | (Self::NotSupported, _, Verdict::NotSupported) => true,
            (Self::Fails(what), _, ours) => fails(ours, what),
            (Self::Served, real, ours) => (real, ours) == (&Verdict::NotSupported, &Verdict::Ok),
            _ => false,
        }
    }
}

/// Is one of the conditions that were not met this?
fn fails(verdict: &Verdict, what: &str) -> bool {
    matches!(verdict, Verdict::Fail(failures) if failures.iter().any(|failure| failure.what.contains(what)))
}

/// A difference that CUSE itself makes: it can neither map memory into a client nor hand it a file. One is made on
/// purpose.
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
        ours: Ours::Served,
        sets: &[Set::Kinds, Set::Shim],
        why: "the driver has no USERPTR, which is what vidcompat is for",
    },
    Expected {
        test: "USERPTR (",
        ours: Ours::Fails("g_field() != fmt.g_field()"),
        sets: &[Set::Kinds],
        why: "it reads the format, with whose field it compares, in the test of MMAP only; what we say is compared with \
              the real node by nodes::a_dequeued_output_buffer_has_the_field_of_the_format",
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

/// What a test of v4l2-compliance says that has lost a race against the clock, which it may do on any node, and does the
/// rather the slower the machine is.
struct Race {
    /// How the test is called, at its end.
    test: &'static str,
    /// A part of the condition that was not met.
    what: &'static str,
    /// Whether the test does more with `-s`, so that without it would be no answer.
    streams: bool,
    why: &'static str,
}

const REQUESTS: &str = "it looks at a buffer that it has just queued on a running camera, with 15 before it: 133 ms at \
                        120 frames a second, and then the buffer is full and its request complete \
                        (v4l2-test-buffers.cpp, lines 2371 to 2374)";

const RACES: &[Race] = &[
    Race {
        test: "",
        what: "delta_ms > ",
        streams: false,
        why: "it measures how late an answer comes, in milliseconds",
    },
    Race {
        test: ": Requests",
        what: "!(buf.g_flags() & V4L2_BUF_FLAG_QUEUED)",
        streams: true,
        why: REQUESTS,
    },
    Race {
        test: ": Requests",
        what: "MEDIA_REQUEST_IOC_REINIT, nullptr) != EBUSY",
        streams: true,
        why: REQUESTS,
    },
    Race {
        test: ": Requests",
        what: "MEDIA_REQUEST_IOC_QUEUE, nullptr) != EBUSY",
        streams: true,
        why: REQUESTS,
    },
];

/// Which race has this test lost?
fn lost(test: &str, verdict: &Verdict) -> Option<&'static Race> {
    RACES
        .iter()
        .find(|race| test.ends_with(race.test) && fails(verdict, race.what))
}

/// So often is such a test judged again. One that fails each time has failed.
const PATIENCE: u32 = 8;

/// The same kind of node on several vivids.
fn of_vivids(kind: Kind, run: Run) -> anyhow::Result<()> {
    let nodes = (0..run.instances(kind)).map(|instance| Judged::new(nodes::vivid(instance, kind)?));
    let nodes = nodes.collect::<anyhow::Result<Vec<_>>>()?;
    TESTS_RUN.fetch_add(1, Ordering::Relaxed);
    let runs = match run {
        // With -s all tests are made that are made without, and of the 64-bit program they are compared.
        Run::STREAMS_I386 if is_long() => vec![run, Run::PLAIN_I386],
        _ => vec![run],
    };
    judge(&nodes, &runs)
}

/// With the shim there are requests, of which v4l2-compliance wants to see that they wait (see [`RACES`]). It sets a
/// camera to as many frames a second as it has for the size of its picture: 120 for the size that other tests use.
fn of_slow_cameras() -> anyhow::Result<()> {
    let cameras = |size| {
        (0..Run::SHIM.instances(Kind::VideoCapture))
            .try_for_each(|instance| still(&nodes::vivid(instance, Kind::VideoCapture)?.real(), size))
    };
    cameras((1280, 720))?;
    let outcome = of_vivids(Kind::VideoCapture, Run::SHIM);
    setup::devices()?;
    outcome
}

fn of_named(names: &[&str]) -> anyhow::Result<()> {
    // Once more by a 32-bit program, which one kernel is enough for.
    let runs = [Run::PLAIN, Run::STREAMS, Run::STREAMS_I386];
    let count = if is_6_1() && !is_long() { 2 } else { 3 };
    judge_named(names, &runs[..count])
}

fn judge_named(names: &[&str], runs: &[Run]) -> anyhow::Result<()> {
    // One after the other: all have their dma-bufs from the same vivid.
    let each = names.iter().map(|name| {
        let node = Judged::new(nodes::named(name)?)?;
        judge(&[node], runs)
    });
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

/// A real node, with ours beside it.
struct Judged {
    node: Found,
    /// Another real node, which nobody else uses meanwhile: where its dma-bufs come from.
    exporter: String,
}

impl Judged {
    fn new(node: Found) -> anyhow::Result<Self> {
        Ok(Self {
            exporter: exporter(&node)?,
            node,
        })
    }
}

/// Compares each of these nodes, which are of different devices, with ours beside it, all nodes at once. Meanwhile no node
/// can be looked for: at the end of each run v4l2-compliance disconnects a vivid for a second.
fn judge(nodes: &[Judged], runs: &[Run]) -> anyhow::Result<()> {
    daemon::shared()?;
    let complaints: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = nodes
            .iter()
            .map(|judged| scope.spawn(|| judge_node(judged, runs)))
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

fn judge_node(judged: &Judged, runs: &[Run]) -> anyhow::Result<()> {
    let mut complaints = String::new();
    for run in runs {
        if !run.ends_on_the_real(&judged.node) {
            continue;
        }
        if let Err(error) = run.compare(judged) {
            write!(complaints, "\n{}, {}: {error:#}", judged.node, run.title())?;
        }
    }
    ensure!(complaints.is_empty(), "{complaints}");
    Ok(())
}

/// One way of running v4l2-compliance.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Run {
    program: &'static str,
    streams: bool,
    /// On ours with the client shim.
    shim: bool,
}

impl Run {
    const PLAIN: Self = Self {
        program: "v4l2-compliance",
        streams: false,
        shim: false,
    };
    const SHIM: Self = Self {
        shim: true,
        ..Self::STREAMS
    };
    const STREAMS: Self = Self {
        streams: true,
        ..Self::PLAIN
    };
    const PLAIN_I386: Self = Self {
        program: "v4l2-compliance-i386",
        ..Self::PLAIN
    };
    const STREAMS_I386: Self = Self {
        streams: true,
        ..Self::PLAIN_I386
    };

    /// On how many vivids (0 single-planar, 1 multi-planar, 2 dma-contig): only nodes for video are what these words say.
    fn instances(self, kind: Kind) -> u32 {
        match (self, kind) {
            _ if is_long() => 3,
            (Self::SHIM | Self::PLAIN, _) | (Self::STREAMS, Kind::VideoCapture | Kind::VideoOutput) => 3,
            (_, Kind::VideoCapture | Kind::VideoOutput) => 2,
            _ => 1,
        }
    }

    fn title(self) -> String {
        format!(
            "{}{}{}",
            self.program,
            if self.streams { " -s3" } else { "" },
            if self.shim { " with the shim" } else { "" }
        )
    }

    /// A stateful decoder waits for a header in its input for ever, and v4l2-compliance 1.22 gives it zeros.
    fn ends_on_the_real(self, node: &Found) -> bool {
        !(self.streams && node.name == "stateful-decoder")
    }

    fn verdicts(self, judged: &Judged, seat: &Seat) -> anyhow::Result<Vec<(String, Verdict)>> {
        let option = match judged.node.kind {
            Kind::VbiCapture | Kind::VbiOutput => "-V",
            Kind::RadioRx | Kind::RadioTx => "-r",
            Kind::Sdr => "-S",
            Kind::Touch => "-t",
            _ => "-d",
        };
        let mut command = format!("{} -C never -P {option} NODE", self.program);
        if self.streams {
            write!(command, " -s3 -e {}", judged.exporter)?;
        }
        let command = seat.line(&command);
        // It writes to a terminal of its own.
        let (_, output) = client::run_any("script", &["-qefc", &command, "/dev/null"], LIMIT)?;
        parse(&output, &seat.path.display().to_string())
    }

    /// Judges those tests again, on the same node, that `verdicts` say have lost a race.
    fn judge_lost_races_again(
        self,
        judged: &Judged,
        seat: &Seat,
        verdicts: &mut [(String, Verdict)],
    ) -> anyhow::Result<()> {
        for again in 1..=PATIENCE {
            let races: Vec<&Race> = verdicts
                .iter()
                .filter_map(|(test, verdict)| lost(test, verdict))
                .collect();
            if races.is_empty() {
                return Ok(());
            }
            for race in &races {
                figure(format!(
                    "compliance: {}, {}: \"{}\" is judged for the {again}. time more: {}",
                    seat.path.display(),
                    self.title(),
                    race.what,
                    race.why
                ));
            }
            let run = Self {
                streams: self.streams && races.iter().any(|race| race.streams),
                ..self
            };
            let now = run.verdicts(judged, seat)?;
            for (test, verdict) in verdicts
                .iter_mut()
                .filter(|(test, verdict)| lost(test, verdict).is_some())
            {
                if let Some((_, verdict_now)) = now.iter().find(|(name, _)| name == test) {
                    *verdict = verdict_now.clone();
                }
            }
        }
        Ok(())
    }

    /// On ours too, the dma-bufs come from a real node.
    fn compare(self, judged: &Judged) -> anyhow::Result<()> {
        let node = &judged.node;
        let on = |seat: &Seat| -> anyhow::Result<_> {
            let mut verdicts = self.verdicts(judged, seat)?;
            self.judge_lost_races_again(judged, seat, &mut verdicts)?;
            Ok(verdicts)
        };
        let real = Seat::real(node);
        let ours = match self.shim {
            true => Seat::run(node),
            false => Seat::plain(node),
        };
        let native = on(&real)?;
        let served = on(&ours)?;
        let set = Set::here()?;
        let mut unexpected: Vec<Difference> = Vec::new();
        let mut expected = 0;
        for difference in differences(&native, &served) {
            match row(set, &difference) {
                Some(row) => {
                    expected += 1;
                    SEEN.lock().unwrap_or_else(PoisonError::into_inner).insert(row);
                }
                None => unexpected.push(difference),
            }
        }
        if !unexpected.is_empty() {
            // A test that the real node passes now and then is no yardstick; say so instead.
            let again = on(&real)?;
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
fn row(set: Set, difference: &Difference) -> Option<usize> {
    // "SECTION: TEST"
    let (_, test) = difference
        .test
        .split_once("): ")
        .unwrap_or(("", &difference.test));
    let test = test.split_once("ioctls: ").map_or(test, |(_, test)| test);
    EXPECTED
        .iter()
        .position(|row| row.sets.contains(&set) && test.starts_with(row.test) && row.ours.is(difference))
}

fn none_stale(tests: &[(&str, Test)]) -> anyhow::Result<()> {
    let tests = tests.iter().filter(|(name, _)| is_for_this_kernel(name)).count() - 1;
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
