//! What a client may do to the daemon by what it maps and opens, and what an import that comes to nothing leaves behind.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use vidcompat_proto::abi::v4l2::buf_flag;

use super::resolve_matrix::frame_from;
use crate::daemon;
use crate::kinds::{self, Maker};
use crate::nodes::named;
use crate::report::figure;
use crate::setup::{CONTIG, Test, VMALLOC, both_real};
use crate::sys::{Area, PAGE, Rights, Source};
use crate::video::{ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "attacks::memory_cut_into_thousands_of_mappings_costs_the_daemon_little",
        cut_to_pieces,
    ),
    (
        "attacks::a_hundred_thousand_fds_are_not_all_gone_through",
        many_fds,
    ),
    ("attacks::a_buffer_that_no_frame_comes_to_is_as_it_was", no_frame),
    (
        "attacks::a_picture_of_huge_pages_by_udmabuf_is_that_picture",
        huge_udmabuf,
    ),
];

/// Of the daemon: KiB of its own memory, fds, mappings.
fn held() -> anyhow::Result<(usize, usize, usize)> {
    let pid = daemon::shared()?;
    let mappings = fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().count();
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let memory = daemon::number_in(&format!("/proc/{pid}/status"), "RssAnon:")?;
    Ok((memory, fds, mappings))
}

/// A file with as long a path as there may be, so that each mapping of it is a mouthful.
fn of_long_name(length: usize) -> anyhow::Result<(PathBuf, File)> {
    let top = PathBuf::from(format!("/dev/shm/{}", std::process::id()));
    let mut folder = top.clone();
    for _ in 0..15 {
        folder.push("n".repeat(250));
    }
    fs::create_dir_all(&folder)?;
    let path = folder.join("file");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    file.set_len(length as u64)?;
    Ok((top, file))
}

fn cut_to_pieces() -> anyhow::Result<()> {
    const PIECES: usize = 30_000;
    let pid = daemon::shared()?;
    if both_real() {
        return Ok(());
    }
    let (top, named) = of_long_name(2 * PAGE)?;
    let memfd = kinds::memfd_of(2 * PAGE, nix::fcntl::SealFlag::empty())?;
    let heap = kinds::heap(PAGE, 0)?;
    let area = Area::reserve(PIECES * PAGE)?;
    let length = u32::try_from(area.len())?;
    let mut cases = vec![
        ("a memfd", Some(Source::Shared(memfd.as_fd(), 0))),
        ("a file with a long name", Some(Source::Shared(named.as_fd(), 0))),
        ("a private one", Some(Source::Private(named.as_fd(), 0))),
    ];
    if heap.is_some() {
        cases.push(("a dma-buf", None));
    }
    for (what, source) in cases {
        for page in 0..PIECES {
            // One after the other of the same offset never becomes one mapping.
            match (source, &heap) {
                (Some(source), _) => area.map(page * PAGE, PAGE, source, Rights::ReadWrite)?,
                (None, heap) => {
                    let heap = heap.as_ref().context("a heap")?;
                    heap.map_page(&area, page * PAGE)?;
                }
            }
        }
        for node in [ours(VMALLOC), ours(CONTIG)] {
            let video = node.open()?;
            video.reqbufs(4)?;
            let before = held()?;
            let mut slowest = Duration::ZERO;
            let mut said = vec![];
            for index in 0..4 {
                let asked = Instant::now();
                said.push(video.qbuf(index, area.at(0), length).map(drop));
                slowest = slowest.max(asked.elapsed());
            }
            let after = held()?;
            let grown = (
                after.0.saturating_sub(before.0),
                after.1.saturating_sub(before.1),
                after.2.saturating_sub(before.2),
            );
            figure(format!(
                "{PIECES} mappings of {what}, {node}: {:?}, {slowest:?}, {} KiB, {} fds, {} mappings more",
                said[0], grown.0, grown.1, grown.2
            ));
            let expected = if source.is_some() {
                Ok(())
            } else {
                Err(Errno::EFAULT)
            };
            ensure!(
                said.iter().all(|said| *said == expected),
                "{what}, {node}: {said:?}"
            );
            ensure!(
                grown.0 < 4 << 10 && grown.1 < 200 && grown.2 < 200,
                "{what}, {node}: {grown:?}"
            );
            // Linux 6.1 writes 120 MB of text about the file with the long name.
            ensure!(slowest < Duration::from_secs(6), "{what}, {node}: {slowest:?}");
        }
    }
    fs::remove_dir_all(top)?;
    ensure!(daemon::shared()? == pid, "the daemon has died");
    Ok(())
}

