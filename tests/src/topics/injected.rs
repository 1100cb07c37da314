//! Failures that vivid makes on demand, and V4L2 events.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use vidcompat_proto::abi::v4l2::buf_flag;

use super::errnos::{Bench, word};
use crate::daemon;
use crate::picture::{Control, Picture, set};
use crate::report::{equal, same};
use crate::setup::{Test, VMALLOC, is_6_1};
use crate::sys;
use crate::video::{Node, Video, command, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    ("injected::a_driver_that_fails_reqbufs", reqbufs),
    ("injected::a_driver_that_fails_qbuf_or_prepare_buf", qbuf),
    (
        "injected::an_error_of_the_first_qbuf_is_met_by_our_reqbufs_already",
        qbuf_before_reqbufs,
    ),
    ("injected::a_driver_that_fails_streamon", streamon),
    ("injected::a_frame_with_the_error_flag", error_flag),
    ("injected::frames_that_the_driver_drops", dropped),
    ("injected::a_fatal_error_while_streaming", fatal),
    (
        "injected::events_come_before_reqbufs_and_do_not_disturb_it",
        events,
    ),
    (
        "injected::a_dqevent_that_sleeps_is_woken_by_an_event",
        sleeping_dqevent,
    ),
];

fn inject(what: &str) -> anyhow::Result<()> {
    set(VMALLOC, &format!("inject_{what}_error=1"))
}

/// Two buffers, queued, streaming, two frames dequeued: what each call says.
fn two_frames(b: &Bench) -> Vec<String> {
    let mut lines = vec![word(b.video.reqbufs(2))];
    for index in 0..2 {
        let room = b.pages.len() / 3;
        lines.push(b.show(b.video.qbuf(index, b.pages.at(index as usize * room), b.size)));
    }
    lines.push(word(b.video.streamon()));
    for _ in 0..2 {
        lines.push(b.show(b.video.dqbuf()));
    }
    lines
}

/// Both nodes give the same lines.
fn play(play: impl Fn(&Bench) -> anyhow::Result<Vec<String>>) -> anyhow::Result<Vec<String>> {
    daemon::shared()?;
    same(VMALLOC, |node| play(&Bench::new(node)?))
}

fn reqbufs() -> anyhow::Result<()> {
    let lines = play(|b| {
        inject("vidioc_reqbufs")?;
        let mut lines = vec![word(b.video.reqbufs(2))];
        lines.extend(two_frames(b));
        lines.push(word(b.video.streamoff()));
        inject("vidioc_reqbufs")?;
        // The old buffers are gone by then.
        lines.push(word(b.video.reqbufs(3)));
        lines.push(b.show(b.video.querybuf(0)));
        inject("vidioc_reqbufs")?;
        lines.push(b.create(2, |_| ()));
        lines.push(b.create(2, |_| ()));
        inject("vidioc_reqbufs")?;
        lines.push(b.create(1, |_| ()));
        lines.push(b.show(b.video.querybuf(1)));
        lines.extend(two_frames(b));
        Ok(lines)
    })?;
    ensure!(lines[0] == "EINVAL", "{lines:?}");
    Ok(())
}

fn qbuf() -> anyhow::Result<()> {
    let lines = play(|b| {
        let mut lines = vec![word(b.video.reqbufs(2))];
        for command in [command::QBUF, command::PREPARE_BUF] {
            inject("vidioc_qbuf")?;
            lines.push(b.show(b.video.on_buffer(command, b.good())));
            lines.push(b.show(b.video.querybuf(0)));
            lines.push(b.show(b.video.on_buffer(command, b.good())));
            lines.push(b.show(b.video.querybuf(0)));
            lines.push(word(b.video.streamoff()));
        }
        // While streaming, with another pointer than before.
        lines.extend(two_frames(b));
        inject("vidioc_qbuf")?;
        let other = b.pages.at(b.pages.len() / 3 * 2);
        lines.push(b.show(b.video.qbuf(0, other, b.size)));
        lines.push(b.show(b.video.qbuf(0, other, b.size)));
        lines.push(b.show(b.video.dqbuf()));
        Ok(lines)
    })?;
    ensure!(lines[1] == "EINVAL", "{lines:?}");
    Ok(())
}

/// Ours gives each imported buffer to the driver once when it is made, to learn whether the driver takes it. An error
/// that waits for the first QBUF is met there; to us it says that the driver does not import, and its own buffers
/// serve from then on. Where there is nothing to import nothing is tried.
fn qbuf_before_reqbufs() -> anyhow::Result<()> {
    daemon::shared()?;
    let first = |node: Node| -> anyhow::Result<Vec<String>> {
        let b = Bench::new(node)?;
        inject("vidioc_qbuf")?;
        let mut lines = vec![word(b.video.reqbufs(2))];
        lines.push(word(b.video.on_buffer(command::QBUF, b.good()).map(drop)));
        lines.extend(two_frames(&b));
        Ok(lines)
    };
    let mut expected = first(real(VMALLOC))?;
    ensure!(expected[1] == "EINVAL", "{expected:?}");
    if !is_6_1() {
        "ok".clone_into(&mut expected[1]);
    }
    equal(&expected, &first(ours(VMALLOC))?)
}

