//! read(2): which bytes come, how many at a time, and what happens instead.

use std::io::{Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;

use crate::client::{AT_ONCE, Client, run};
use crate::daemon;
use crate::picture::{Control, Picture};
use crate::report::{equal, same};
use crate::setup::{self, Test, VMALLOC};
use crate::sys::{self, PAGE, Pages};
use crate::video::{Node, Video, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    ("read::pieces_of_any_size_end_where_the_frame_ends", any_size),
    (
        "read::a_frame_that_ends_where_a_request_ends_is_not_joined_to_the_next",
        at_a_request_boundary,
    ),
    ("read::frames_of_a_moving_picture_are_never_mixed", moving),
    (
        "read::o_nonblock_makes_it_eagain_until_a_frame_is_there",
        nonblocking,
    ),
    ("read::bad_memory_is_efault_and_loses_no_frame", bad_memory),
    (
        "read::streaming_calls_are_ebusy_until_the_file_is_closed",
        excludes_streaming,
    ),
    (
        "read::signals_end_it_with_eintr_where_the_driver_would_restart_it",
        signals,
    ),
    ("read::what_cuse_never_tells_us_of_is_known", unseen),
];

/// What FUSE asks for in one request.
const REQUEST: usize = 131_072;

/// Reads pieces, each into memory `inside` bytes into a page: how long each was, and whether it is that part of the
/// picture.
fn pieces(node: Node, picture: &Picture, sizes: &[usize], inside: usize) -> anyhow::Result<Vec<String>> {
    let video = node.open()?;
    let longest = sizes.iter().max().context("no sizes")?;
    let memory = Pages::new(longest + inside + PAGE)?;
    let mut at = 0;
    sizes
        .iter()
        .map(|size| {
            memory.write(0, &vec![0x5a; memory.len()])?;
            let got = sys::read(&video, &memory, inside, *size)?;
            let expected = picture.bytes().get(at..at + got).context("beyond the frame")?;
            let same = memory.read(inside, got)? == expected;
            let around = memory.read(0, inside)?.iter().all(|byte| *byte == 0x5a)
                && memory
                    .read(inside + got, memory.len() - inside - got)?
                    .iter()
                    .all(|byte| *byte == 0x5a);
            at = (at + got) % picture.bytes().len();
            Ok(format!(
                "{size} asked for at {inside}: {got}, as in the picture: {same}, nothing beside it: {around}"
            ))
        })
        .collect()
}

fn all_pieces(picture: &Picture, sizes: &[usize]) -> anyhow::Result<()> {
    for inside in [0, 1, 100, 4095] {
        let lines = same(VMALLOC, |node| pieces(node, picture, sizes, inside))?;
        let right = |line: &&String| line.ends_with("picture: true, nothing beside it: true");
        ensure!(lines.iter().all(|line| right(&line)), "{lines:#?}");
    }
    Ok(())
}

fn any_size() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let frame = picture.bytes().len();
    all_pieces(&picture, &[frame, frame, frame + 1, 2 * frame, 1 << 20, frame])?;
    all_pieces(&picture, &[1, 1, frame, frame - 1, 1, 1, frame - 1])?;
    all_pieces(
        &picture,
        &[
            17,
            4095,
            4096,
            4097,
            8192,
            65_535,
            65_536,
            frame,
            frame / 2,
            frame,
        ],
    )?;
    all_pieces(&picture, &[REQUEST - 1, REQUEST, REQUEST + 1, 100, REQUEST])
}

/// The fifteen requests of such a frame are all full: what tells the end of the frame is an empty sixteenth.
fn at_a_request_boundary() -> anyhow::Result<()> {
    daemon::shared()?;
    let path = real(VMALLOC).to_string();
    let format = "width=640,height=480,pixelformat=YUYV,bytesperline=4096";
    run("v4l2-ctl", &["-d", &path, "-v", format], AT_ONCE)?;
    let check = || -> anyhow::Result<()> {
        let picture = Picture::take()?;
        let frame = picture.bytes().len();
        ensure!(frame == 15 * REQUEST, "frames of {frame} bytes");
        all_pieces(&picture, &[frame, frame, frame + 1, frame + REQUEST, 2 * frame])?;
        all_pieces(&picture, &[REQUEST; 17])?;
        all_pieces(&picture, &[frame - REQUEST, 2 * REQUEST, 5 * REQUEST, frame])
    };
    let outcome = check();
    setup::devices()?;
    outcome
}

