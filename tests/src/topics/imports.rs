//! Dma-bufs that programs bring themselves (`V4L2_MEMORY_DMABUF`): the frame is in them as on the real node, the numbers
//! of their fds come back as they were given, and nothing of them stays in the daemon.

use std::fs::File;
use std::io::pipe;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use vidcompat_proto::abi::v4l2::{V4l2Buffer, V4l2RequestBuffers, buf_flag};

use super::errnos::word;
use super::kill_loop::{dma_buf_bytes, resources, settled};
use crate::client::{AT_ONCE, Client, run};
use crate::daemon;
use crate::picture::Picture;
use crate::report::{figure, same};
use crate::setup::{CONTIG, SPARE, Test, VMALLOC, both_real, is_6_1};
use crate::sys::DmaBuf;
use crate::video::{CAPTURE, Node, Side, Video, buffer, command, memory, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    ("imports::frames_arrive_in_dma_bufs_of_every_origin", frames),
    ("imports::numbers_of_fds_come_back_as_they_were_given", numbers),
    ("imports::wrong_fds_and_lengths_fail_alike", wrong),
    (
        "imports::a_queued_dma_buf_outlives_its_fd_and_the_number_may_mean_another",
        closed,
    ),
    (
        "imports::a_program_captures_into_buffers_of_another_device",
        program,
    ),
    (
        "imports::clients_killed_while_they_stream_leave_nothing_behind",
        killed,
    ),
];

const COUNT: u32 = 4;

/// Dma-bufs for a queue, and whoever must stay open for them.
struct Origin {
    name: &'static str,
    buffers: Vec<DmaBuf>,
    _exporter: Option<Video>,
}

impl Origin {
    fn heap(size: usize) -> anyhow::Result<Self> {
        Ok(Self {
            name: "the system heap",
            buffers: (0..COUNT)
                .map(|_| DmaBuf::from_heap(size))
                .collect::<Result<_, _>>()?,
            _exporter: None,
        })
    }

    /// Buffers of a device that does not stream.
    fn device(name: &'static str, number: u32) -> anyhow::Result<Self> {
        let exporter = real(number).open()?;
        let mut request = V4l2RequestBuffers {
            count: COUNT,
            buf_type: CAPTURE,
            memory: memory::MMAP,
            ..V4l2RequestBuffers::default()
        };
        exporter.reqbufs_raw(&mut request)?;
        ensure!(request.count == COUNT, "{} buffers", request.count);
        Ok(Self {
            name,
            buffers: (0..COUNT)
                .map(|index| DmaBuf::exported(&exporter, index))
                .collect::<Result<_, _>>()?,
            _exporter: Some(exporter),
        })
    }

    /// For a device that streams from `target`, which cannot export meanwhile.
    fn all(target: u32, size: usize) -> anyhow::Result<Vec<Self>> {
        let mut origins = vec![Self::device("a vmalloc device", SPARE)?];
        if target != CONTIG {
            origins.push(Self::device("a dma-contig device", CONTIG)?);
        }
        // 6.1 has no heap.
        if !is_6_1() {
            origins.push(Self::heap(size)?);
        }
        Ok(origins)
    }
}

fn reqbufs(video: &Video, count: u32) -> Result<u32, Errno> {
    let mut request = V4l2RequestBuffers {
        count,
        buf_type: CAPTURE,
        memory: memory::DMABUF,
        ..V4l2RequestBuffers::default()
    };
    video.reqbufs_raw(&mut request).map(|()| request.count)
}

/// A buffer with this fd. The upper half of the union is none of the fd: it holds something, which is to come back.
fn with_fd(index: u32, fd: i32, length: u32) -> V4l2Buffer {
    V4l2Buffer {
        memory: memory::DMABUF,
        ..buffer(
            index,
            0x5a5a_0000_0000_0000 | u64::from(fd.cast_unsigned()),
            length,
        )
    }
}

/// The fd in the union.
fn fd_in(m: u64) -> i32 {
    // Cut on purpose.
    #[allow(clippy::cast_possible_truncation)]
    let low = m as u32;
    low.cast_signed()
}

fn show(outcome: Result<V4l2Buffer, Errno>) -> String {
    match outcome {
        Err(errno) => format!("{errno:?}"),
        Ok(b) => format!(
            "index {} bytesused {} flags {:#x} memory {} m {:#x} length {}",
            b.index, b.bytesused, b.flags, b.memory, b.m, b.length
        ),
    }
}

