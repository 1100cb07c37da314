//! v4l2loopback, which has no USERPTR at all and whose users have asked for it since 2017: one program writes frames,
//! another captures them into its own memory through ours; and the other way round.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use vidcompat_proto::abi::v4l2::{V4l2Format, V4l2RequestBuffers, buf_type};
use zerocopy::FromZeros;

use crate::client::run;
use crate::daemon;
use crate::nodes::loopbacks;
use crate::report::figure;
use crate::setup::{Test, both_real};
use crate::sys::{PAGE, Pages, ioctl};
use crate::video::{Node, Video, buffer, command, memory, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "loopback::what_a_producer_writes_is_captured_into_user_pointers",
        capture,
    ),
    (
        "loopback::user_pointers_of_a_producer_reach_a_capturing_program",
        produce,
    ),
];

const WIDTH: u32 = 320;
const HEIGHT: u32 = 180;
const FRAME: usize = (WIDTH * HEIGHT * 2) as usize;
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two frames: the driver has no lock between who writes a buffer and who reads it, so the writer must not come
/// round before the reader is through.
const PACE: Duration = Duration::from_millis(40);

/// Frame `number` of so many bytes: every byte tells which frame it belongs to, and where.
fn frame(number: usize, size: usize) -> Vec<u8> {
    // Cut to 8 bits on purpose.
    let byte = |at: usize| (number.wrapping_mul(37) ^ at ^ (at >> 8)).to_le_bytes()[0];
    let mut bytes: Vec<u8> = (0..size).map(byte).collect();
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The numbers of these frames, each of which is whole; none comes before an earlier one.
fn numbers(bytes: &[u8], size: usize) -> anyhow::Result<Vec<usize>> {
    ensure!(
        bytes.len().is_multiple_of(size) && !bytes.is_empty(),
        "{} bytes, not frames of {size}",
        bytes.len()
    );
    let mut numbers = vec![];
    for (at, bytes) in bytes.chunks(size).enumerate() {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[..8]);
        let number = usize::from_le_bytes(number);
        let expected = frame(number, size);
        let differing = bytes.iter().zip(&expected).position(|(a, b)| a != b);
        ensure!(
            differing.is_none(),
            "frame {at}, number {number}: other bytes from {differing:?} on"
        );
        ensure!(
            numbers.last().is_none_or(|before| *before <= number),
            "frame {at} is number {number} after {numbers:?}"
        );
        numbers.push(number);
    }
    Ok(numbers)
}

/// The one that says OUTPUT until somebody writes, and CAPTURE then, as its users have it: of a node that says both
/// v4l2-ctl knows not what to do.
fn device() -> anyhow::Result<u32> {
    daemon::shared()?;
    loopbacks()?.last().context("no v4l2loopback")?.number()
}

/// Gives the OUTPUT side its format: bytes of a frame, which are whole pages.
fn set_format(node: Node) -> anyhow::Result<(Video, usize)> {
    let video = node.open()?;
    let mut format = V4l2Format::new_zeroed();
    format.buf_type = buf_type::VIDEO_OUTPUT;
    // struct v4l2_pix_format: width, height, pixelformat, field
    for (at, value) in [WIDTH, HEIGHT, u32::from_le_bytes(*b"YUYV"), 1]
        .iter()
        .enumerate()
    {
        format.fmt[4 * at..4 * at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    ioctl(&video, command::S_FMT, &mut format)?;
    let size = format.pix_sizeimage() as usize;
    ensure!(size >= FRAME, "{size} bytes");
    Ok((video, size))
}

/// Writes numbered frames to the real node until told to stop.
fn producer(node: Node, stop: &AtomicBool) -> anyhow::Result<usize> {
    let (video, _) = set_format(node)?;
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let written = nix::unistd::write(&video, &frame(number, FRAME))?;
        ensure!(written == FRAME, "{written} bytes written");
        thread::sleep(PACE);
    }
    Ok(number)
}

fn capture() -> anyhow::Result<()> {
    let number = device()?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let stop = Arc::clone(&stop);
        move || producer(real(number), &stop)
    });
    thread::sleep(Duration::from_millis(300));
    let outcome = capture_all(number);
    stop.store(true, Ordering::Relaxed);
    let written = writer.join().ok().context("the producer panicked")?;
    let written = written.context("the producer")?;
    outcome?;
    figure(format!("v4l2loopback: {written} frames written"));
    Ok(())
}

