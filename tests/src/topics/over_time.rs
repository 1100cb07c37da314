//! What is mapped where changes while a program streams: a frame must be where the pointer leads now, and nowhere else;
//! and what was found behind a pointer must not stay with the daemon when it is no longer used.

use std::fs::File;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use vidcompat_proto::abi::v4l2::buf_flag;

use super::kill_loop::{dma_buf_bytes, resources, settled};
use super::resolve_matrix::fail_with;
use crate::client::{AT_ONCE, Client};
use crate::daemon;
use crate::helper::{ARGUMENT, HELD};
use crate::kinds::{self, Maker, Memory};
use crate::picture::Picture;
use crate::report::figure;
use crate::setup::{CONTIG, CONTIG_EXPORTER, EXPORTER, Test, VMALLOC, both_real};
use crate::sys::{Area, Rights, Source};
use crate::video::{Node, Side, Video, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "over_time::another_object_at_the_same_address_gets_the_next_frame",
        same_address,
    ),
    (
        "over_time::another_buffer_of_one_queue_at_the_same_address_is_not_mistaken",
        same_queue,
    ),
    (
        "over_time::a_pointer_that_moves_at_each_qbuf_gets_each_frame",
        moving_pointer,
    ),
    ("over_time::two_buffers_share_a_page", shared_page),
    (
        "over_time::memory_that_goes_while_it_is_queued_is_no_other_memory",
        goes_while_queued,
    ),
    (
        "over_time::an_exporter_that_frees_its_buffers_takes_nothing_away",
        exporter_frees,
    ),
    (
        "over_time::nothing_of_all_that_stays_with_the_daemon",
        leaves_nothing,
    ),
];

/// Some of it again, and clients that are killed.
const AGAIN: &[Test] = &[moving_pointer, goes_while_queued, exporter_frees, killed];

const OURS: [Node; 2] = [ours(VMALLOC), ours(CONTIG)];

/// A stream of one buffer.
struct Stream {
    video: Video,
    size: u32,
}

impl Stream {
    fn of(node: Node, size: usize) -> anyhow::Result<Self> {
        let video = node.open()?;
        video.reqbufs(2)?;
        video.streamon()?;
        let size = u32::try_from(size)?;
        Ok(Self { video, size })
    }

    /// One frame to this pointer.
    fn frame(&self, pointer: u64) -> anyhow::Result<Frame> {
        match self.video.qbuf(0, pointer, self.size) {
            Ok(_) => self.dqbuf(),
            Err(Errno::EFAULT) => Ok(Frame::Refused),
            Err(errno) => Err(errno).context("QBUF"),
        }
    }

    fn dqbuf(&self) -> anyhow::Result<Frame> {
        let done = self.video.dqbuf().context("DQBUF")?;
        Ok(match done.flags & buf_flag::ERROR {
            0 => Frame::Came,
            _ => Frame::Lost,
        })
    }

