//! Several programs at once: eight nodes with one client each, one node with eight (owner rules as in the kernel), a file
//! passed on over a socket, and threads that wait for everything at the same time on one file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::poll::PollFlags;
use vidcompat_proto::abi::format::{capture_types, output_types};
use vidcompat_proto::abi::v4l2::buf_flag;

use super::errnos::word;
use super::injected::{CONTROL_CHANGED, DQEVENT, SUBSCRIBE_EVENT, subscription};
use super::kill_loop::{resources, settled};
use super::nodes::{ctl, select_vbi};
use crate::client::{AT_ONCE, Client, run};
use crate::daemon;
use crate::nodes::{Found, Kind, vivid};
use crate::picture::set;
use crate::report::{equal, figure, same};
use crate::setup::{CONTIG, Test, VMALLOC, both_real, is_long};
use crate::sys::{self, Pages};
use crate::video::{Node, Video, ours, real};

/// For the cameras.
pub const TESTS: &[(&str, Test)] = &[
    (
        "sharing::eight_files_of_one_node_are_told_what_the_driver_tells",
        owner_rules,
    ),
    ("sharing::eight_clients_on_one_node_take_turns", take_turns),
    (
        "sharing::a_file_passed_over_a_socket_is_used_by_another_process",
        passed,
    ),
    (
        "sharing::threads_queue_while_another_sleeps_in_dqbuf",
        queue_while_asleep,
    ),
    (
        "sharing::waiters_for_frames_and_events_on_one_file_wake_each_by_its_own",
        waiters,
    ),
];

/// For nodes of every kind.
pub const KINDS_TESTS: &[(&str, Test)] = &[("sharing::eight_clients_on_eight_nodes", eight_nodes)];

/// No call may take longer than this and ten times what it took on the real node: a busy machine is slower, but not so.
const TOO_LONG: u64 = 2000;

/// The `key=number` words of the last line that `one_of_many` says.
fn numbers(said: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let line = said.lines().last().context("it says nothing")?;
    let mut numbers = BTreeMap::new();
    for word in line.split(' ') {
        let (key, value) = word.split_once('=').with_context(|| said.to_owned())?;
        numbers.insert(key.to_owned(), value.parse()?);
    }
    Ok(numbers)
}

type Numbers = BTreeMap<String, u64>;

fn number(of: &Numbers, key: &str) -> u64 {
    of.get(key).copied().unwrap_or_default()
}

/// Holds the figures of ours against those of the real node.
fn in_time(what: &str, native: &Numbers, served: &Numbers) -> anyhow::Result<()> {
    for key in ["longest_ms", "wait_ms"] {
        let (native, served) = (number(native, key), number(served, key));
        ensure!(
            served <= TOO_LONG || served <= 10 * native,
            "{what}: {key} {served} on ours, {native} on the real node"
        );
    }
    ensure!(
        number(served, "damaged") == number(native, "damaged"),
        "{what}: {served:?} and {native:?}"
    );
    Ok(())
}

/// Threads that the daemon may keep for the nodes of a test, ready for the next request: two for each.
const READERS: usize = 16;

/// The daemon holds no more than before.
fn is_flat(before: &daemon::Resources) -> anyhow::Result<()> {
    let after = settled(before)?;
    figure(format!(
        "the daemon before and after: fds {} -> {}, threads {} -> {}, RssAnon {} -> {} KiB",
        before.fds.len(),
        after.fds.len(),
        before.threads,
        after.threads,
        before.anonymous_kib,
        after.anonymous_kib
    ));
    ensure!(
        after.fds == before.fds,
        "fds: {:?} became {:?}",
        before.fds,
        after.fds
    );
    ensure!(
        after.threads <= before.threads + READERS,
        "{} threads became {}",
        before.threads,
        after.threads
    );
    ensure!(
        after.anonymous_kib <= before.anonymous_kib + 4096,
        "RssAnon {} KiB became {}",
        before.anonymous_kib,
        after.anonymous_kib
    );
    Ok(())
}

/// One node of each kind that streams; multi-planar where the kind can be. The metadata are of a webcam, VBI of another
/// input.
fn eight() -> anyhow::Result<Vec<Found>> {
    [
        (1, Kind::VideoCapture),
        (1, Kind::VideoOutput),
        (0, Kind::VbiCapture),
        (0, Kind::VbiOutput),
        (0, Kind::Sdr),
        (1, Kind::MetaCapture),
        (1, Kind::MetaOutput),
        (0, Kind::Touch),
    ]
    .into_iter()
    .map(|(instance, kind)| vivid(instance, kind))
    .collect()
}

