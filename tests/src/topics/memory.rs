//! Into which memory a frame goes: byte by byte, and when several processes have the file.

use std::time::Duration;

use anyhow::{Context, ensure};
use vidcompat_proto::abi::v4l2::buf_flag;

use crate::client::run;
use crate::daemon;
use crate::picture::{Control, Picture};
use crate::report::{equal, figure};
use crate::setup::{CONTIG, Test, VMALLOC};
use crate::sys::{Access, PAGE, Pages};
use crate::video::{Node, Video, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "memory::a_new_pointer_at_each_qbuf_gets_its_frame_and_nothing_beside_it",
        new_pointers,
    ),
    (
        "memory::each_frame_of_a_moving_picture_comes_once_and_in_its_own_buffer",
        moving,
    ),
    (
        "memory::memory_taken_away_after_qbuf_is_told_by_the_error_flag",
        taken_away,
    ),
    (
        "memory::what_a_parent_queued_and_a_child_dequeues_goes_to_the_parent",
        forked,
    ),
    ("memory::a_child_may_queue_what_its_parent_prepared", prepared),
    ("memory::an_image_that_comes_by_exec_is_not_written_to", executed),
    (
        "memory::threads_that_have_ended_leave_their_buffers_to_the_process",
        threads,
    ),
];

const GUARD: u8 = 0xa5;
/// What lies on either side of a buffer.
const BESIDE: usize = PAGE + 64;

/// Streams with four buffers; the memory of each QBUF is `at(number of the frame, size)` in fresh pages.
fn stream(
    video: &Video,
    size: usize,
    frames: usize,
    at: impl Fn(usize) -> usize,
    mut check: impl FnMut(usize, u32, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut memory: Vec<Option<(Pages, usize)>> = vec![];
    let give = |memory: &mut Vec<Option<(Pages, usize)>>, index: u32, number: usize| -> anyhow::Result<()> {
        let pages = Pages::new(size + 2 * BESIDE + PAGE)?;
        pages.write(0, &vec![GUARD; pages.len()])?;
        let offset = BESIDE + at(number);
        video.qbuf(index, pages.at(offset), u32::try_from(size)?)?;
        memory.resize_with(memory.len().max(index as usize + 1), || None);
        memory[index as usize] = Some((pages, offset));
        Ok(())
    };
    let count = video.reqbufs(4)?;
    for index in 0..count {
        give(&mut memory, index, index as usize)?;
    }
    video.streamon()?;
    for number in 0..frames {
        let buffer = video.dqbuf()?;
        let given = memory[buffer.index as usize].take();
        let (pages, offset) = given.context("a buffer that was not queued")?;
        ensure!(
            buffer.m == pages.at(offset) && buffer.flags & buf_flag::ERROR == 0,
            "frame {number}: {buffer:?}"
        );
        let bytes = pages.read(0, pages.len())?;
        let (before, rest) = bytes.split_at(offset);
        let (frame, after) = rest.split_at(size);
        ensure!(
            before.iter().chain(after).all(|byte| *byte == GUARD),
            "frame {number} at {offset}: bytes beside it were written"
        );
        check(number, buffer.sequence, frame).with_context(|| format!("frame {number} at {offset}"))?;
        give(&mut memory, buffer.index, number + count as usize)?;
    }
    Ok(())
}

fn new_pointers() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    let inside = |number: usize| match number % 80 {
        bits @ 0..64 => bits,
        far => [
            100, 127, 255, 256, 511, 513, 1023, 1024, 2047, 2048, 3000, 4000, 4080, 4088, 4094, 4095,
        ][far - 64],
    };
    for node in [real(VMALLOC), ours(VMALLOC), ours(CONTIG)] {
        let played = stream(
            &node.open()?,
            picture.bytes().len(),
            160,
            inside,
            |_, _, frame| {
                let differing = frame.iter().zip(picture.bytes()).position(|(a, b)| a != b);
                ensure!(differing.is_none(), "differs from byte {differing:?} on");
                Ok(())
            },
        );
        played.with_context(|| node.to_string())?;
    }
    Ok(())
}