    /// One frame that must come.
    fn good_frame(&self, pointer: u64) -> anyhow::Result<()> {
        self.frame(pointer)?.must_come()
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    Came,
    /// DQBUF says so, by the error flag.
    Lost,
    /// QBUF says EFAULT.
    Refused,
}

impl Frame {
    fn must_come(self) -> anyhow::Result<()> {
        ensure!(self == Self::Came, "the frame is {self:?}");
        Ok(())
    }
}

fn leaves_nothing() -> anyhow::Result<()> {
    daemon::shared()?;
    if both_real() {
        return Ok(());
    }
    // What comes with first use is no leak.
    killed()?;
    let before = settled(&resources()?)?;
    let bytes = dma_buf_bytes()?;
    for play in AGAIN {
        play()?;
    }
    let after = settled(&before)?;
    ensure!(
        after.fds == before.fds,
        "fds: {:?} became {:?}",
        before.fds,
        after.fds
    );
    let held: Vec<_> = after.fds.iter().filter(|fd| fd.contains("dmabuf")).collect();
    ensure!(held.is_empty(), "without a client the daemon holds {held:?}");
    let bytes_after = dma_buf_bytes()?;
    ensure!(
        bytes_after == bytes,
        "{bytes} bytes of dma-bufs became {bytes_after}"
    );
    figure(format!(
        "{} fds of the daemon and {bytes} bytes of dma-bufs before and after",
        after.fds.len()
    ));
    Ok(())
}

/// One of each, with a mapping of its own to look at.
fn objects(size: usize) -> anyhow::Result<Vec<(&'static str, Memory)>> {
    let makers: &[(&str, Maker)] = &[
        ("plain memory", kinds::anonymous),
        ("a memfd", kinds::sealed_memfd),
        ("a V4L2 buffer", kinds::v4l2_vmalloc),
        ("vesafb", kinds::vesafb),
        ("virtio-gpu fb", kinds::virtio_gpu_fb),
        ("a dumb buffer", kinds::virtio_gpu_dumb),
        ("a dma-buf", kinds::heap),
        ("another dma-buf", kinds::heap),
        ("a udmabuf", kinds::udmabuf),
        ("a dma-contig buffer", kinds::v4l2_contig),
    ];
    let mut objects = vec![];
    for (name, make) in makers {
        if let Some(memory) = make(size, 0).with_context(|| (*name).to_owned())? {
            objects.push((*name, memory));
        }
    }
    Ok(objects)
}

fn same_address() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let frame = picture.bytes();
    let objects = objects(frame.len())?;
    let mut failures = vec![];
    for node in OURS {
        let stream = Stream::of(node, frame.len())?;
        let area = Area::reserve(frame.len())?;
        let into = |object: &Memory, others: &Memory| -> anyhow::Result<()> {
            others.clear()?;
            object.clear()?;
            object.map_into(&area, area.len())?;
            stream.good_frame(area.at(0))?;
            ensure!(
                area.read(0, frame.len())? == frame,
                "not the frame at the pointer"
            );
            if object.is_shared() {
                object.holds(frame).context("the object")?;
            }
            others.is_clear().context("what was mapped before")
        };
        for (at, (first_name, first)) in objects.iter().enumerate() {
            for (second_name, second) in &objects[at + 1..] {
                let moved = into(first, second).and_then(|()| into(second, first));
                if let Err(error) = moved {
                    failures.push(format!("{first_name} and {second_name}, {node}: {error:#}"));
                }
            }
        }
    }
    fail_with(&failures)
}

/// `maps` shows the same line for every buffer of a queue.
fn same_queue() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let frame = picture.bytes();
    for node in OURS {
        for exporter in [EXPORTER, CONTIG_EXPORTER] {
            let what = format!("buffers of {}, {node}", real(exporter));
            let video = real(exporter).open()?;
            kinds::reqbufs_mmap(&video, 4)?;
            let area = Area::reserve(frame.len())?;
            let map = |area: &Area, index| -> anyhow::Result<()> {
                let (offset, _) = kinds::place_of(&video, index)?;
                let source = Source::Shared(video.as_fd(), offset);
                Ok(area.map(0, area.len(), source, Rights::ReadWrite)?)
            };
            let zeros = vec![0; frame.len()];
            let stream = Stream::of(node, frame.len())?;
            let mut refused = 0;
            for index in [0, 1, 2, 1, 3, 0] {
                // A look at all of them first, through mappings that are gone when the frame comes.
                let look = Area::reserve(frame.len())?;
                for each in 0..4 {
                    map(&look, each)?;
                    look.write(0, &zeros)?;
                }
                drop(look);
                map(&area, index)?;
                match stream.frame(area.at(0)).with_context(|| what.clone())? {
                    Frame::Came => ensure!(
                        area.read(0, frame.len())? == frame,
                        "{what}: not the frame at the pointer"
                    ),
                    Frame::Lost | Frame::Refused => refused += 1,
                }
                area.unmap(0, area.len())?;
                let look = Area::reserve(frame.len())?;
                for each in (0..4).filter(|each| *each != index) {
                    map(&look, each)?;
                    ensure!(
                        look.read(0, frame.len())? == zeros,
                        "{what}: a frame for buffer {index} is in buffer {each}"
                    );
                }
            }
            // Only of dma-contig it may not be known which it is.
            ensure!(
                refused == 0 || exporter == CONTIG_EXPORTER,
                "{what}: {refused} frames did not come"
            );
        }
    }
    Ok(())
}

