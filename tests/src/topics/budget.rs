//! What clients can make the daemon hold: no more than it was told, and never at the cost of another client.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vidcompat_proto::abi::v4l2::V4l2CreateBuffers;
use zerocopy::FromZeros;

use super::lifecycle::Hidden;
use crate::client::{AT_ONCE, Client, run};
use crate::daemon::{self, Daemon, Resources, number_in};
use crate::report::figure;
use crate::setup::{self, CONTIG, SPARE, Test, is_6_1, is_free};
use crate::sys::{self, Pages};
use crate::video::{Video, memory, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "budget::a_client_gets_the_buffers_that_its_memory_is_enough_for_or_enomem",
        per_client,
    ),
    (
        "budget::create_bufs_beyond_it_is_enomem_and_the_rest_streams",
        create_bufs,
    ),
    ("budget::what_one_client_has_another_cannot_get", total),
    (
        "budget::sixty_four_buffers_of_the_largest_format_do_not_harm_others",
        largest,
    ),
    (
        "budget::sixty_four_of_the_devices_own_largest_buffers_do_not_harm_others",
        largest_without_heap,
    ),
    (
        "budget::many_files_that_read_a_byte_do_not_harm_others",
        many_files,
    ),
    (
        "budget::many_threads_that_sleep_do_not_harm_others",
        many_sleepers,
    ),
    (
        "budget::a_client_that_uses_up_the_files_of_the_daemon_does_not_harm_others",
        files_used_up,
    ),
];

/// Threads that the daemon may keep for its two nodes, ready for the next request.
const READERS: usize = 4;
/// Bytes of a buffer of the small picture, in whole pages.
const BUFFER: usize = 118_784;

fn start(arguments: &[&str]) -> anyhow::Result<Daemon> {
    let device = real(SPARE).to_string();
    Daemon::start(&[&["--device", &device][..], arguments].concat())
}

/// Streams some frames with the buffers that there are.
fn stream(video: &Video, count: u32) -> anyhow::Result<()> {
    let size = video.sizeimage()?;
    let memory = Pages::new(count as usize * BUFFER)?;
    for index in 0..count {
        video.qbuf(index, memory.at(index as usize * BUFFER), size)?;
    }
    video.streamon()?;
    for _ in 0..5 {
        let buffer = video.dqbuf()?;
        video.qbuf(buffer.index, buffer.m, buffer.length)?;
    }
    Ok(video.streamoff()?)
}

fn per_client() -> anyhow::Result<()> {
    // vivid wants two at least.
    for (buffers, granted) in [
        (0, Err(Errno::ENOMEM)),
        (1, Err(Errno::ENOMEM)),
        (2, Ok(2)),
        (3, Ok(3)),
        (4, Ok(4)),
        (5, Ok(4)),
    ] {
        let limit = (buffers * BUFFER + BUFFER - 1).to_string();
        let daemon = start(&["--memory-per-client", &limit])?;
        let at_first = |round: usize| format!("{buffers} buffers and a half, round {round}");
        // What was spent comes back, each time and in every way.
        for round in 0..10 {
            let video = ours(SPARE).open()?;
            let outcome = video.reqbufs(4);
            ensure!(outcome == granted, "{}: {outcome:?}", at_first(round));
            if let Ok(count) = outcome {
                stream(&video, count).with_context(|| at_first(round))?;
                ensure!(video.reqbufs(4) == granted, "again, {}", at_first(round));
                if round % 2 == 0 {
                    video.reqbufs(0)?;
                }
            } else {
                is_free(SPARE).with_context(|| at_first(round))?;
            }
        }
        let read = sys::read(ours(SPARE).open()?, &Pages::new(BUFFER)?, 0, 1);
        ensure!(
            read == if buffers == 0 { Err(Errno::ENOMEM) } else { Ok(1) },
            "read, {buffers} buffers and a half: {read:?}"
        );
        drop(daemon);
    }
    Ok(())
}

fn create_bufs() -> anyhow::Result<()> {
    let limit = (2 * BUFFER + BUFFER / 2).to_string();
    let _daemon = start(&["--memory-per-client", &limit])?;
    let video = ours(SPARE).open()?;
    let create = |count| -> anyhow::Result<Result<(), Errno>> {
        let mut request = V4l2CreateBuffers::new_zeroed();
        (request.count, request.memory) = (count, memory::USERPTR);
        request.format = video.format()?;
        Ok(video.create_bufs(&mut request))
    };
    ensure!(create(3)? == Err(Errno::ENOMEM), "three at once");
    is_free(SPARE)?;
    ensure!(create(2)? == Ok(()), "two at once");
    ensure!(create(1)? == Err(Errno::ENOMEM), "the third");
    stream(&video, 2)?;
    // The driver has made a third one, and cannot take it back; there is no memory behind it.
    let memory = Pages::new(BUFFER)?;
    let third = video.qbuf(2, memory.at(0), video.sizeimage()?);
    ensure!(
        matches!(third, Err(Errno::ENOMEM | Errno::EINVAL)),
        "QBUF of the third: {third:?}"
    );
    video.reqbufs(0)?;
    ensure!(video.reqbufs(2) == Ok(2), "afterwards");
    stream(&video, 2)
}