/// Eight clients at the same time, each on its node, for so long: their figures.
fn stream_all(nodes: &[Found], is_ours: bool, millis: u64) -> anyhow::Result<Vec<Numbers>> {
    let millis_word = millis.to_string();
    let mut clients = vec![];
    for node in nodes {
        let path = if is_ours && !both_real() {
            node.ours()
        } else {
            node.real()
        };
        let buf_type = capture_types(node.device_caps)
            .chain(output_types(node.device_caps))
            .next()
            .context("no queue")?;
        let (path, buf_type) = (path.display().to_string(), buf_type.to_string());
        clients.push(Client::start("one_of_many", &[&path, &buf_type, &millis_word])?);
    }
    let mut told = vec![];
    for (node, mut client) in nodes.iter().zip(clients) {
        let status = client.end(Duration::from_millis(millis) + 4 * AT_ONCE)?;
        let said = client.rest();
        ensure!(status.success(), "{node}: {status}: {said}");
        told.push(numbers(&said)?);
    }
    Ok(told)
}

fn eight_nodes() -> anyhow::Result<()> {
    daemon::shared()?;
    let nodes = eight()?;
    let camera = vivid(0, Kind::VideoCapture)?;
    // A webcam has no VBI; and what raw or sliced is left is chance.
    ctl(&camera, &["-i", "1"])?;
    let outcome = stream_eight(&nodes);
    ctl(&camera, &["-i", "0"])?;
    outcome
}

fn stream_eight(nodes: &[Found]) -> anyhow::Result<()> {
    select_vbi(&nodes[2], vidcompat_proto::abi::v4l2::buf_type::VBI_CAPTURE)?;
    select_vbi(&nodes[3], vidcompat_proto::abi::v4l2::buf_type::VBI_OUTPUT)?;
    let millis = if is_long() { 60_000 } else { 5000 };
    let native = stream_all(nodes, false, 3000).context("on the real nodes")?;
    // Threads and caches that come with first use are no leak.
    stream_all(nodes, true, 1000).context("on ours, at first")?;
    let before = match both_real() {
        true => None,
        false => Some(settled(&resources()?)?),
    };
    let served = stream_all(nodes, true, millis).context("on ours")?;
    for (at, node) in nodes.iter().enumerate() {
        let rate = |of: &Numbers, millis: u64| number(of, "frames") * 1000 / millis;
        figure(format!(
            "eight clients on eight nodes, {node}: {} frames/s and {} on ours; longest wait {} and {} ms, longest other \
             call {} and {} ms",
            rate(&native[at], 3000),
            rate(&served[at], millis),
            number(&native[at], "wait_ms"),
            number(&served[at], "wait_ms"),
            number(&native[at], "longest_ms"),
            number(&served[at], "longest_ms"),
        ));
        in_time(&node.to_string(), &native[at], &served[at])?;
        // Emulated processors share the work of a daemon and eight clients.
        ensure!(
            4 * rate(&served[at], millis) + 4 > rate(&native[at], 3000),
            "{node}: {} frames/s, {} on the real node",
            rate(&served[at], millis),
            rate(&native[at], 3000)
        );
    }
    before.as_ref().map_or(Ok(()), is_flat)
}