/// vivid moves the picture on by four pixels at each of its frames, those that it has no buffer for included: frame
/// number N of a stream is turned by 4 N.
fn moving() -> anyhow::Result<()> {
    daemon::shared()?;
    let picture = Picture::take()?;
    for node in [real(VMALLOC), ours(VMALLOC), ours(CONTIG)] {
        let moving = Control::set(node.number, "horizontal_movement", 6, 3)?;
        let mut places = Vec::new();
        let played = stream(
            &node.open()?,
            picture.bytes().len(),
            200,
            |number| number % 7,
            |_, sequence, frame| {
                places.push((sequence, picture.turn(frame)?));
                Ok(())
            },
        );
        drop(moving);
        played.with_context(|| node.to_string())?;
        // Two frames may bear one number when its clock is late; from then on the picture is ahead by one.
        let ahead = |(sequence, turn): (u32, usize)| (turn / 4 + 80 - sequence as usize % 80) % 80;
        let strays: Vec<_> = places.iter().filter(|place| ahead(**place) > 2).collect();
        ensure!(
            strays.is_empty(),
            "{node}: of {places:?} these are not their own: {strays:?}"
        );
        ensure!(
            places.windows(2).all(|two| two[0].1 != two[1].1),
            "{node}: a frame came twice: {places:?}"
        );
        figure(format!(
            "{node}: 200 frames of a moving picture in their own buffers, numbers up to {:?}",
            places.last()
        ));
    }
    Ok(())
}

