//! Memory-to-memory devices, with user pointers on both queues: vim2m converts, vicodec encodes and decodes. Every
//! stage on the real node and on ours, from the same input: the same bytes, flags, timestamps, events and errnos.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::{run, run_any};
use crate::daemon;
use crate::modules::reload;
use crate::nodes::named;
use crate::report::{equal, figure, same};
use crate::setup::Test;
use crate::video::{Node, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    ("m2m::vim2m_converts_to_the_same_bytes", || convert(&[])),
    ("m2m::vim2m_with_a_thread_asleep_in_dqbuf_on_each_queue", || {
        convert(&["-t"])
    }),
    ("m2m::vicodec_encodes_and_decodes_to_the_same_bytes", || {
        codec(false)
    }),
    (
        "m2m::vicodec_encodes_and_decodes_to_the_same_bytes_multi_planar",
        || codec(true),
    ),
    ("m2m::v4l2_ctl_streams_through_vim2m_and_vicodec", v4l2_ctl),
];

const PATIENCE: Duration = Duration::from_secs(60);
const INPUT: &str = "/tmp/m2m-input";
/// Smallest picture of vicodec, in whole blocks of 16.
const WIDTH: usize = 640;
const HEIGHT: usize = 368;

/// `count` frames of `bytes` bytes that are neither alike nor noise, so that an encoder has something to save.
fn frames(count: usize, bytes: usize) -> Vec<u8> {
    let byte = |at: usize| {
        let (frame, place) = (at / bytes, at % bytes);
        // Slopes that wander from frame to frame, and a little roughness; cut to 8 bits on purpose.
        (((place / 3 + frame * 5) % 256) ^ (place / WIDTH % 7)).to_le_bytes()[0]
    };
    (0..count * bytes).map(byte).collect()
}

/// One run of the client: what it says, queue by queue, and the bytes of the CAPTURE queue.
fn client(node: Node, input: &str, arguments: &[&str]) -> anyhow::Result<(Vec<String>, Vec<u8>)> {
    let (path, to) = (node.to_string(), "/tmp/m2m-captured");
    let common = ["-d", &path, "-i", input, "-o", to];
    let (status, said) = run_any("m2m_userptr", &[&common, arguments].concat(), PATIENCE)?;
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    // STOP marks a buffer that waits, without a number, or the next one to come, which gets one: when all the buffers
    // have been filled already that is chance.
    for line in lines
        .iter_mut()
        .filter(|line| line.contains(" bytes 0 flags 0x104000 "))
    {
        let (_, rest) = line.split_once(" bytes ").unwrap_or_default();
        *line = format!("cap: last, bytes {rest}");
    }
    // How the queues interleave is chance; each of them keeps its order.
    lines.sort_by_key(|line| line.split(':').next().map(str::to_owned));
    lines.push(status.to_string());
    let bytes = fs::read(to)?;
    fs::remove_file(to)?;
    Ok((lines, bytes))
}

/// The client on both nodes: the same lines and the same bytes, which are returned.
fn both(number: u32, input: &str, arguments: &[&str]) -> anyhow::Result<(Vec<String>, Vec<u8>)> {
    let mut native = client(real(number), input, arguments).context("on the real node")?;
    ensure!(
        native.0.last().is_some_and(|status| status == "exit status: 0"),
        "on the real node: {:?}",
        native.0
    );
    let served = client(ours(number), input, arguments).context("on ours")?;
    equal(&native.0, &served.0).with_context(|| format!("{arguments:?}"))?;
    ensure!(
        native.1.len() == served.1.len(),
        "{arguments:?}: {} bytes from the real node, {} from ours",
        native.1.len(),
        served.1.len()
    );
    let differing = native.1.iter().zip(&served.1).position(|(a, b)| a != b);
    ensure!(
        differing.is_none(),
        "{arguments:?}: bytes differ from {differing:?} on"
    );
    native.0.sort();
    Ok(native)
}

/// Is there a line of this queue with all these words?
fn says(lines: &[String], queue: &str, words: &str) -> bool {
    lines
        .iter()
        .any(|line| line.starts_with(queue) && line.contains(words))
}

fn convert(more: &[&str]) -> anyhow::Result<()> {
    daemon::shared()?;
    let number = named("vim2m")?.number()?;
    fs::write(INPUT, frames(12, 320 * 180 * 3))?;
    for (from, to, bytes) in [
        ("RGB3", "YUYV", 320 * 180 * 2),
        ("RGB3", "BGR3", 320 * 180 * 3),
        ("RGBP", "RGB3", 320 * 180 * 3),
    ] {
        let (lines, captured) = both(number, INPUT, &[&["-F", from, "-f", to], more].concat())?;
        // Two bytes per pixel make more frames of the same file.
        let count = if from == "RGBP" { 18 } else { 12 };
        ensure!(
            captured.len() == count * bytes && captured.iter().any(|byte| *byte != captured[0]),
            "{from} to {to}: {} bytes",
            captured.len()
        );
        ensure!(
            says(&lines, "cap", "time 1003.000021 timecode frame 3"),
            "timestamps are not copied: {lines:?}"
        );
    }
    Ok(())
}