fn dqbuf(video: &Video) -> Result<V4l2Buffer, Errno> {
    video.on_buffer(command::DQBUF, with_fd(0, 0, 0))
}

/// Streams some frames into these: what each DQBUF said, and whether the frame was the picture.
fn stream(node: Node, buffers: &[DmaBuf], picture: &Picture) -> anyhow::Result<Vec<String>> {
    let video = node.open()?;
    let size = u32::try_from(picture.bytes().len())?;
    let mut lines = vec![format!("REQBUFS: {}", word(reqbufs(&video, COUNT)))];
    for (index, dma_buf) in (0..).zip(buffers) {
        dma_buf.clear()?;
        let queued = video.on_buffer(command::QBUF, with_fd(index, dma_buf.number(), size));
        lines.push(format!("QBUF: {}", show(queued)));
    }
    lines.push(format!("STREAMON: {}", word(video.streamon())));
    if lines.iter().any(|line| line.starts_with("QBUF: E")) {
        return Ok(lines);
    }
    for number in 0..24 {
        let done = dqbuf(&video)?;
        let dma_buf = &buffers[done.index as usize];
        let arrived = dma_buf.read(picture.bytes().len())? == picture.bytes();
        lines.push(format!(
            "frame {number}, the picture: {arrived}: {}",
            show(Ok(done))
        ));
        dma_buf.clear()?;
        let again = with_fd(done.index, dma_buf.number(), size);
        video.on_buffer(command::QBUF, again).context("QBUF again")?;
    }
    lines.push(format!("STREAMOFF: {}", word(video.streamoff())));
    lines.push(format!("REQBUFS(0): {}", word(reqbufs(&video, 0))));
    lines.push(format!("USERPTR afterwards: {}", word(video.reqbufs(2))));
    Ok(lines)
}

fn frames() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let mut arrived = vec![];
    for target in [VMALLOC, CONTIG] {
        for origin in Origin::all(target, picture.bytes().len())? {
            let what = format!("from {} into {}", origin.name, real(target));
            let mut lines = same(target, |node| {
                let mut lines = stream(node, &origin.buffers, &picture)?;
                // The one that refuses USERPTR is served all the same.
                lines.retain(|line| target != CONTIG || !line.starts_with("USERPTR"));
                Ok(lines)
            })
            .with_context(|| what.clone())?;
            lines.retain(|line| line.starts_with("frame") || line.starts_with("QBUF: E"));
            ensure!(
                lines
                    .iter()
                    .all(|line| !line.starts_with("frame") || line.contains("the picture: true")),
                "{what}: {lines:?}"
            );
            figure(format!("dma-bufs {what}: {} {}", lines.len(), lines[0]));
            arrived.extend((lines.len() == 24).then_some(target));
        }
    }
    let wanted = if is_6_1() { 2 } else { 3 };
    ensure!(
        arrived.iter().filter(|target| **target == VMALLOC).count() == wanted,
        "frames arrived from too few: {arrived:?}"
    );
    Ok(())
}

/// Dma-bufs that [`VMALLOC`] takes, large enough.
fn good() -> anyhow::Result<(Origin, u32)> {
    let size = real(VMALLOC).open()?.sizeimage()?;
    Ok((Origin::device("a dma-contig device", CONTIG)?, size))
}