fn total() -> anyhow::Result<()> {
    daemon::stop_shared();
    let limit = (3 * BUFFER + BUFFER / 2).to_string();
    let contig = real(CONTIG).to_string();
    let _daemon = start(&["--device", &contig, "--memory-total", &limit])?;
    let other = ours(SPARE).to_string();
    let args = ["-d", &other, "--stream-user=3", "--stream-count=5"];
    for _ in 0..3 {
        let video = ours(CONTIG).open()?;
        ensure!(video.reqbufs(2) == Ok(2));
        let said = run("v4l2-ctl", &args, AT_ONCE)?;
        ensure!(said.contains("Cannot allocate memory"), "another client: {said}");
        // The same one, on another device.
        let second = ours(SPARE).open()?.reqbufs(2);
        ensure!(second == Err(Errno::ENOMEM), "the same client: {second:?}");
        stream(&video, 2)?;
        drop(video);
        let said = run("v4l2-ctl", &args, AT_ONCE)?;
        ensure!(said.contains("<<<<<"), "another client, later: {said}");
    }
    Ok(())
}

/// A client that streams from one device for as long as the other is under attack.
struct Neighbour {
    client: Client,
    said: String,
}

impl Neighbour {
    fn start() -> anyhow::Result<Self> {
        let path = ours(CONTIG).to_string();
        let client = Client::start(
            "v4l2-ctl",
            &["-d", &path, "--stream-user=3", "--stream-count=100000"],
        )?;
        thread::sleep(Duration::from_millis(500));
        Ok(Self {
            client,
            said: String::new(),
        })
    }

    /// Frames of which it has told: a sign for each, a line a second.
    fn frames(&mut self) -> usize {
        while let Some(line) = self.client.line_if_any() {
            self.said += &(line + "\n");
        }
        self.said.matches('<').count()
    }

    /// It must still stream: so many frames more.
    fn goes_on(mut self, more: usize) -> anyhow::Result<()> {
        let (before, begin) = (self.frames(), Instant::now());
        while self.frames() <= before + more {
            ensure!(
                !self.client.has_ended()? && begin.elapsed() < 4 * AT_ONCE,
                "the neighbour got {before} frames and then few more: {}{}",
                self.said,
                if self.client.has_ended()? {
                    self.client.rest()
                } else {
                    String::new()
                }
            );
            thread::sleep(Duration::from_millis(20));
        }
        self.client.signal(nix::sys::signal::Signal::SIGTERM)?;
        self.client.end(AT_ONCE).map(drop)
    }
}

/// How much of the machine's memory is available, looked at all the time.
struct Watched {
    before: usize,
    end: Sender<()>,
    least: JoinHandle<usize>,
}

impl Watched {
    fn start() -> anyhow::Result<Self> {
        let look = || number_in("/proc/meminfo", "MemAvailable:");
        let before = look()?;
        let (end, ended) = channel();
        let least = thread::spawn(move || {
            let mut least = before;
            while ended.recv_timeout(Duration::from_millis(2)) == Err(RecvTimeoutError::Timeout) {
                least = least.min(look().unwrap_or(before));
            }
            least
        });
        Ok(Self { before, end, least })
    }

    /// By how many KiB it was less at the worst.
    fn end(self) -> anyhow::Result<usize> {
        self.end.send(())?;
        let least = self.least.join().ok().context("the thread panicked")?;
        Ok(self.before.saturating_sub(least))
    }
}