fn moving_pointer() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let size = picture.bytes().len();
    for node in OURS {
        let memories = objects(size)?;
        let video = node.open()?;
        video.reqbufs(2)?;
        let length = u32::try_from(size)?;
        let mut queued = [0, 1];
        for (index, memory) in (0..).zip(&memories[..2]) {
            memory.1.clear()?;
            video.qbuf(index, memory.1.pointer(), length)?;
        }
        video.streamon()?;
        for number in 0..40 {
            let done = video.dqbuf()?;
            let index = done.index as usize;
            let (name, memory) = &memories[queued[index]];
            ensure!(
                done.m == memory.pointer() && done.flags & buf_flag::ERROR == 0,
                "frame {number}, {name}, {node}: {done:?}"
            );
            memory
                .holds(picture.bytes())
                .with_context(|| format!("frame {number}, {name}, {node}"))?;
            // One that is not queued now, in an order that repeats late.
            let mut next = (queued[index] + 1 + number % 3) % memories.len();
            while queued.contains(&next) {
                next = (next + 1) % memories.len();
            }
            queued[index] = next;
            let (name, memory) = &memories[next];
            memory.clear()?;
            video
                .qbuf(done.index, memory.pointer(), length)
                .with_context(|| format!("frame {number}, {name}, {node}"))?;
        }
    }
    Ok(())
}

fn shared_page() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let size = picture.bytes().len();
    let both = [picture.bytes(), picture.bytes()].concat();
    for node in OURS {
        // Two frames lie side by side; a page belongs to both.
        for (name, memory) in objects(2 * size)? {
            let video = node.open()?;
            video.reqbufs(2)?;
            video.streamon()?;
            for round in 0..4 {
                memory.clear()?;
                for index in [round % 2, 1 - round % 2] {
                    let pointer = memory.pointer() + u64::from(index) * size as u64;
                    let queued = video.qbuf(index, pointer, u32::try_from(size)?);
                    queued.with_context(|| format!("{name}, {node}"))?;
                }
                for _ in 0..2 {
                    video.dqbuf()?;
                }
                memory
                    .holds(&both)
                    .with_context(|| format!("{name}, {node}, round {round}"))?;
            }
        }
    }
    Ok(())
}

/// What is mapped instead, each reached in another way.
const REPLACING: [&str; 3] = ["plain memory", "vesafb", "a dma-buf"];

/// The frame is in what was queued, or in what is there now, or the buffer says that it is lost.
fn goes_while_queued() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let frame = picture.bytes();
    let objects = objects(frame.len())?;
    let mut seen = vec![];
    for node in OURS {
        for (name, object) in &objects {
            for (then_name, then) in objects
                .iter()
                .filter(|(then_name, _)| then_name != name && REPLACING.contains(then_name))
                .map(|(name, object)| (*name, Some(object)))
                .chain([("nothing", None)])
            {
                let what = || format!("{name}, then {then_name}, {node}");
                let stream = Stream::of(node, frame.len())?;
                let area = Area::reserve(frame.len())?;
                object.clear()?;
                object.map_into(&area, area.len())?;
                stream.video.streamoff()?;
                stream.video.qbuf(0, area.at(0), stream.size).with_context(what)?;
                match then {
                    Some(then) => {
                        then.clear()?;
                        then.map_into(&area, area.len())?;
                    }
                    None => area.unmap(0, area.len())?,
                }
                stream.video.streamon()?;
                let done = stream.video.dqbuf().with_context(what)?;
                let is_lost = done.flags & buf_flag::ERROR != 0;
                let before = object.is_shared() && object.holds(frame).is_ok();
                let now = then.is_some() && area.read(0, frame.len())? == frame;
                ensure!(
                    before || object.is_clear().is_ok(),
                    "{}: a part of a frame in what was there",
                    what()
                );
                ensure!(
                    usize::from(is_lost) + usize::from(before) + usize::from(now) == 1,
                    "{}: lost {is_lost}, in what was there {before}, in what is there {now}",
                    what()
                );
                seen.push(if is_lost {
                    "lost"
                } else if before {
                    "in the old"
                } else {
                    "in the new"
                });
                // Nothing is there: the next one cannot come.
                if then.is_none() {
                    let next = stream.frame(area.at(0))?;
                    ensure!(next != Frame::Came, "{}: then {next:?}", what());
                }
            }
        }
    }
    for kind in ["lost", "in the old", "in the new"] {
        let count = seen.iter().filter(|each| **each == kind).count();
        figure(format!("mapping replaced while queued: {count} frames {kind}"));
    }
    Ok(())
}

