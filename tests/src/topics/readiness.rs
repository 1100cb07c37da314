//! O_NONBLOCK, poll, select and epoll in every state of a queue.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::select::{FdSet, select};
use nix::sys::time::TimeVal;

use crate::client::AT_ONCE;
use crate::daemon;
use crate::report::same;
use crate::setup::{Test, VMALLOC};
use crate::sys::Pages;
use crate::video::{Node, Video, buffer, command};

pub const TESTS: &[(&str, Test)] = &[
    (
        "readiness::o_nonblock_by_fcntl_decides_each_dqbuf_anew",
        nonblock_by_fcntl,
    ),
    (
        "readiness::o_nonblock_at_open_makes_dqbuf_eagain",
        nonblock_at_open,
    ),
    ("readiness::poll_gives_the_same_bits_in_every_state", || {
        in_every_state(poll)
    }),
    ("readiness::select_gives_the_same_sets_in_every_state", || {
        in_every_state(select_once)
    }),
    (
        "readiness::epoll_level_gives_the_same_bits_in_every_state",
        || in_every_state(epoll_once),
    ),
    ("readiness::epoll_edge_tells_of_each_frame_once", epoll_edge),
    (
        "readiness::poll_for_input_before_reqbufs_starts_reading",
        poll_starts_reading,
    ),
    (
        "readiness::waiting_for_events_before_reqbufs_does_not_start_reading",
        events_do_not_start_reading,
    ),
    (
        "readiness::garbage_in_the_flags_of_a_dqbuf_that_waits_does_no_harm",
        garbage_flags,
    ),
    (
        "readiness::a_poll_that_waits_wakes_on_frame_and_on_streamoff",
        wakes,
    ),
];

pub(super) const QUIET: u16 = 150;
pub(super) const READY: u16 = 3000;

fn set_flags(video: &Video, flags: OFlag) -> anyhow::Result<()> {
    fcntl(video, FcntlArg::F_SETFL(OFlag::O_RDWR | flags))?;
    Ok(())
}

/// A DQBUF that sleeps until STREAMOFF, or fails before: what it says.
fn dqbuf_until_streamoff(video: &Arc<Video>) -> anyhow::Result<String> {
    let sleeping = Arc::clone(video);
    let thread = thread::spawn(move || sleeping.dqbuf().map(|buffer| buffer.index));
    thread::sleep(Duration::from_millis(300));
    let slept = !thread.is_finished();
    video.streamoff()?;
    let end = std::time::Instant::now() + AT_ONCE;
    while !thread.is_finished() {
        ensure!(std::time::Instant::now() < end, "DQBUF does not wake up");
        thread::sleep(Duration::from_millis(5));
    }
    let outcome = thread
        .join()
        .map_err(|_| anyhow::anyhow!("the thread panicked"))?;
    Ok(format!("slept: {slept}, then {outcome:?}"))
}

fn nonblock_by_fcntl() -> anyhow::Result<()> {
    daemon::shared()?;
    let lines = same(VMALLOC, |node| {
        let video = Arc::new(node.open()?);
        let size = video.sizeimage()?;
        let memory = Pages::new(size as usize)?;
        video.reqbufs(2)?;
        video.streamon()?;
        let mut lines = Vec::new();
        for _ in 0..3 {
            set_flags(&video, OFlag::O_NONBLOCK)?;
            lines.push(format!(
                "non-blocking: {:?}",
                video.dqbuf().map(|buffer| buffer.index)
            ));
            set_flags(&video, OFlag::empty())?;
            video.qbuf(0, memory.at(0), size)?;
            lines.push(format!(
                "blocking, one queued: {:?}",
                video.dqbuf().map(|buffer| buffer.index)
            ));
            lines.push(format!(
                "blocking, none queued: {}",
                dqbuf_until_streamoff(&video)?
            ));
            video.streamon()?;
        }
        Ok(lines)
    })?;
    ensure!(
        lines[0].contains("EAGAIN") && lines[2].contains("slept: true"),
        "{lines:?}"
    );
    Ok(())
}

fn nonblock_at_open() -> anyhow::Result<()> {
    daemon::shared()?;
    same(VMALLOC, |node| {
        let video = Arc::new(node.open_with(libc::O_NONBLOCK)?);
        video.reqbufs(2)?;
        video.streamon()?;
        let mut lines = vec![format!("{:?}", video.dqbuf().map(|buffer| buffer.index))];
        set_flags(&video, OFlag::empty())?;
        lines.push(dqbuf_until_streamoff(&video)?);
        Ok(lines)
    })?;
    Ok(())
}