/// Starts a daemon for two devices, a neighbour on one, and `hostile` on the other; `while_held` looks at what it says
/// of its calls, at what the daemon holds, and at how much of the machine's memory was gone at the worst, in KiB. At
/// the end the daemon must be as small as before.
fn attack(
    mode: &str,
    count: usize,
    while_held: impl FnOnce(&str, &Resources, usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    daemon::stop_shared();
    let contig = real(CONTIG).to_string();
    let daemon = start(&["--device", &contig])?;
    let neighbour = Neighbour::start()?;
    let before = daemon.resources()?;
    let watched = Watched::start()?;
    let hostile = Client::start("hostile", &[mode, &count.to_string(), &ours(SPARE).to_string()])?;
    let mut said = String::new();
    let begin = Instant::now();
    while !said.contains("buffers: ") {
        match hostile.line() {
            Ok(line) => said += &(line + "; "),
            Err(error) => ensure!(begin.elapsed() < 6 * AT_ONCE, "{error:#}; so far: {said}"),
        }
    }
    let held = daemon.resources()?;
    let gone = watched.end()?;
    figure(format!(
        "hostile {mode} {count}, {} ms: {said}the daemon has {} fds, {} threads, {} KiB (RssAnon {}); at the worst {} MiB of memory gone",
        begin.elapsed().as_millis(),
        held.fds.len(),
        held.threads,
        held.rss_kib,
        held.anonymous_kib,
        gone / 1024
    ));
    // Other clients are served as before, the one that is there and a new one.
    neighbour
        .goes_on(20)
        .context("while the hostile client holds what it has")?;
    while_held(&said, &held, gone).context(said.clone())?;
    drop(hostile);
    is_free(SPARE)?;
    let path = ours(SPARE).to_string();
    setup::devices()?;
    let args = ["-d", &path, "--stream-user=3", "--stream-count=5"];
    let said = run("v4l2-ctl", &args, AT_ONCE)?;
    ensure!(said.contains("<<<<<"), "a client afterwards: {said}");
    let begin = Instant::now();
    let mut after = daemon.resources()?;
    // Idle helper threads live two seconds.
    while after.threads > before.threads + READERS && begin.elapsed() < AT_ONCE {
        thread::sleep(Duration::from_millis(50));
        after = daemon.resources()?;
    }
    ensure!(after.fds.len() <= before.fds.len(), "fds: {:?}", after.fds);
    ensure!(
        after.threads <= before.threads + READERS,
        "{} threads became {}",
        before.threads,
        after.threads
    );
    ensure!(
        after.anonymous_kib < before.anonymous_kib + 4096,
        "RssAnon {} KiB became {}",
        before.anonymous_kib,
        after.anonymous_kib
    );
    Ok(())
}

/// While held: threads do not grow with clients, nor does the memory that is no buffer.
fn is_small(held: &Resources, kib: usize) -> anyhow::Result<()> {
    ensure!(held.threads < 40, "{} threads", held.threads);
    ensure!(held.anonymous_kib < kib, "RssAnon is {} KiB", held.anonymous_kib);
    Ok(())
}

fn largest() -> anyhow::Result<()> {
    let path = real(SPARE).to_string();
    let format = "width=3840,height=2160,pixelformat=YUYV";
    run("v4l2-ctl", &["-d", &path, "-v", format], AT_ONCE)?;
    let outcome = attack("buffers", 3, |said, held, gone| {
        // A quarter of the machine's memory is the bound.
        let bound = number_in("/proc/meminfo", "MemTotal:")? / 4;
        let granted = said.rsplit("buffers: ").next().unwrap_or_default();
        let granted: usize = granted.trim_end_matches("; ").parse()?;
        ensure!(
            granted > 0 && granted * 3840 * 2160 * 2 <= bound * 1024,
            "{granted} buffers, the bound is {bound} KiB"
        );
        // The neighbour's and everybody else's doings come on top.
        ensure!(
            gone < bound + (32 << 10),
            "{gone} KiB of the machine's memory were gone at the worst, the bound is {bound} KiB"
        );
        is_small(held, 32 << 10)
    });
    setup::devices()?;
    outcome
}

/// The driver makes these, when it is asked: too late to count them then.
fn largest_without_heap() -> anyhow::Result<()> {
    // There `largest` has shown it.
    if is_6_1() {
        return Ok(());
    }
    let _hidden = Hidden::new("/dev/dma_heap")?;
    largest()
}

fn many_files() -> anyhow::Result<()> {
    attack("files", 300, |said, held, _| {
        // One file reads; the driver gives it to no other. A node has a bound for its open files too.
        ensure!(said.contains("open: 256 ok 44 ENFILE; "));
        ensure!(said.contains("255 EBUSY; REQBUFS: 256 EBUSY; CREATE_BUFS: 256 EBUSY"));
        is_small(held, 32 << 10)
    })
}

fn many_sleepers() -> anyhow::Result<()> {
    attack("sleepers", 100, |said, held, _| {
        ensure!(said.contains("open: 100 ok"));
        is_small(held, 32 << 10)
    })
}

fn files_used_up() -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 128, 128)?;
    // The daemon inherits it; hostile has its own limit at 128 too, less its three files.
    let outcome = attack("files", 120, |said, held, _| {
        ensure!(held.fds.len() <= 128, "{} fds", held.fds.len());
        ensure!(said.contains("open: "));
        is_small(held, 32 << 10)
    });
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    outcome
}