fn moving() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let frame = picture.bytes().len();
    // "Move Right Fast"
    let moving = Control::set(VMALLOC, "horizontal_movement", 6, 3)?;
    for size in [frame, 2 * frame, 10_000, 4096] {
        let video = ours(VMALLOC).open()?;
        let memory = Pages::new(size)?;
        let mut turns = Vec::new();
        for number in 0..12 {
            let mut bytes = Vec::new();
            while bytes.len() < frame {
                let got = sys::read(&video, &memory, 0, size)?;
                ensure!(got > 0, "a read of nothing");
                bytes.extend(memory.read(0, got)?);
            }
            let turn = picture.turn(&bytes);
            turns.push(turn.with_context(|| format!("frame {number} in pieces of {size}"))?);
        }
        ensure!(
            turns.windows(2).all(|two| two[0] != two[1]),
            "in pieces of {size} frames came twice: {turns:?}"
        );
    }
    drop(moving);
    Ok(())
}

fn whole(picture: &Picture, video: &Video) -> anyhow::Result<String> {
    let memory = Pages::new(picture.bytes().len())?;
    Ok(match sys::read(video, &memory, 0, memory.len()) {
        Ok(got) if memory.read(0, got)? == picture.bytes() => "the picture".to_owned(),
        Ok(got) => format!("{got} bytes"),
        Err(errno) => format!("{errno:?}"),
    })
}

fn nonblocking() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let path = real(VMALLOC).to_string();
    // So slowly that nothing comes by chance.
    run("v4l2-ctl", &["-d", &path, "-p", "2"], AT_ONCE)?;
    let lines = same(VMALLOC, |node| {
        let video = node.open_with(libc::O_NONBLOCK)?;
        // The very first frame is made at once: which of the two comes first is chance.
        let first = whole(&picture, &video)?;
        ensure!(
            ["EAGAIN", "the picture"].contains(&first.as_str()),
            "the first read: {first}"
        );
        let mut lines = Vec::new();
        for _ in 0..3 {
            lines.extend(within_one_frame(|| {
                empty(&picture, &video)?;
                let woken = video.poll(PollFlags::POLLIN, 3000)?;
                // From here on the next frame is half a second away.
                let begin = Instant::now();
                let memory = Pages::new(100)?;
                let piece = sys::read(&video, &memory, 0, 100);
                let rest = video.poll(PollFlags::POLLIN, 0)?;
                let lines = vec![
                    format!("{woken:?}, a piece: {piece:?}, the rest is {rest:?}"),
                    whole(&picture, &video)?,
                    whole(&picture, &video)?,
                ];
                Ok((lines, begin.elapsed()))
            })?);
        }
        Ok(lines)
    });
    // The rate is everybody's.
    setup::devices()?;
    let lines = lines?;
    ensure!(
        lines[0].contains("POLLIN") && lines[1].contains("bytes") && lines[2] == "EAGAIN",
        "{lines:?}"
    );
    Ok(())
}

/// Reads until there is nothing.
fn empty(picture: &Picture, video: &Video) -> anyhow::Result<()> {
    for _ in 0..20 {
        if whole(picture, video)? == "EAGAIN" {
            return Ok(());
        }
    }
    bail!("never empty")
}

/// What `look` saw, if that took it less time than there is between two frames; else it looks again.
fn within_one_frame(
    mut look: impl FnMut() -> anyhow::Result<(Vec<String>, Duration)>,
) -> anyhow::Result<Vec<String>> {
    for _ in 0..10 {
        let (lines, took) = look()?;
        if took < Duration::from_millis(300) {
            return Ok(lines);
        }
    }
    bail!("the machine is too slow to look between two frames")
}

fn bad_memory() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    same(VMALLOC, |node| {
        let video = node.open()?;
        let memory = Pages::new(1 << 20)?;
        memory.unmap(512 * 1024, 512 * 1024);
        let mut lines = vec![format!(
            "unmapped: {:?}",
            sys::read(&video, &memory, 768 * 1024, 1000)
        )];
        lines.push(whole(&picture, &video)?);
        memory.protect(0, 64 * 1024, sys::Access::ReadOnly)?;
        lines.push(format!("read-only: {:?}", sys::read(&video, &memory, 100, 1000)));
        lines.push(whole(&picture, &video)?);
        Ok(lines)
    })?;
    Ok(())
}