fn capture_all(number: u32) -> anyhow::Result<()> {
    let refused = real(number).open()?.reqbufs(2);
    ensure!(
        refused == Err(Errno::EINVAL),
        "the real node says {refused:?} to USERPTR: nothing to serve"
    );
    let to = "/tmp/loopback-frames";
    let output = format!("--stream-to={to}");
    let (native, served) = (real(number).to_string(), ours(number).to_string());
    let user = if both_real() {
        "--stream-mmap=4"
    } else {
        "--stream-user=4"
    };
    let ctl = |path, method| vec!["-d", path, method, "--stream-count=40", &output];
    let classic = ["-d", &served, "-n", "40", "-o", to];
    let mut captures = vec![
        ("real node, MMAP", "v4l2-ctl", ctl(&native, "--stream-mmap=4")),
        ("ours, v4l2-ctl", "v4l2-ctl", ctl(&served, user)),
    ];
    if !both_real() {
        captures.push(("ours, moving pointers", "capture_userptr", classic.to_vec()));
        let select = [&classic[..], &["-s", "-k"]].concat();
        captures.push(("ours, select", "capture_userptr", select));
    }
    for (what, program, arguments) in captures {
        // A leftover of an earlier one.
        let _ = fs::remove_file(to);
        run(program, &arguments, PATIENCE).context(what)?;
        let numbers = numbers(&fs::read(to)?, FRAME).context(what)?;
        let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
        ensure!(numbers.len() == 40 && last > first + 20, "{what}: {numbers:?}");
        figure(format!(
            "v4l2loopback, {what}: 40 frames, numbers {first} to {last}"
        ));
    }
    fs::remove_file(to)?;
    Ok(())
}

/// Gives numbered frames to the OUTPUT queue from its own memory, until told to stop.
fn userptr_producer(node: Node, stop: &AtomicBool) -> anyhow::Result<usize> {
    let (video, size) = set_format(node)?;
    let mut request = V4l2RequestBuffers {
        count: 8,
        buf_type: buf_type::VIDEO_OUTPUT,
        memory: memory::USERPTR,
        ..V4l2RequestBuffers::default()
    };
    video.reqbufs_raw(&mut request)?;
    let count = request.count as usize;
    let room = size + PAGE;
    let pages = Pages::new(count * room)?;
    let give = |index: u32, number: usize| -> anyhow::Result<()> {
        // Not at the beginning of a page.
        let at = index as usize * room + 16;
        pages.write(at, &frame(number, size))?;
        let length = u32::try_from(size)?;
        let mut given = buffer(index, pages.at(at), length);
        given.buf_type = buf_type::VIDEO_OUTPUT;
        given.bytesused = length;
        video.on_buffer(command::QBUF, given)?;
        Ok(())
    };
    let mut number = 0;
    while number < count {
        give(u32::try_from(number)?, number + 1)?;
        number += 1;
    }
    ioctl(&video, command::STREAMON, &mut buf_type::VIDEO_OUTPUT.clone())?;
    while !stop.load(Ordering::Relaxed) {
        let mut done = buffer(0, 0, 0);
        done.buf_type = buf_type::VIDEO_OUTPUT;
        let done = video.on_buffer(command::DQBUF, done)?;
        thread::sleep(PACE);
        number += 1;
        give(done.index, number)?;
    }
    Ok(number)
}

fn produce() -> anyhow::Result<()> {
    let number = device()?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let stop = Arc::clone(&stop);
        move || match both_real() {
            true => producer(real(number), &stop),
            false => userptr_producer(ours(number), &stop),
        }
    });
    thread::sleep(Duration::from_millis(300));
    let (native, to) = (real(number).to_string(), "/tmp/loopback-frames");
    let output = format!("--stream-to={to}");
    // The ring may still hold frames that an earlier writer made, of another size.
    let arguments = [
        "-d",
        &native,
        "--stream-mmap=4",
        "--stream-skip=10",
        "--stream-count=40",
        &output,
    ];
    let captured = run("v4l2-ctl", &arguments, PATIENCE);
    stop.store(true, Ordering::Relaxed);
    let written = writer.join().ok().context("the producer panicked")?;
    let written = written.context("the producer")?;
    captured?;
    let bytes = fs::read(to)?;
    fs::remove_file(to)?;
    let numbers = numbers(&bytes, bytes.len() / 40)?;
    figure(format!(
        "v4l2loopback, user pointers of a producer: {written} frames given, 40 captured"
    ));
    ensure!(
        numbers.len() == 40 && numbers[39] > numbers[0] + 20,
        "{numbers:?}"
    );
    Ok(())
}