fn numbers() -> anyhow::Result<()> {
    daemon::shared()?;
    let (origin, size) = good()?;
    let dma_buf = &origin.buffers[0];
    let other = dma_buf.another_fd()?;
    same(VMALLOC, |node| {
        let video = node.open()?;
        let mut lines = vec![word(reqbufs(&video, 2))];
        let mut say = |what: &str, outcome| lines.push(format!("{what}: {}", show(outcome)));
        let ask = |index| video.on_buffer(command::QUERYBUF, with_fd(index, 77, 0));
        say("QUERYBUF of a new one", ask(0));
        say(
            "QBUF",
            video.on_buffer(command::QBUF, with_fd(0, dma_buf.number(), size)),
        );
        say("QUERYBUF", ask(0));
        say("another", ask(1));
        video.streamon()?;
        say("DQBUF", dqbuf(&video));
        say("QUERYBUF", ask(0));
        // The same dma-buf by another number, and the number as it was.
        for fd in [other.number(), dma_buf.number(), other.number()] {
            say("QBUF", video.on_buffer(command::QBUF, with_fd(0, fd, size)));
            say("DQBUF", dqbuf(&video));
        }
        video.streamoff()?;
        say(
            "PREPARE_BUF",
            video.on_buffer(command::PREPARE_BUF, with_fd(1, dma_buf.number(), size)),
        );
        say("QUERYBUF", ask(1));
        // vb2 keeps what is prepared, whatever QBUF says.
        say(
            "QBUF of the prepared one with another number",
            video.on_buffer(command::QBUF, with_fd(1, other.number(), size)),
        );
        say("QUERYBUF", ask(1));
        video.streamon()?;
        say("DQBUF", dqbuf(&video));
        // The driver tells everybody the numbers of the owner's fds; ours keeps them to the owner.
        let mut told = node.open()?.on_buffer(command::QUERYBUF, with_fd(1, 77, 0))?;
        if node.side == Side::Real {
            ensure!(fd_in(told.m) == dma_buf.number(), "{told:?}");
        } else if !both_real() {
            ensure!(fd_in(told.m) == 0, "{told:?}");
        }
        told.m = 0;
        say("another file's QUERYBUF", Ok(told));
        video.streamoff()?;
        lines.push(word(reqbufs(&video, 0)));
        lines.push(show(
            video.on_buffer(command::QBUF, with_fd(0, dma_buf.number(), size)),
        ));
        lines.push(word(reqbufs(&video, 2)));
        lines.push(show(video.on_buffer(command::QUERYBUF, with_fd(0, 77, 0))));
        Ok(lines)
    })
    .map(drop)
}

fn wrong() -> anyhow::Result<()> {
    daemon::shared()?;
    let (origin, size) = good()?;
    let dma_buf = &origin.buffers[0];
    let (null, (reader, _writer)) = (File::open("/dev/null")?, pipe()?);
    let node_itself = real(VMALLOC).open()?;
    let of = |fd: &dyn AsFd| fd.as_fd().as_raw_fd();
    let whole = u32::try_from(dma_buf.len())?;
    let cases = [
        ("-1", -1, size),
        ("no such fd", 60_000, size),
        ("the least number", i32::MIN, size),
        ("/dev/null", of(&null), size),
        ("a pipe", of(&reader), size),
        ("a video node", of(&node_itself), size),
        ("length 0", dma_buf.number(), 0),
        ("length 1", dma_buf.number(), 1),
        ("a byte too short", dma_buf.number(), size - 1),
        ("the whole", dma_buf.number(), whole),
        ("a byte too long", dma_buf.number(), whole + 1),
        ("much too long", dma_buf.number(), u32::MAX),
    ];
    let lines = same(VMALLOC, |node| {
        let mut lines = vec![];
        for (what, fd, length) in cases {
            for call in [command::QBUF, command::PREPARE_BUF] {
                let video = node.open()?;
                reqbufs(&video, 2)?;
                let given = video.on_buffer(call, with_fd(0, fd, length));
                let then = video.on_buffer(command::QUERYBUF, with_fd(0, 77, 0));
                let good = video.on_buffer(command::QBUF, with_fd(1, dma_buf.number(), size));
                lines.push(format!(
                    "{what}: {}; then {}; a good one: {}",
                    show(given),
                    show(then),
                    show(good)
                ));
            }
        }
        // What has been taken once is not looked at again, unless it is something else.
        let video = node.open()?;
        reqbufs(&video, 2)?;
        video.streamon()?;
        for (what, fd, length) in cases {
            let before = video.on_buffer(command::QBUF, with_fd(0, dma_buf.number(), size));
            lines.push(format!("good: {}", show(before)));
            lines.push(format!("DQBUF: {}", show(dqbuf(&video))));
            let given = video.on_buffer(command::QBUF, with_fd(0, fd, length));
            let queued = given.is_ok();
            lines.push(format!("{what} after a good one: {}", show(given)));
            if queued {
                lines.push(format!("DQBUF: {}", show(dqbuf(&video))));
            }
        }
        let user = V4l2Buffer {
            memory: memory::USERPTR,
            ..with_fd(0, dma_buf.number(), size)
        };
        lines.push(format!(
            "as USERPTR: {}",
            show(video.on_buffer(command::QBUF, user))
        ));
        lines.push(format!("index 9: {}", {
            show(video.on_buffer(command::QBUF, with_fd(9, dma_buf.number(), size)))
        }));
        Ok(lines)
    })?;
    ensure!(
        lines.iter().filter(|line| line.contains(": EINVAL")).count() > 10
            && lines.iter().any(|line| line.starts_with("length 0: index 0")),
        "{lines:?}"
    );
    Ok(())
}