/// Everything that seven others may or may not do while one streams, and after that.
fn eight_files(node: Node) -> anyhow::Result<Vec<String>> {
    let mut lines = vec![];
    let owner = node.open()?;
    let size = owner.sizeimage()?;
    let pages = Pages::new(size as usize)?;
    owner.reqbufs(2)?;
    owner.qbuf(0, pages.at(0), size)?;
    owner.streamon()?;
    // From here on its buffer is done, and stays so.
    lines.push(format!("the owner: {:?}", owner.poll(PollFlags::POLLIN, 3000)?));
    let others: Vec<Video> = (0..7).map(|_| node.open()).collect::<Result<_, _>>()?;
    for (at, other) in others.iter().enumerate() {
        subscription(other, SUBSCRIBE_EVENT, CONTROL_CHANGED, 0)?;
        lines.push(format!(
            "{at}: G_FMT {} S_FMT {} REQBUFS {} REQBUFS(0) {} QBUF {} DQBUF {} STREAMON {} STREAMOFF {}",
            word(other.sizeimage()),
            word(
                other
                    .format()
                    .and_then(|format| other.set_format(format))
                    .map(drop)
            ),
            word(other.reqbufs(2)),
            word(other.reqbufs(0)),
            word(other.qbuf(1, pages.at(0), size).map(drop)),
            word(other.dqbuf().map(drop)),
            word(other.streamon()),
            word(other.streamoff()),
        ));
        lines.push(format!(
            "{at}: read {} QUERYBUF {} poll {:?} {:?}",
            word(other.read(100).map(drop)),
            // What it tells of the owner's memory is the driver's view of ours: DMABUF or a mapped MMAP, in whole pages.
            word(other.querybuf(0).map(|buffer| buffer.flags & !buf_flag::MAPPED)),
            other.poll(PollFlags::POLLPRI, 0),
            other.poll(PollFlags::POLLIN, 0),
        ));
    }
    // Each that has subscribed is told of a change, once.
    set(node.number, "brightness=77")?;
    for (at, other) in others.iter().enumerate() {
        let before = other.poll(PollFlags::POLLPRI, 3000)?;
        let mut event = [0_u32; 34];
        let told = sys::ioctl(other, DQEVENT, &mut event).map(|_| (event[0], event[20]));
        let after = other.poll(PollFlags::POLLPRI, 0)?;
        lines.push(format!(
            "{at}: {before:?}, event {told:?}, then {after:?}",
            told = told.map(|(kind, _)| kind)
        ));
    }
    set(node.number, "brightness=128")?;
    lines.push(format!(
        "the owner's frame: {:?}",
        owner
            .dqbuf()
            .map(|buffer| (buffer.index, buffer.flags & buf_flag::ERROR))
    ));
    drop(owner);
    // Whoever comes first has it next; the others wait.
    for (at, other) in others.iter().enumerate().rev() {
        lines.push(format!("{at}: after its end REQBUFS {}", word(other.reqbufs(2))));
    }
    let mut last = None;
    for (at, other) in others.into_iter().enumerate().rev() {
        let frame = other
            .reqbufs(2)
            .and_then(|_| other.qbuf(0, pages.at(0), size))
            .and_then(|_| other.streamon())
            .and_then(|()| other.dqbuf().map(|buffer| buffer.index));
        lines.push(format!("{at} in its turn: {frame:?}"));
        // Closed while it streams, or given back with the file open.
        if at % 2 == 0 {
            other.streamoff()?;
            other.reqbufs(0)?;
            last = Some(other);
        }
    }
    drop(last);
    Ok(lines)
}

fn owner_rules() -> anyhow::Result<()> {
    daemon::shared()?;
    let lines = same(VMALLOC, eight_files)?;
    ensure!(
        lines.iter().filter(|line| line.contains("REQBUFS EBUSY")).count() >= 13
            && lines.iter().any(|line| line == "0 in its turn: Ok(0)"),
        "{lines:?}"
    );
    Ok(())
}

