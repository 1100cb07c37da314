//! The suite as a program of its own: a client with another user's rights, or one that is killed.
//!
//! `guest-suite --helper capture-stdin NODE shared|private` takes a frame into a mapping of its stdin,
//! `guest-suite --helper capture-address NODE ADDRESS` into an address that somebody else told, and
//! `guest-suite --helper hold NODE KIND` queues buffers of a kind of memory, streams and waits for its end.

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use vidcompat_proto::abi::v4l2::buf_flag;

use crate::kinds::{self, Maker};
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
        ["hold", node, kind] => hold(node, kind),
        ["shim-attack", ..] => stranger::act(&words[1..]),
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