/// Asks once what is ready, waiting up to so many milliseconds.
pub(super) type Ask = fn(&Video, PollFlags, u16) -> anyhow::Result<String>;

pub(super) fn poll(video: &Video, events: PollFlags, timeout: u16) -> anyhow::Result<String> {
    Ok(format!("{:?}", video.poll(events, timeout)?))
}

pub(super) fn select_once(video: &Video, events: PollFlags, timeout: u16) -> anyhow::Result<String> {
    let set = |wanted| {
        let mut set = FdSet::new();
        if events.intersects(wanted) {
            set.insert(video.as_fd());
        }
        set
    };
    let (mut read, mut write, mut except) = (
        set(PollFlags::POLLIN),
        set(PollFlags::POLLOUT),
        set(PollFlags::POLLPRI),
    );
    let mut limit = TimeVal::new(i64::from(timeout) / 1000, i64::from(timeout) % 1000 * 1000);
    let count = select(
        video.as_fd().as_raw_fd() + 1,
        &mut read,
        &mut write,
        &mut except,
        &mut limit,
    )?;
    let has = |set: &FdSet| set.contains(video.as_fd());
    Ok(format!(
        "{count}: read {}, write {}, except {}",
        has(&read),
        has(&write),
        has(&except)
    ))
}

pub(super) fn epoll_once(video: &Video, events: PollFlags, timeout: u16) -> anyhow::Result<String> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    // The bits are the same ones.
    let flags = EpollFlags::from_bits_truncate(i32::from(events.bits()));
    epoll.add(video, EpollEvent::new(flags, 1))?;
    let mut seen = [EpollEvent::empty()];
    let count = epoll.wait(&mut seen, EpollTimeout::from(timeout))?;
    Ok(format!("{count}: {:?}", seen[0].events()))
}

fn in_every_state(ask: Ask) -> anyhow::Result<()> {
    daemon::shared()?;
    let lines = same(VMALLOC, |node| states(node, ask))?;
    ensure!(lines.iter().any(|line| line.contains("ready")), "{lines:?}");
    Ok(())
}

fn states(node: Node, ask: Ask) -> anyhow::Result<Vec<String>> {
    let video = node.open()?;
    let size = video.sizeimage()?;
    let memory = Pages::new(2 * size as usize)?;
    let input = PollFlags::POLLIN;
    let every = [
        input,
        PollFlags::POLLOUT,
        PollFlags::POLLPRI,
        input | PollFlags::POLLPRI,
    ];
    let mut lines = Vec::new();
    let mut say = |video: &Video, state: &str, events: PollFlags, timeout| -> anyhow::Result<()> {
        lines.push(format!("{state}, {events:?}: {}", ask(video, events, timeout)?));
        Ok(())
    };
    // Not POLLIN: that would start read().
    say(&video, "fresh", PollFlags::POLLPRI, 0)?;
    say(&video, "fresh", PollFlags::POLLOUT, 0)?;
    video.reqbufs(2)?;
    for events in every {
        say(&video, "after REQBUFS", events, QUIET)?;
    }
    video.qbuf(0, memory.at(0), size)?;
    for events in every {
        say(&video, "queued, not streaming", events, QUIET)?;
    }
    video.streamon()?;
    say(&video, "streaming, will be ready", input, READY)?;
    for events in every {
        say(&video, "streaming and ready", events, QUIET)?;
    }
    video.dqbuf()?;
    for events in every {
        say(&video, "all dequeued", events, QUIET)?;
    }
    video.qbuf(1, memory.at(size as usize), size)?;
    say(&video, "queued again, will be ready", input, READY)?;
    video.streamoff()?;
    for events in every {
        say(&video, "after STREAMOFF", events, QUIET)?;
    }
    video.streamon()?;
    say(&video, "streaming, nothing queued since", input, QUIET)?;
    video.streamoff()?;
    video.reqbufs(0)?;
    say(&video, "buffers freed", PollFlags::POLLPRI, 0)?;
    Ok(lines)
}