/// Eight clients on one node, until each has streamed for `turn` milliseconds.
fn turns(node: Node, turn: u64) -> anyhow::Result<Vec<Numbers>> {
    let limit = Duration::from_millis(8 * turn) + 6 * AT_ONCE;
    let (path, most, turn) = (node.to_string(), limit.as_millis().to_string(), turn.to_string());
    let arguments = [path.as_str(), "1", &most, &turn];
    let mut clients: Vec<Client> = (0..8)
        .map(|_| Client::start("one_of_many", &arguments))
        .collect::<Result<_, _>>()?;
    let end = Instant::now() + limit;
    let mut waiting: Vec<usize> = (0..8).collect();
    while !waiting.is_empty() {
        waiting.retain(|at| clients[*at].line_if_any().as_deref() != Some("turn"));
        ensure!(
            Instant::now() < end,
            "{node}: clients {waiting:?} had no turn within {limit:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
    let mut told = vec![];
    for client in &mut clients {
        client.close_stdin();
    }
    for mut client in clients {
        let status = client.end(AT_ONCE)?;
        let said = client.rest();
        ensure!(status.success(), "{node}: {status}: {said}");
        told.push(numbers(&said)?);
    }
    Ok(told)
}

fn take_turns() -> anyhow::Result<()> {
    daemon::shared()?;
    let turn = if is_long() { 7000 } else { 400 };
    let native = turns(real(VMALLOC), 400)?;
    // Threads and caches that come with first use are no leak.
    turns(ours(VMALLOC), 50)?;
    turns(ours(CONTIG), 50)?;
    let before = match both_real() {
        true => None,
        false => Some(settled(&resources()?)?),
    };
    for node in [ours(VMALLOC), ours(CONTIG)] {
        let served = turns(node, turn)?;
        let sum = |of: &[Numbers], key| of.iter().map(|numbers| number(numbers, key)).sum::<u64>();
        let most = |of: &[Numbers], key| of.iter().map(|numbers| number(numbers, key)).max().unwrap_or(0);
        figure(format!(
            "eight clients on {node}: {} frames, {} other calls, {} times EBUSY; longest wait {} ms ({} on the real node), \
             longest other call {} ms ({})",
            sum(&served, "frames"),
            sum(&served, "asked"),
            sum(&served, "busy"),
            most(&served, "wait_ms"),
            most(&native, "wait_ms"),
            most(&served, "longest_ms"),
            most(&native, "longest_ms"),
        ));
        let worst = |of: &[Numbers]| -> Numbers {
            ["longest_ms", "wait_ms", "damaged"]
                .map(|key| (key.to_owned(), most(of, key)))
                .into()
        };
        in_time(&node.to_string(), &worst(&native), &worst(&served))?;
        ensure!(
            served.iter().all(|client| {
                number(client, "turns") == 1 && number(client, "frames") > 3 && number(client, "events") > 0
            }) && sum(&served, "busy") > 20,
            "{node}: {served:?}"
        );
    }
    before.as_ref().map_or(Ok(()), is_flat)
}

/// What the modes of `address_spaces` say for a process that has the file from another one over a socket.
fn passed() -> anyhow::Result<()> {
    daemon::shared()?;
    for (mode, frame_of) in [
        ("passed-dequeue", "opener: memory of 0: the frame"),
        ("passed-queue", "stranger: memory of 1: the frame"),
        ("passed-closed", "stranger: memory of 1: the frame"),
    ] {
        let play = |node: Node| -> anyhow::Result<Vec<String>> {
            let said = run("address_spaces", &[mode, &node.to_string()], 2 * AT_ONCE)?;
            Ok(said.lines().map(str::to_owned).collect())
        };
        let native = play(real(VMALLOC))?;
        ensure!(native.iter().any(|line| line == frame_of), "{mode}: {native:?}");
        for node in [ours(VMALLOC), ours(CONTIG)] {
            equal(&native, &play(node)?).with_context(|| format!("{mode} on {node}"))?;
        }
    }
    Ok(())
}

fn queue_while_asleep() -> anyhow::Result<()> {
    daemon::shared()?;
    let play = |node: Node| -> anyhow::Result<Vec<String>> {
        let video = Arc::new(node.open()?);
        let size = video.sizeimage()?;
        let room = size as usize + 4096;
        let pages = Pages::new(4 * room)?;
        video.reqbufs(4)?;
        video.streamon()?;
        let dequeuing = Arc::clone(&video);
        let dequeuer: JoinHandle<Result<Vec<u32>, Errno>> = thread::spawn(move || {
            (0..60)
                .map(|_| {
                    let buffer = dequeuing.dqbuf()?;
                    assert_eq!(buffer.flags & buf_flag::ERROR, 0);
                    Ok(buffer.index)
                })
                .collect()
        });
        thread::sleep(Duration::from_millis(200));
        let mut lines = vec![format!("asleep: {}", !dequeuer.is_finished())];
        let mut refused = 0;
        // Four threads, each with a buffer that it queues again as soon as it is let.
        let pages = Arc::new(pages);
        let queuers: Vec<JoinHandle<Result<(u32, u32), Errno>>> = (0..4)
            .map(|index: u32| {
                let (video, pages) = (Arc::clone(&video), Arc::clone(&pages));
                thread::spawn(move || {
                    let (mut queued, mut refused) = (0, 0);
                    while queued < 15 {
                        // Until it has been dequeued: EINVAL.
                        match video.qbuf(index, pages.at(index as usize * room), size) {
                            Ok(_) => queued += 1,
                            Err(Errno::EINVAL) => {
                                refused += 1;
                                thread::sleep(Duration::from_millis(1));
                            }
                            Err(errno) => return Err(errno),
                        }
                    }
                    Ok((queued, refused))
                })
            })
            .collect();
        for queuer in queuers {
            let (queued, no) = queuer.join().ok().context("a thread panicked")??;
            ensure!(queued == 15, "{queued}");
            refused += no;
        }
        let mut indices = dequeuer.join().ok().context("the thread panicked")??;
        indices.sort_unstable();
        lines.push(format!("dequeued: {indices:?}"));
        ensure!(refused > 0, "nobody was ever too early");
        video.streamoff()?;
        Ok(lines)
    };
    let lines = same(VMALLOC, play)?;
    ensure!(lines[0] == "asleep: true", "{lines:?}");
    equal(&lines, &play(ours(CONTIG))?).context("ours, of a device without USERPTR")
}

/// Waits for the end of a thread.
fn joined(thread: JoinHandle<String>) -> anyhow::Result<String> {
    let end = Instant::now() + AT_ONCE;
    while !thread.is_finished() {
        ensure!(Instant::now() < end, "a thread does not wake up");
        thread::sleep(Duration::from_millis(5));
    }
    thread.join().ok().context("the thread panicked")
}

/// Brightness, contrast, saturation.
const PICTURE_CONTROLS: [u32; 3] = [0x0098_0900, 0x0098_0901, 0x0098_0902];
/// `VIDIOC_S_CTRL`
const S_CTRL: u64 = 0xc008_561c;

fn waiters() -> anyhow::Result<()> {
    daemon::shared()?;
    let play = |node: Node| -> anyhow::Result<Vec<String>> {
        let video = Arc::new(node.open()?);
        let size = video.sizeimage()?;
        let room = size as usize + 4096;
        let pages = Pages::new(4 * room)?;
        for id in PICTURE_CONTROLS {
            sys::ioctl(
                &video,
                SUBSCRIBE_EVENT,
                &mut [CONTROL_CHANGED, id, 0, 0, 0, 0, 0, 0],
            )?;
        }
        let mut lines = vec![];
        video.reqbufs(4)?;
        video.streamon()?;
        let start = |wait: fn(&Video) -> String| {
            let video = Arc::clone(&video);
            thread::spawn(move || wait(&video))
        };
        let event = |video: &Video| {
            let mut event = [0_u32; 34];
            word(sys::ioctl(video, DQEVENT, &mut event).map(|_| event[0]))
        };
        // Before the first QBUF a poll does not sleep: POLLERR.
        video.qbuf(0, pages.at(0), size)?;
        video.dqbuf()?;
        for round in 0..6_u32 {
            let threads = [
                ("DQBUF", start(|video| word(video.dqbuf().map(drop)))),
                ("DQEVENT", start(event)),
                ("another DQEVENT", start(event)),
                (
                    "poll for a frame",
                    start(|video| format!("{:?}", video.poll(PollFlags::POLLIN, 6000))),
                ),
                (
                    "poll for an event",
                    start(|video| format!("{:?}", video.poll(PollFlags::POLLPRI, 6000))),
                ),
            ];
            thread::sleep(Duration::from_millis(150));
            let asleep = threads.iter().filter(|(_, thread)| !thread.is_finished()).count();
            // A second one in DQBUF is sent away at once.
            let second = word(video.dqbuf().map(drop));
            lines.push(format!("{asleep} asleep, another DQBUF {second}"));
            let mut threads = BTreeMap::from(threads);
            let mut wake = |lines: &mut Vec<String>, names: &[&'static str]| -> anyhow::Result<()> {
                for name in names {
                    let thread = threads.remove(name).context("joined already")?;
                    lines.push(format!("{name}: {}", joined(thread)?));
                }
                let asleep = threads.values().filter(|thread| !thread.is_finished()).count();
                lines.push(format!("still asleep: {asleep}"));
                Ok(())
            };
            // More than each of them takes away, so that none misses what another has taken.
            let frames = |lines: &mut Vec<String>| -> anyhow::Result<()> {
                for index in 0..3 {
                    video.qbuf(index, pages.at(index as usize * room), size)?;
                }
                lines.push("frames".to_owned());
                Ok(())
            };
            let events = |lines: &mut Vec<String>| -> anyhow::Result<()> {
                for id in PICTURE_CONTROLS {
                    // struct v4l2_control; another value each time, by another file.
                    sys::ioctl(real(node.number).open()?, S_CTRL, &mut [id, 50 + round])?;
                }
                lines.push("events".to_owned());
                Ok(())
            };
            let (of_frames, of_events) = (
                ["DQBUF", "poll for a frame"],
                ["DQEVENT", "another DQEVENT", "poll for an event"],
            );
            if round % 2 == 0 {
                frames(&mut lines)?;
                wake(&mut lines, &of_frames)?;
                events(&mut lines)?;
                wake(&mut lines, &of_events)?;
            } else {
                events(&mut lines)?;
                wake(&mut lines, &of_events)?;
                frames(&mut lines)?;
                wake(&mut lines, &of_frames)?;
            }
            for _ in 0..2 {
                video.dqbuf()?;
            }
            lines.push(format!("the third event: {}", event(&video)));
        }
        video.streamoff()?;
        Ok(lines)
    };
    let outcome = same(VMALLOC, play);
    for control in ["brightness=128", "contrast=128", "saturation=128"] {
        set(VMALLOC, control)?;
    }
    let lines = outcome?;
    ensure!(lines[0] == "5 asleep, another DQBUF EBUSY", "{lines:?}");
    Ok(())
}
