//! The suite as a program of its own: a client with another user's rights, or one that is killed.
//!
//! `guest-suite --helper adopt NODE KIND AT FRAME` streams into a kind of memory and says what becomes of it (with the client
//! shim, that is), `guest-suite --helper until-error NODE mmap|userptr` streams until the daemon has gone,
//! `guest-suite --helper capture-stdin NODE shared|private` takes a frame into a mapping of its stdin,
//! `guest-suite --helper capture-address NODE ADDRESS` into an address that somebody else told,
//! `guest-suite --helper hold NODE KIND` queues buffers of a kind of memory, streams and waits for its end, and
//! `guest-suite --helper master CARD` is a compositor until its stdin ends.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use vidcompat_proto::abi::v4l2::buf_flag;

use crate::kinds::{self, Maker};
use crate::rival;
use crate::sys::{Area, Rights, Source};
use crate::topics::shim_attacks::stranger;
use crate::video::Video;

/// This program, as the first argument of [`run`] says.
pub const ARGUMENT: &str = "--helper";
/// A user who owns nothing.
pub const NOBODY: u32 = 65534;

/// Does what the arguments say, if they are a helper's.
pub fn run() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (first, rest) = arguments.split_first()?;
    if first != ARGUMENT {
        return None;
    }
    let words: Vec<&str> = rest.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["capture-stdin", node, how] => capture_stdin(node, how),
        ["capture-address", node, address] => address
            .parse()
            .map_err(Into::into)
            .and_then(|address| capture(&open(node)?, address)),
        ["master", card] => rival::run(card),
        ["hold", node, kind] => hold(node, kind),
        ["shim-attack", ..] => stranger::act(&words[1..]),
        ["adopt", node, kind, at, frame] => adopt(node, kind, at, frame),
        ["until-error", node, memory] => until_error(node, memory),
        _ => Err(anyhow::anyhow!("{words:?}")),
    };
    Some(match outcome {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

/// What the helper says, run by nobody.
pub fn as_nobody(arguments: &[&str], stdin: impl Into<Stdio>) -> anyhow::Result<String> {
    let output = Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .args(arguments)
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(stdin)
        .output()
        .context("the helper")?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success(),
        "{arguments:?}: {}: {said} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

fn open(node: &str) -> anyhow::Result<Video> {
    Video::at(node.as_ref(), 0)
}

/// A frame to this address: how that ends.
pub fn capture(video: &Video, address: u64) -> anyhow::Result<String> {
    let size = video.sizeimage()?;
    video.reqbufs(2).context("REQBUFS")?;
    if let Err(errno) = video.qbuf(0, address, size) {
        return Ok(format!("QBUF {errno:?}"));
    }
    video.streamon().context("STREAMON")?;
    let done = video.dqbuf().context("DQBUF")?;
    Ok(if done.flags & buf_flag::ERROR == 0 {
        "a frame"
    } else {
        "a damaged frame"
    }
    .to_owned())
}

fn capture_stdin(node: &str, how: &str) -> anyhow::Result<String> {
    let video = open(node)?;
    let size = video.sizeimage()? as usize;
    let area = Area::reserve(size)?;
    let stdin = std::io::stdin();
    let mapped = |source, rights| area.map(0, area.len(), source, rights);
    match how {
        "shared" => {
            let source = Source::Shared(stdin.as_fd(), 0);
            let wanted = mapped(source, Rights::ReadWrite);
            ensure!(
                wanted == Err(Errno::EACCES),
                "it can be mapped for writing: {wanted:?}"
            );
            mapped(source, Rights::ReadOnly)?;
        }
        "private" => mapped(Source::Private(stdin.as_fd(), 0), Rights::ReadWrite)?,
        _ => bail!("{how}"),
    }
    capture(&video, area.at(0))
}

/// The kinds that [`hold`] knows.
pub const HELD: &[(&str, Maker)] = &[
    ("anonymous", kinds::anonymous),
    ("memfd", kinds::sealed_memfd),
    ("vesafb", kinds::vesafb),
    ("virtio-gpu-fb", kinds::virtio_gpu_fb),
    ("v4l2-vmalloc", kinds::v4l2_vmalloc),
    ("v4l2-contig", kinds::v4l2_contig),
    ("dumb", kinds::virtio_gpu_dumb),
    ("heap", kinds::heap),
    ("udmabuf", kinds::udmabuf),
];

/// Queues two buffers of the same memory, streams, says so, and waits.
fn hold(node: &str, kind: &str) -> anyhow::Result<String> {
    let video = open(node)?;
    let size = video.sizeimage()?;
    let (_, make) = HELD
        .iter()
        .find(|(name, _)| *name == kind)
        .context("no such kind")?;
    let Some(memory) = make(size as usize, 0)? else {
        bail!("there is none here");
    };
    video.reqbufs(2)?;
    for index in 0..2 {
        video.qbuf(index, memory.pointer(), size)?;
    }
    video.streamon()?;
    println!("queued");
    loop {
        let done = video.dqbuf()?;
        video.qbuf(done.index, memory.pointer(), size)?;
    }
}

/// The kinds that [`adopt`] knows besides.
pub const ADOPTED: &[(&str, Maker)] = &[
    ("anonymous", kinds::anonymous),
    ("malloc", kinds::malloc),
    ("brk", kinds::heap_of_malloc),
    ("shared", kinds::shared_anonymous),
    ("huge", kinds::huge),
    ("two-mappings", kinds::two_mappings),
    ("memfd", kinds::memfd),
];

const BUFFERS: u32 = 3;

/// Streams twice into the same buffers, `at` bytes behind a page; the frames must be what the file `frame` has. Waits for a
/// line before each end of a queue: first by REQBUFS(0), then by close. Says after each whose memory the buffers are.
fn adopt(node: &str, kind: &str, at: &str, frame: &str) -> anyhow::Result<String> {
    let frame = std::fs::read(frame)?;
    let at = at.parse()?;
    let (_, make) = ADOPTED
        .iter()
        .find(|(name, _)| *name == kind.trim_end_matches("-locked"))
        .context("no such kind")?;
    let mut memory = vec![];
    for _ in 0..BUFFERS {
        memory.push(make(frame.len(), at)?.context("there is none here")?);
    }
    if kind.ends_with("-locked") {
        for each in &memory {
            each.area.lock()?;
        }
    }
    for end in ["REQBUFS(0)", "close"] {
        let video = open(node)?;
        video.reqbufs(BUFFERS)?;
        for (index, each) in (0..).zip(&memory) {
            each.clear()?;
            video.qbuf(index, each.pointer(), each.size.try_into()?)?;
        }
        video.streamon()?;
        for _ in 0..12 {
            let done = video.dqbuf()?;
            let each = &memory[done.index as usize];
            ensure!(done.m == each.pointer(), "another pointer");
            each.holds(&frame).context("a frame")?;
            each.clear()?;
            video.qbuf(done.index, done.m, done.length)?;
        }
        println!("streams, {}", memory[0].area.named(at)?);
        wait_for_line()?;
        for _ in 0..BUFFERS {
            let done = video.dqbuf()?;
            memory[done.index as usize].holds(&frame)?;
        }
        video.streamoff()?;
        if end == "close" {
            drop(video);
        } else {
            video.reqbufs(0)?;
        }
        for each in &memory {
            each.holds(&frame).with_context(|| format!("after {end}"))?;
            // And it can be used as ever.
            each.fill(&frame)?;
            each.holds(&frame)?;
        }
        println!("{end}, {}", memory[0].area.named(at)?);
        wait_for_line()?;
    }
    Ok("done".to_owned())
}

fn wait_for_line() -> anyhow::Result<()> {
    ensure!(
        std::io::stdin().read_line(&mut String::new())? > 0,
        "nobody is there"
    );
    Ok(())
}

/// Streams until a call fails, which is not to be the end of the program's memory.
fn until_error(node: &str, how: &str) -> anyhow::Result<String> {
    let video = open(node)?;
    let size = video.sizeimage()? as usize;
    let mut memory = vec![];
    if how == "mmap" {
        kinds::reqbufs_mmap(&video, BUFFERS)?;
        for index in 0..BUFFERS {
            let (offset, length) = kinds::place_of(&video, index)?;
            let area = Area::reserve(length)?;
            area.map(
                0,
                length,
                Source::Shared(video.as_fd(), offset),
                Rights::ReadWrite,
            )?;
            memory.push(area);
        }
    } else {
        video.reqbufs(BUFFERS)?;
        for _ in 0..BUFFERS {
            let area = Area::reserve(size)?;
            area.map(0, area.len(), Source::Anonymous, Rights::ReadWrite)?;
            memory.push(area);
        }
    }
    let queue = |index: u32| match how {
        "mmap" => kinds::qbuf_mmap(&video, index),
        _ => video
            .qbuf(index, memory[index as usize].at(0), size.try_into().unwrap_or(0))
            .map(drop),
    };
    for index in 0..BUFFERS {
        queue(index)?;
    }
    video.streamon()?;
    let mut frames = 0;
    let errno = loop {
        let next = match how {
            "mmap" => kinds::dqbuf_mmap(&video),
            _ => video.dqbuf().map(|done| done.index),
        };
        if let Err(errno) = next.and_then(queue) {
            break errno;
        }
        frames += 1;
        if frames == 6 {
            println!("streams, {}", memory[0].named(0)?);
        }
    };
    for area in &memory {
        let bytes = area.read(0, size)?;
        ensure!(bytes.iter().any(|byte| *byte != bytes[0]), "an empty picture");
        area.write(0, &bytes)?;
    }
    let later = video.format().err();
    drop(video);
    for area in &memory {
        area.read(0, size)?;
    }
    Ok(format!("{errno:?}, then {later:?}, {}", memory[0].named(0)?))
}