/// How memory is taken away: `size` bytes of it hold the frame.
type Taker = (&'static str, fn(pages: &Pages, size: usize));

const TAKERS: &[Taker] = &[
    ("all unmapped", |pages, _| pages.unmap(0, pages.len())),
    ("a page in the middle unmapped", |pages, _| {
        pages.unmap(4 * PAGE, PAGE)
    }),
    ("the last page unmapped", |pages, size| {
        pages.unmap(size.next_multiple_of(PAGE) - PAGE, PAGE);
    }),
    ("made read-only", |pages, _| {
        // It fails only for pages that are not there, which shows in the outcome.
        let _ = pages.protect(0, pages.len(), Access::ReadOnly);
    }),
];

/// A driver has pinned the pages and writes to them, unseen; ours says that the frame is lost.
fn taken_away() -> anyhow::Result<()> {
    daemon::shared()?;
    for (how, take) in TAKERS {
        let play = |node: Node| -> anyhow::Result<Vec<String>> {
            let video = node.open()?;
            let size = video.sizeimage()?;
            let (pages, others) = (Pages::new(size as usize)?, Pages::new(size as usize)?);
            video.reqbufs(2)?;
            video.qbuf(0, pages.at(0), size)?;
            take(&pages, size as usize);
            video.streamon()?;
            let first = video.dqbuf().map(|buffer| buffer.flags & buf_flag::ERROR != 0);
            video.qbuf(0, others.at(0), size)?;
            let second = video.dqbuf().map(|buffer| buffer.flags & buf_flag::ERROR != 0);
            Ok(vec![
                format!("error flag: {first:?}"),
                format!("with other memory: {second:?}"),
            ])
        };
        let told = |flag| {
            vec![
                format!("error flag: Ok({flag})"),
                "with other memory: Ok(false)".to_owned(),
            ]
        };
        equal(&told(false), &play(real(VMALLOC))?).with_context(|| format!("{how}, real node"))?;
        equal(&told(true), &play(ours(VMALLOC))?).with_context(|| format!("{how}, ours"))?;
    }
    Ok(())
}

fn play(node: Node, mode: &str) -> anyhow::Result<Vec<String>> {
    let said = run(
        "address_spaces",
        &[mode, &node.to_string()],
        Duration::from_secs(10),
    )
    .with_context(|| format!("{mode} on {node}"))?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// Both nodes must say these lines.
fn both(mode: &str, lines: &[&str]) -> anyhow::Result<()> {
    each(mode, lines, lines)
}

/// The real node must say these lines, ours those.
fn each(mode: &str, native: &[&str], served: &[&str]) -> anyhow::Result<()> {
    daemon::shared()?;
    let owned = |lines: &[&str]| -> Vec<String> { lines.iter().copied().map(str::to_owned).collect() };
    equal(&owned(native), &play(real(VMALLOC), mode)?)
        .with_context(|| format!("{mode}: real = expected, ours = the real node"))?;
    for node in [ours(VMALLOC), ours(CONTIG)] {
        equal(&owned(served), &play(node, mode)?)
            .with_context(|| format!("{mode}: real = expected, ours = {node}"))?;
    }
    Ok(())
}

fn forked() -> anyhow::Result<()> {
    both(
        "fork-dequeue",
        &[
            "parent: QBUF of 0: ok",
            "child: DQBUF: buffer 0",
            "child: memory of 0: nothing",
            "parent: memory of 0: the frame",
        ],
    )?;
    // The memory of a process that has ended can be written to by a driver, unseen; ours tells.
    let of = |second| {
        [
            "parent: QBUF of 0: ok",
            "child: QBUF of 1: ok",
            "parent: DQBUF: buffer 0",
            second,
            "parent: memory of 0: the frame",
            "parent: memory of 1: nothing",
        ]
    };
    each(
        "fork-both",
        &of("parent: DQBUF: buffer 1"),
        &of("parent: DQBUF: buffer 1, damaged"),
    )?;
    // vb2 does not look again at a pointer and length that it knows, and writes to the parent's pages, which nobody
    // wants; ours writes to the memory of the process that has queued the buffer.
    let of = |child, parent| {
        [
            "parent: QBUF of 0: ok",
            "parent: DQBUF: buffer 0",
            "child: QBUF of 0: ok",
            "child: DQBUF: buffer 0",
            child,
            parent,
        ]
    };
    each(
        "fork-same-pointer",
        &of("child: memory of 0: nothing", "parent: memory of 0: the frame"),
        &of("child: memory of 0: the frame", "parent: memory of 0: nothing"),
    )
}

fn prepared() -> anyhow::Result<()> {
    both(
        "fork-prepared",
        &[
            "parent: PREPARE_BUF of 0: ok",
            "child: QBUF of 0: ok",
            "child: DQBUF: buffer 0",
            "child: memory of 0: nothing",
            "parent: memory of 0: the frame",
        ],
    )
}

fn executed() -> anyhow::Result<()> {
    // The old memory is gone: a driver does not notice, ours tells.
    each(
        "exec",
        &[
            "before: QBUF of 0: ok",
            "new: DQBUF: buffer 0",
            "new: memory of 0: nothing",
        ],
        &[
            "before: QBUF of 0: ok",
            "new: DQBUF: buffer 0, damaged",
            "new: memory of 0: nothing",
        ],
    )?;
    // Here it lives on in a process that shared it.
    both(
        "clone-exec",
        &[
            "before: QBUF of 0: ok",
            "old: DQBUF: buffer 0",
            "old: memory of 0: the frame",
            "new: memory of 0: nothing",
        ],
    )
}

fn threads() -> anyhow::Result<()> {
    both(
        "first-thread-ends",
        &[
            "second thread: QBUF of 0: ok",
            "second thread: DQBUF: buffer 0",
            "second thread: memory of 0: the frame",
        ],
    )?;
    both(
        "queueing-thread-ends",
        &[
            "second thread: QBUF of 0: ok",
            "first thread: DQBUF: buffer 0",
            "first thread: memory of 0: the frame",
        ],
    )?;
    both(
        "undumpable",
        &[
            "undumpable: QBUF of 0: ok",
            "undumpable: DQBUF: buffer 0",
            "undumpable: memory of 0: the frame",
        ],
    )
}