fn streamon() -> anyhow::Result<()> {
    let lines = play(|b| {
        let mut lines = vec![word(b.video.reqbufs(2))];
        lines.push(b.show(b.video.on_buffer(command::QBUF, b.good())));
        inject("vidioc_streamon")?;
        lines.push(word(b.video.streamon()));
        lines.push(b.show(b.video.querybuf(0)));
        lines.push(b.show(b.video.on_buffer(command::QBUF, b.good())));
        lines.push(word(b.video.dqbuf().map(drop)));
        lines.push(word(b.video.streamon()));
        lines.push(b.show(b.video.dqbuf()));
        lines.push(word(b.video.streamoff()));
        lines.extend(two_frames(b));
        Ok(lines)
    })?;
    ensure!(lines[2] == "EINVAL", "{lines:?}");
    Ok(())
}

fn error_flag() -> anyhow::Result<()> {
    let picture = Picture::take()?;
    let lines = play(|b| {
        let mut lines = two_frames(b);
        inject("v4l2_buf_flag")?;
        // vivid flags its next frame.
        for index in [0, 1] {
            b.pages.write(0, &vec![0; b.pages.len()])?;
            let room = b.pages.len() / 3 * index;
            b.video.qbuf(u32::try_from(index)?, b.pages.at(room), b.size)?;
            lines.push(b.show(b.video.dqbuf()));
            let whole = b.pages.read(room, b.size as usize)? == picture.bytes();
            lines.push(format!("bytes of the picture: {whole}"));
        }
        Ok(lines)
    })?;
    let flagged = format!("flags {:#x}", 0x2000 | buf_flag::ERROR);
    ensure!(lines.iter().any(|line| line.contains(&flagged)), "{lines:?}");
    Ok(())
}

fn dropped() -> anyhow::Result<()> {
    let lines = play(|b| {
        let mut lines = two_frames(b);
        b.video.on_buffer(command::QBUF, b.good())?;
        let all = Control::set(VMALLOC, "percentage_of_dropped_buffers", 100, 0)?;
        // What came until then.
        b.video.dqbuf()?;
        b.video.on_buffer(command::QBUF, b.good())?;
        lines.push(format!(
            "all dropped: {:?}",
            b.video.poll(PollFlags::POLLIN, 300)?
        ));
        drop(all);
        let _half = Control::set(VMALLOC, "percentage_of_dropped_buffers", 50, 0)?;
        let mut sequences = vec![];
        for _ in 0..20 {
            let buffer = b.video.dqbuf()?;
            sequences.push(buffer.sequence);
            b.video.qbuf(buffer.index, buffer.m, buffer.length)?;
        }
        let gaps = sequences.windows(2).filter(|two| two[1] > two[0] + 1).count();
        lines.push(format!("half dropped, gaps: {}", gaps > 0));
        Ok(lines)
    })?;
    ensure!(
        lines.contains(&"half dropped, gaps: true".to_owned()),
        "{lines:?}"
    );
    Ok(())
}

fn fatal() -> anyhow::Result<()> {
    let lines = play(|b| {
        let mut lines = two_frames(b);
        b.video.streamoff()?;
        let all = Control::set(VMALLOC, "percentage_of_dropped_buffers", 100, 0)?;
        b.video.on_buffer(command::QBUF, b.good())?;
        b.video.streamon()?;
        let (polling, sleeping) = (b.video.0.try_clone()?, b.video.0.try_clone()?);
        let poller = thread::spawn(move || Video(polling).poll(PollFlags::POLLIN, 5000));
        let sleeper = thread::spawn(move || Video(sleeping).dqbuf().map(drop));
        thread::sleep(Duration::from_millis(300));
        lines.push(format!(
            "asleep: {} {}",
            !poller.is_finished(),
            !sleeper.is_finished()
        ));
        inject("fatal_streaming")?;
        let polled = poller.join().ok().context("the thread panicked")?;
        lines.push(format!("poll: {polled:?}"));
        let slept = sleeper.join().ok().context("the thread panicked")?;
        lines.push(format!("DQBUF that slept: {}", word(slept)));
        lines.push(format!("DQBUF: {}", word(b.video.dqbuf().map(drop))));
        lines.push(format!(
            "QBUF: {}",
            b.show(b.video.qbuf(1, b.pages.at(0), b.size))
        ));
        lines.push(format!("poll: {:?}", b.video.poll(PollFlags::POLLIN, 0)?));
        lines.push(format!("STREAMON: {}", word(b.video.streamon())));
        lines.push(format!("STREAMOFF: {}", word(b.video.streamoff())));
        drop(all);
        lines.extend(two_frames(b));
        Ok(lines)
    })?;
    ensure!(lines.contains(&"DQBUF that slept: EIO".to_owned()), "{lines:?}");
    Ok(())
}