fn epoll_edge() -> anyhow::Result<()> {
    daemon::shared()?;
    same(VMALLOC, |node| {
        let video = node.open()?;
        let size = video.sizeimage()?;
        let memory = Pages::new(size as usize)?;
        let epoll = Epoll::new(EpollCreateFlags::empty())?;
        video.reqbufs(2)?;
        video.qbuf(0, memory.at(0), size)?;
        video.streamon()?;
        epoll.add(
            &video,
            EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 1),
        )?;
        let mut lines = Vec::new();
        let mut wait = |what: &str, timeout: u16| -> anyhow::Result<()> {
            let mut seen = [EpollEvent::empty()];
            let count = epoll.wait(&mut seen, EpollTimeout::from(timeout))?;
            lines.push(format!("{what}: {count} {:?}", seen[0].events()));
            Ok(())
        };
        for _ in 0..5 {
            wait("a frame comes", READY)?;
            wait("told already", QUIET)?;
            video.dqbuf()?;
            wait("dequeued", QUIET)?;
            video.qbuf(0, memory.at(0), size)?;
        }
        Ok(lines)
    })?;
    Ok(())
}

fn poll_starts_reading() -> anyhow::Result<()> {
    daemon::shared()?;
    same(VMALLOC, |node| {
        let video = node.open()?;
        let ready = video.poll(PollFlags::POLLIN, READY)?;
        let reqbufs = video.reqbufs(2);
        let second = node.open()?.reqbufs(2);
        Ok(vec![format!(
            "{ready:?}, then REQBUFS {reqbufs:?}, of another file {second:?}"
        )])
    })?;
    Ok(())
}

/// Without any subscription no event comes; that somebody waits for one must not touch the queue.
fn events_do_not_start_reading() -> anyhow::Result<()> {
    daemon::shared()?;
    same(VMALLOC, |node| {
        let mut lines = Vec::new();
        for ask in [poll, select_once, epoll_once] {
            let video = node.open()?;
            let bits = ask(&video, PollFlags::POLLPRI, QUIET)?;
            lines.push(format!("{bits}, then REQBUFS {:?}", video.reqbufs(2)));
        }
        Ok(lines)
    })?;
    Ok(())
}

/// vb2 believes the flags that a *failing* DQBUF came with: DONE and LAST, and an EAGAIN, and from then on it says EPIPE
/// to every DQBUF until STREAMOFF, of later openers too (videobuf2-v4l2.c, vb2_dqbuf). A blocking one does not fail.
fn garbage_flags() -> anyhow::Result<()> {
    daemon::shared()?;
    same(VMALLOC, |node| {
        let video = Arc::new(node.open()?);
        let size = video.sizeimage()?;
        let memory = Pages::new(size as usize)?;
        video.reqbufs(2)?;
        video.streamon()?;
        let mut lines = Vec::new();
        for _ in 0..2 {
            let sleeping = Arc::clone(&video);
            let sleeper = thread::spawn(move || {
                let mut asked = buffer(0, 0, 0);
                asked.flags = u32::MAX;
                sleeping.on_buffer(command::DQBUF, asked).map(|told| told.flags)
            });
            thread::sleep(Duration::from_millis(200));
            lines.push(format!("slept: {}", !sleeper.is_finished()));
            video.qbuf(0, memory.at(0), size)?;
            lines.push(format!(
                "{:?}",
                sleeper.join().ok().context("the thread panicked")?
            ));
        }
        // Whatever came of it, the next one to open the device is to find it in order.
        video.streamoff()?;
        Ok(lines)
    })?;
    Ok(())
}

fn wakes() -> anyhow::Result<()> {
    daemon::shared()?;
    same(VMALLOC, |node| {
        let video = Arc::new(node.open()?);
        let size = video.sizeimage()?;
        let memory = Pages::new(size as usize)?;
        video.reqbufs(2)?;
        video.qbuf(0, memory.at(0), size)?;
        video.streamon()?;
        video.dqbuf()?;
        let mut lines = Vec::new();
        for wake in ["QBUF", "STREAMOFF"] {
            let polling = Arc::clone(&video);
            let thread = thread::spawn(move || polling.poll(PollFlags::POLLIN, READY));
            thread::sleep(Duration::from_millis(200));
            let slept = !thread.is_finished();
            match wake {
                "QBUF" => video.qbuf(0, memory.at(0), size).map(drop)?,
                _ => video.streamoff()?,
            }
            let outcome = thread.join().ok().context("the thread panicked")?;
            lines.push(format!("{wake}: slept {slept}, then {outcome:?}"));
            if wake == "QBUF" {
                video.dqbuf()?;
            }
        }
        Ok(lines)
    })?;
    Ok(())
}
