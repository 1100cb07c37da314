//! v4l2loopback, which has no USERPTR at all and whose users have asked for it since 2017: one program writes frames,
//! another captures them into its own memory through ours; and the other way round.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use vidcompat_proto::abi::v4l2::{V4l2Format, buf_type};
use zerocopy::FromZeros;

use crate::client::{Client, run};
use crate::daemon;
use crate::nodes::loopbacks;
use crate::report::figure;
use crate::setup::{Test, both_real};
use crate::sys::ioctl;
use crate::video::{Node, command, ours, real};

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

/// Frame `number`: every byte tells which frame it belongs to, and where.
fn frame(number: usize) -> Vec<u8> {
    // Cut to 8 bits on purpose.
    let byte = |at: usize| (number.wrapping_mul(37) ^ at ^ (at >> 8)).to_le_bytes()[0];
    let mut bytes: Vec<u8> = (0..FRAME).map(byte).collect();
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The numbers of these frames, each of which is whole; none comes before an earlier one.
fn numbers(bytes: &[u8]) -> anyhow::Result<Vec<usize>> {
    ensure!(bytes.len().is_multiple_of(FRAME), "{} bytes", bytes.len());
    let mut numbers = vec![];
    for (at, bytes) in bytes.chunks(FRAME).enumerate() {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[..8]);
        let number = usize::from_le_bytes(number);
        let expected = frame(number);
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

/// The one that does not hide its capabilities.
fn device() -> anyhow::Result<u32> {
    daemon::shared()?;
    loopbacks()?.first().context("no v4l2loopback")?.number()
}

/// Writes numbered frames to the real node until told to stop.
fn producer(node: Node, stop: Arc<AtomicBool>) -> anyhow::Result<usize> {
    let video = node.open()?;
    let mut format = V4l2Format::new_zeroed();
    format.buf_type = buf_type::VIDEO_OUTPUT;
    ioctl(&video, command::G_FMT, &mut format)?;
    // struct v4l2_pix_format: width, height, pixelformat, field
    for (at, value) in [WIDTH, HEIGHT, u32::from_le_bytes(*b"YUYV"), 1]
        .iter()
        .enumerate()
    {
        format.fmt[4 * at..4 * at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    ioctl(&video, command::S_FMT, &mut format)?;
    ensure!(format.pix_sizeimage() as usize == FRAME, "another format");
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        ensure!(
            nix::unistd::write(&video, &frame(number))? == FRAME,
            "not a whole frame"
        );
        thread::sleep(Duration::from_millis(10));
    }
    Ok(number)
}

fn capture() -> anyhow::Result<()> {
    let number = device()?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = thread::spawn({
        let stop = Arc::clone(&stop);
        move || producer(real(number), stop)
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
        let numbers = numbers(&fs::read(to)?).context(what)?;
        let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
        ensure!(numbers.len() == 40 && last > first + 20, "{what}: {numbers:?}");
        figure(format!(
            "v4l2loopback, {what}: 40 frames, numbers {first} to {last}"
        ));
    }
    fs::remove_file(to)?;
    Ok(())
}

fn produce() -> anyhow::Result<()> {
    let number = device()?;
    let (from, to) = ("/tmp/loopback-input", "/tmp/loopback-frames");
    let input: Vec<u8> = (1..=200).flat_map(frame).collect();
    fs::write(from, input)?;
    let method = if both_real() {
        "--stream-out-mmap=4"
    } else {
        "--stream-out-user=4"
    };
    let path = ours(number).to_string();
    let (format, file) = (
        format!("-xwidth={WIDTH},height={HEIGHT},pixelformat=YUYV"),
        format!("--stream-from={from}"),
    );
    // It takes its time between two frames, so that a reader can follow.
    let arguments = ["-d", &path, &format, method, &file, "--stream-count=200"];
    let mut producer = Client::start("v4l2-ctl", &arguments)?;
    thread::sleep(Duration::from_millis(100));
    let native = real(number).to_string();
    let output = format!("--stream-to={to}");
    let captured = run(
        "v4l2-ctl",
        &["-d", &native, "--stream-mmap=4", "--stream-count=20", &output],
        PATIENCE,
    );
    // It ends after its file, or may be waiting for a reader that is gone.
    producer.signal(nix::sys::signal::Signal::SIGTERM)?;
    let status = producer.end(PATIENCE)?;
    let said = producer.rest();
    captured.with_context(|| format!("the producer: {status}: {said}"))?;
    ensure!(
        status.success() || status.signal().is_some(),
        "the producer: {status}: {said}"
    );
    let numbers = numbers(&fs::read(to)?)?;
    figure(format!(
        "v4l2loopback, user pointers of a producer: frames {numbers:?}"
    ));
    ensure!(numbers.len() == 20, "{numbers:?}");
    Ok(())
}