fn many_fds() -> anyhow::Result<()> {
    const FDS: usize = 100_000;
    daemon::shared()?;
    let size = real(VMALLOC).open()?.sizeimage()?;
    let limits = getrlimit(Resource::RLIMIT_NOFILE)?;
    let enough = FDS as u64 + 1000;
    setrlimit(Resource::RLIMIT_NOFILE, enough, enough.max(limits.1))?;
    let outcome = (|| {
        let Some(memory) = kinds::vesafb(size as usize, 0)? else {
            return Ok(());
        };
        let null = File::open("/dev/null")?;
        let many = (0..FDS).map(|_| null.as_fd().try_clone_to_owned());
        let many = many.collect::<std::io::Result<Vec<OwnedFd>>>()?;
        let video = ours(VMALLOC).open()?;
        video.reqbufs(2)?;
        let asked = Instant::now();
        let said = video.qbuf(0, memory.pointer(), size).map(drop);
        let took = asked.elapsed();
        figure(format!(
            "a framebuffer among {} fds: {said:?} in {took:?}",
            many.len()
        ));
        ensure!(said == Ok(()), "{said:?}");
        ensure!(took < Duration::from_millis(1500), "{took:?}");
        Ok(())
    })();
    setrlimit(Resource::RLIMIT_NOFILE, limits.0, limits.1)?;
    outcome
}

/// What is imported is marked, to see whether frames arrive; where none is to come the marks must go.
fn no_frame() -> anyhow::Result<()> {
    const KINDS: &[(&str, Maker)] = &[
        ("heap", kinds::heap),
        ("virtio-gpu fb", kinds::virtio_gpu_fb),
        ("V4L2 vmalloc", kinds::v4l2_vmalloc),
    ];
    daemon::shared()?;
    let size = real(VMALLOC).open()?.sizeimage()?;
    for (what, make) in KINDS {
        let Some(memory) = make(size as usize, 0)? else {
            continue;
        };
        for how in ["STREAMOFF", "REQBUFS(0)", "close"] {
            let video = ours(VMALLOC).open()?;
            video.reqbufs(2)?;
            memory.clear()?;
            video.qbuf(0, memory.pointer(), size)?;
            match how {
                "STREAMOFF" => video.streamoff()?,
                "REQBUFS(0)" => video.reqbufs(0).map(drop)?,
                _ => drop(video),
            }
            memory.is_clear().with_context(|| format!("{what}, {how}"))?;
        }
        // After STREAMOFF a frame is waited for again, and believed when it has come.
        let video = ours(VMALLOC).open()?;
        video.reqbufs(2)?;
        video.qbuf(0, memory.pointer(), size)?;
        video.streamoff()?;
        video.qbuf(0, memory.pointer(), size)?;
        video.streamon()?;
        let done = video.dqbuf()?;
        ensure!(done.flags & buf_flag::ERROR == 0, "{what}: lost");
    }
    Ok(())
}

fn huge_udmabuf() -> anyhow::Result<()> {
    daemon::shared()?;
    let number = named("vim2m")?.number()?;
    let size = 320 * 180 * 2;
    let source: Vec<u8> = (0..size)
        .map(|at: usize| (at * at / 7 + at / 640).to_le_bytes()[0])
        .collect();
    let plain = kinds::anonymous(size, 0)?.context("anonymous memory")?;
    plain.fill(&source)?;
    let (right, ..) = frame_from(real(number), &plain)?.context("EFAULT of plain memory")?;
    let Some(memory) = kinds::huge_udmabuf(size, 0)? else {
        return Ok(());
    };
    memory.fill(&source)?;
    let (came, how, told) = frame_from(ours(number), &memory)?.context("EFAULT of a udmabuf")?;
    figure(format!("a picture from a udmabuf of huge pages: {how}, {told}"));
    let differing = came.iter().zip(&right).position(|(a, b)| a != b);
    ensure!(
        differing.is_none(),
        "differs from byte {differing:?} on ({how}, {told})"
    );
    Ok(())
}