fn excludes_streaming() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let lines = same(VMALLOC, |node| {
        let video = node.open()?;
        let mut lines = vec![whole(&picture, &video)?];
        lines.push(format!("REQBUFS: {:?}", video.reqbufs(2)));
        lines.push(format!("QBUF: {:?}", video.qbuf(0, 0, 0)));
        lines.push(format!("DQBUF: {:?}", video.dqbuf()));
        lines.push(format!("STREAMON: {:?}", video.streamon()));
        lines.push(format!("STREAMOFF: {:?}", video.streamoff()));
        let second = node.open()?;
        lines.push(format!("another file: {:?}", second.reqbufs(2)));
        lines.push(format!("another file: {}", whole(&picture, &second)?));
        drop(video);
        lines.push(format!("another file, then: {:?}", second.reqbufs(2)));
        lines.push(format!("with buffers: {}", whole(&picture, &second)?));
        lines.push(format!("without: {:?}", second.reqbufs(0)));
        lines.push(whole(&picture, &second)?);
        Ok(lines)
    })?;
    ensure!(lines[1].contains("EBUSY") && lines.last().is_some_and(|line| line == "the picture"));
    Ok(())
}

/// A reader that sleeps gets `signals`: what it says then.
fn interrupted(node: Node, option: &str, signals: &[Signal]) -> anyhow::Result<String> {
    let path = node.to_string();
    let arguments: Vec<&str> = [option, &path]
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect();
    let mut client = Client::start("reader", &arguments)?;
    ensure!(client.line()? == "waiting", "reader on {node} failed");
    client.until_asleep_in_read()?;
    for signal in signals {
        client.signal(*signal)?;
        if *signal == Signal::SIGSTOP {
            client.until_stopped()?;
        }
    }
    let status = client.end(AT_ONCE)?;
    Ok(format!("{}{status}", client.rest()))
}

/// FUSE has no way to restart a read(2): -ERESTARTSYS is out of the range that a reply's header takes. The client
/// gets EINTR, which every caller of read(2) must expect of a program that has handlers without `SA_RESTART`.
fn signals() -> anyhow::Result<()> {
    daemon::shared()?;
    let path = real(VMALLOC).to_string();
    run("v4l2-ctl", &["-d", &path, "-p", "1"], AT_ONCE)?;
    let stop_and_go = [Signal::SIGSTOP, Signal::SIGCONT];
    let check = || -> anyhow::Result<()> {
        for (option, signals) in [
            ("-e", &[Signal::SIGUSR1][..]),
            ("", &[Signal::SIGINT]),
            ("", &[Signal::SIGKILL]),
        ] {
            same(VMALLOC, |node| Ok(vec![interrupted(node, option, signals)?]))
                .with_context(|| format!("{option} {signals:?}"))?;
        }
        for (option, signals, handled) in [("-r", &[Signal::SIGUSR1][..], 1), ("", &stop_and_go, 0)] {
            let native = interrupted(real(VMALLOC), option, signals)?;
            let served = interrupted(ours(VMALLOC), option, signals)?;
            let told =
                |outcome: &str| format!("read: {outcome}, handler ran {handled} times\nexit status: 0");
            equal(&[told("a frame"), told("EINTR")], &[native, served])
                .with_context(|| format!("the known limit for {signals:?}"))?;
        }
        Ok(())
    };
    let outcome = check();
    setup::devices()?;
    outcome
}

/// Differences that CUSE makes whatever we answer.
fn unseen() -> anyhow::Result<()> {
    daemon::shared()?;
    let ask = |node: Node| -> anyhow::Result<Vec<String>> {
        let memory = Pages::new(PAGE)?;
        let video = node.open()?;
        let nothing = sys::read(&video, &memory, 0, 0);
        let after = video.reqbufs(2);
        let seek = (&video.0)
            .seek(SeekFrom::Start(10))
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)));
        Ok(vec![
            format!("read of 0 bytes: {nothing:?}, then REQBUFS {after:?}"),
            format!("lseek: {seek:?}"),
        ])
    };
    // A read of nothing is answered by the kernel before FUSE, and cuse_frontend_fops has noop_llseek.
    equal(
        &[
            "read of 0 bytes: Ok(0), then REQBUFS Err(EBUSY)".to_owned(),
            "lseek: Err(ESPIPE)".to_owned(),
        ],
        &ask(real(VMALLOC))?,
    )?;
    equal(
        &[
            "read of 0 bytes: Ok(0), then REQBUFS Ok(2)".to_owned(),
            "lseek: Ok(0)".to_owned(),
        ],
        &ask(ours(VMALLOC))?,
    )
}