pub(super) const DQEVENT: u64 = 0x8088_5659;
pub(super) const SUBSCRIBE_EVENT: u64 = 0x4020_565a;
const UNSUBSCRIBE_EVENT: u64 = 0x4020_565b;
/// `V4L2_EVENT_CTRL`
pub(super) const CONTROL_CHANGED: u32 = 3;
/// `V4L2_CID_BRIGHTNESS`
const BRIGHTNESS: u32 = 0x0098_0900;

/// `struct v4l2_event_subscription`: type, brightness as id, flags (1: an event at once).
pub(super) fn subscription(video: &Video, command: u64, kind: u32, flags: u32) -> Result<i32, Errno> {
    sys::ioctl(video, command, &mut [kind, BRIGHTNESS, flags, 0, 0, 0, 0, 0])
}

/// All of `struct v4l2_event` but the time.
fn next_event(video: &Video) -> String {
    let mut event = [0u32; 34];
    let outcome = sys::ioctl(video, DQEVENT, &mut event);
    event[20..24].fill(0);
    word(outcome.map(|_| event))
}

fn nonblocking(video: &Video, flag: OFlag) -> anyhow::Result<()> {
    fcntl(video, FcntlArg::F_SETFL(OFlag::O_RDWR | flag))?;
    Ok(())
}

fn events() -> anyhow::Result<()> {
    let lines = play(|b| {
        let video = &b.video;
        nonblocking(video, OFlag::O_NONBLOCK)?;
        let mut lines = vec![next_event(video)];
        lines.push(word(subscription(video, SUBSCRIBE_EVENT, 99, 0)));
        lines.push(word(subscription(video, SUBSCRIBE_EVENT, CONTROL_CHANGED, 1)));
        lines.push(format!("{:?}", video.poll(PollFlags::POLLPRI, 100)?));
        lines.push(next_event(video));
        lines.push(next_event(video));
        let brightness = Control::set(VMALLOC, "brightness", 77, 128)?;
        lines.push(format!("{:?}", video.poll(PollFlags::POLLPRI, 1000)?));
        lines.push(format!("{:?}", video.poll(PollFlags::POLLPRI, 0)?));
        lines.push(next_event(video));
        lines.push(format!("{:?}", video.poll(PollFlags::POLLPRI, 0)?));
        // Nobody has started to read by that.
        lines.push(word(video.reqbufs(2)));
        drop(brightness);
        nonblocking(video, OFlag::empty())?;
        lines.push(next_event(video));
        lines.push(word(subscription(video, UNSUBSCRIBE_EVENT, CONTROL_CHANGED, 0)));
        let _brightness = Control::set(VMALLOC, "brightness", 78, 128)?;
        lines.push(format!("{:?}", video.poll(PollFlags::POLLPRI, 100)?));
        nonblocking(video, OFlag::O_NONBLOCK)?;
        lines.push(next_event(video));
        Ok(lines)
    })?;
    ensure!(
        lines[0] == "ENOENT" && lines[4].starts_with("ok([3, "),
        "{lines:?}"
    );
    Ok(())
}

fn sleeping_dqevent() -> anyhow::Result<()> {
    let lines = play(|b| {
        let video = Arc::new(Video(b.video.0.try_clone()?));
        subscription(&video, SUBSCRIBE_EVENT, CONTROL_CHANGED, 0)?;
        let mut lines = vec![];
        for round in 0..3 {
            let sleeping = Arc::clone(&video);
            let sleeper = thread::spawn(move || next_event(&sleeping));
            thread::sleep(Duration::from_millis(200));
            lines.push(format!("asleep: {}", !sleeper.is_finished()));
            // Other calls go on meanwhile; in the second round frames come too.
            if round == 1 {
                lines.extend(two_frames(b));
            }
            lines.push(format!("asleep: {}", !sleeper.is_finished()));
            let _brightness = Control::set(VMALLOC, "brightness", 77, 128)?;
            lines.push(sleeper.join().ok().context("the thread panicked")?);
            drop(_brightness);
            lines.push(next_event(&video));
        }
        Ok(lines)
    })?;
    ensure!(lines.iter().all(|line| line != "asleep: false"), "{lines:?}");
    Ok(())
}