fn exporter_frees() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let frame = picture.bytes();
    let nodes = [real(VMALLOC), ours(VMALLOC), ours(CONTIG)];
    for (node, exporter) in nodes
        .iter()
        .flat_map(|node| [(*node, EXPORTER), (*node, CONTIG_EXPORTER)])
    {
        if node.side == Side::Real && exporter == CONTIG_EXPORTER {
            continue;
        }
        for closes in [false, true] {
            let what = || format!("{}, closed {closes}, {node}", real(exporter));
            let stream = Stream::of(node, frame.len())?;
            stream.video.streamoff()?;
            let area = Area::reserve(frame.len())?;
            let mut video = real(exporter).open()?;
            let map = |video: &Video| -> anyhow::Result<()> {
                kinds::reqbufs_mmap(video, 4)?;
                let (offset, _) = kinds::place_of(video, 2)?;
                area.map(
                    0,
                    area.len(),
                    Source::Shared(video.as_fd(), offset),
                    Rights::ReadWrite,
                )?;
                area.write(0, &vec![0; frame.len()])
            };
            map(&video)?;
            stream.video.qbuf(0, area.at(0), stream.size).with_context(what)?;
            kinds::reqbufs_mmap(&video, 0).context("REQBUFS(0) of the exporter")?;
            if closes {
                drop(video);
                video = real(exporter).open()?;
            }
            stream.video.streamon()?;
            stream.dqbuf()?.must_come().with_context(what)?;
            ensure!(area.read(0, frame.len())? == frame, "{}: not the frame", what());
            // The mapping still is the old memory, whether it can be reached or not.
            area.write(0, &vec![0; frame.len()])?;
            if stream.frame(area.at(0)).with_context(what)? == Frame::Came {
                ensure!(
                    area.read(0, frame.len())? == frame,
                    "{}: not the second frame",
                    what()
                );
            }
            // New buffers, at the same address.
            map(&video)?;
            if node.side == Side::Ours {
                stream.good_frame(area.at(0)).with_context(what)?;
                ensure!(
                    area.read(0, frame.len())? == frame,
                    "{}: not the frame in new buffers",
                    what()
                );
            }
        }
    }
    // The only fd of a dma-buf.
    for node in OURS {
        let Some(memory) = kinds::heap(frame.len(), 0)? else {
            continue;
        };
        let stream = Stream::of(node, frame.len())?;
        stream.video.streamoff()?;
        memory.clear()?;
        stream.video.qbuf(0, memory.pointer(), stream.size)?;
        let memory = memory.closed();
        stream.video.streamon()?;
        stream.dqbuf()?.must_come()?;
        memory
            .holds(frame)
            .with_context(|| format!("fd closed while queued, {node}"))?;
        memory.clear()?;
        // What is remembered still holds: the mapping is the same.
        let again = stream.good_frame(memory.pointer());
        again.with_context(|| format!("fd closed, the same mapping, {node}"))?;
        memory
            .holds(frame)
            .with_context(|| format!("fd closed, {node}"))?;
    }
    Ok(())
}

fn killed() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    daemon::shared()?;
    for node in OURS {
        for (kind, _) in HELD {
            let path = node.to_string();
            let mut client = Client::start("guest-suite", &[ARGUMENT, "hold", &path, kind])?;
            let line = client.line()?;
            if line == "there is none here" {
                continue;
            }
            ensure!(line == "queued", "{kind}, {node}: {line}");
            thread::sleep(Duration::from_millis(20));
            client.signal(Signal::SIGKILL)?;
            client.end(AT_ONCE)?;
            File::open(node.path())?;
        }
    }
    Ok(())
}