fn codec(multi_planar: bool) -> anyhow::Result<()> {
    if !multi_planar {
        return encode_and_decode("dev: single-planar");
    }
    reload("vicodec", &["multiplanar=1"])?;
    let outcome = encode_and_decode("dev: multi-planar");
    reload("vicodec", &[])?;
    outcome
}

fn encode_and_decode(planar: &str) -> anyhow::Result<()> {
    daemon::shared()?;
    let (encoder, decoder) = (
        named("stateful-encoder")?.number()?,
        named("stateful-decoder")?.number()?,
    );
    let raw = frames(20, WIDTH * HEIGHT * 3 / 2);
    fs::write(INPUT, &raw)?;
    let (width, height) = (WIDTH.to_string(), HEIGHT.to_string());
    let size = ["-w", &width, "-h", &height];

    let encode = [&size[..], &["-F", "YU12", "-f", "FWHT", "-e"]].concat();
    let mut stream = vec![];
    for threads in [&[][..], &["-t"]] {
        let (lines, encoded) = both(encoder, INPUT, &[&encode, threads].concat())?;
        ensure!(lines.iter().any(|line| line == planar), "{lines:?}");
        ensure!(
            says(&lines, "cap", "after the last: EPIPE") && says(&lines, "dev", "event 2"),
            "not drained: {lines:?}"
        );
        ensure!(
            (10_000..raw.len()).contains(&encoded.len()),
            "{} bytes encoded",
            encoded.len()
        );
        stream = encoded;
    }
    let coded = "/tmp/m2m-stream";
    fs::write(coded, &stream)?;
    // A stateful decoder takes the stream in any pieces, of many frames or of less than one.
    for piece in ["300000", "20000"] {
        let decode = [&size[..], &["-F", "FWHT", "-D", "-p", piece]].concat();
        let (lines, decoded) = both(decoder, coded, &decode)?;
        ensure!(
            says(&lines, "dev", "event 5, changes 0x1") && says(&lines, "cap", "after the last: EPIPE"),
            "{lines:?}"
        );
        ensure!(decoded.len() == raw.len(), "{} bytes decoded", decoded.len());
        let error = decoded
            .iter()
            .zip(&raw)
            .map(|(a, b)| usize::from(a.abs_diff(*b)))
            .sum::<usize>()
            / raw.len();
        figure(format!(
            "vicodec, {planar}: {} bytes became {}, and came back with a mean error of {error}",
            raw.len(),
            stream.len()
        ));
        ensure!(
            error < 40,
            "what was decoded is not what was encoded: mean error {error}"
        );
    }
    Ok(())
}

fn v4l2_ctl() -> anyhow::Result<()> {
    daemon::shared()?;
    let (vim2m, encoder) = (named("vim2m")?.number()?, named("stateful-encoder")?.number()?);
    fs::write(INPUT, frames(8, WIDTH * HEIGHT * 3))?;
    for (number, from, to) in [(vim2m, "RGB3", "YUYV"), (encoder, "YU12", "FWHT")] {
        let stream = |node: Node| -> anyhow::Result<Vec<String>> {
            let (path, captured) = (node.to_string(), "/tmp/m2m-captured");
            let size = format!("width={WIDTH},height={HEIGHT},pixelformat");
            let (out, cap) = (format!("-x{size}={from}"), format!("-v{size}={to}"));
            let (input, output) = (
                format!("--stream-from={INPUT}"),
                format!("--stream-to={captured}"),
            );
            let arguments = [
                "-d",
                &path,
                &out,
                &cap,
                "--stream-user",
                "--stream-out-user",
                &input,
                &output,
            ];
            // More than enough for the frames that there are, of which the last one starts again otherwise.
            run(
                "v4l2-ctl",
                &[&arguments[..], &["--stream-count=6"]].concat(),
                PATIENCE,
            )?;
            let bytes = fs::read(captured)?;
            ensure!(bytes.len() > 10_000, "{} bytes", bytes.len());
            let sum = bytes.iter().fold(0u64, |sum, byte| {
                sum.wrapping_mul(0x0100_0000_01b3).wrapping_add(u64::from(*byte))
            });
            fs::remove_file(captured)?;
            Ok(vec![format!("{} bytes, sum {sum:#x}", bytes.len())])
        };
        let lines = same(number, stream)?;
        figure(format!("v4l2-ctl {from} to {to}: {}", lines.join(", ")));
    }
    Ok(())
}