fn closed() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let size = u32::try_from(picture.bytes().len())?;
    let (origin, _) = good()?;
    let has = |dma_buf: &DmaBuf| -> anyhow::Result<bool> {
        Ok(dma_buf.read(picture.bytes().len())? == picture.bytes())
    };
    let lines = same(VMALLOC, |node| {
        let (first, second) = (&origin.buffers[0], &origin.buffers[1]);
        first.clear()?;
        second.clear()?;
        let video = node.open()?;
        reqbufs(&video, 2)?;
        let gone = first.another_fd()?;
        let number = gone.number();
        let mut lines = vec![];
        let queued = video.on_buffer(command::QBUF, with_fd(0, number, size))?.m;
        drop(gone);
        video.streamon()?;
        let done = dqbuf(&video)?;
        lines.push(format!(
            "closed while queued: the same number {}, damaged {}, the frame {}",
            done.m == queued,
            done.flags & buf_flag::ERROR != 0,
            has(first)?
        ));
        lines.push(format!(
            "QBUF of the closed one: {}",
            word(video.on_buffer(command::QBUF, with_fd(0, number, size)).map(drop))
        ));
        first.clear()?;
        // The number means another dma-buf now.
        let reused = second.another_fd()?;
        ensure!(reused.number() == number, "{} and {number}", reused.number());
        video.on_buffer(command::QBUF, with_fd(0, number, size))?;
        dqbuf(&video)?;
        lines.push(format!(
            "the number of another: the frame there {}, in the old one {}",
            has(second)?,
            has(first)?
        ));
        video.streamoff()?;
        Ok(lines)
    })?;
    ensure!(
        lines[0].ends_with("the frame true") && lines[2].ends_with("there true, in the old one false"),
        "{lines:?}"
    );
    Ok(())
}

fn program() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let (to, exporter) = ("/tmp/imports-frames", real(CONTIG).to_string());
    for node in [real(VMALLOC), ours(VMALLOC)] {
        run(
            "dmabuf_capture",
            &[&node.to_string(), &exporter, "20", to],
            4 * AT_ONCE,
        )?;
        let bytes = std::fs::read(to)?;
        std::fs::remove_file(to)?;
        ensure!(
            bytes.len() == 20 * picture.bytes().len()
                && bytes
                    .chunks(picture.bytes().len())
                    .all(|frame| frame == picture.bytes()),
            "{node}: {} bytes, not twenty pictures",
            bytes.len()
        );
    }
    Ok(())
}

fn killed() -> anyhow::Result<()> {
    daemon::shared()?;
    if both_real() {
        return Ok(());
    }
    let cycle = |millis: u64| -> anyhow::Result<()> {
        let (node, exporter) = (ours(VMALLOC).to_string(), real(CONTIG).to_string());
        let mut client = Client::start("dmabuf_capture", &[&node, &exporter])?;
        let line = client.line()?;
        ensure!(line == "streaming", "dmabuf_capture: {line}");
        thread::sleep(Duration::from_millis(millis));
        client.signal(Signal::SIGKILL)?;
        client.end(AT_ONCE).map(drop)
    };
    let (pages, size) = good()?;
    let streaming = || -> anyhow::Result<()> {
        let video = ours(VMALLOC).open()?;
        reqbufs(&video, COUNT)?;
        for (index, dma_buf) in (0..).zip(&pages.buffers) {
            video.on_buffer(command::QBUF, with_fd(index, dma_buf.number(), size))?;
        }
        video.streamon()?;
        // The file is closed with all of them queued.
        Ok(())
    };
    streaming()?;
    let before = settled(&resources()?)?;
    let bytes = dma_buf_bytes()?;
    for _ in 0..100 {
        streaming()?;
    }
    drop(pages);
    let mut streamed = 0;
    for number in 0..8 {
        cycle(13 * number)?;
        streamed += 1;
    }
    let after = settled(&before)?;
    ensure!(
        after.fds == before.fds,
        "fds: {:?} became {:?}",
        before.fds,
        after.fds
    );
    let bytes_after = dma_buf_bytes()?;
    ensure!(
        bytes_after <= bytes,
        "{bytes} bytes of dma-bufs became {bytes_after}"
    );
    figure(format!(
        "dma-bufs of clients: {streamed} clients killed, {} fds of the daemon as before",
        after.fds.len()
    ));
    Ok(())
}
