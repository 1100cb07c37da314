//! From a camera to a codec by the old way: the camera's MMAP buffers are user pointers for the codec's OUTPUT queue.
//! The real codec takes those of vb2-vmalloc; ours imports them, without a copy.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::client::{Client, run};
use crate::daemon;
use crate::nodes::{self, Kind, named};
use crate::report::figure;
use crate::setup::{Test, both_real};
use crate::status;
use crate::video::{Node, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "camera_to_codec::vim2m_reads_the_cameras_buffers_without_a_copy",
        || stream_to("vim2m", "YUYV", &[]),
    ),
    (
        "camera_to_codec::vicodec_encodes_the_cameras_buffers_without_a_copy",
        // m2m_userptr has to drain an encoder: it reads files, which end.
        || stream_to("stateful-encoder", "FWHT", &["-e"]),
    ),
];

const PATIENCE: Duration = Duration::from_secs(60);
const FRAMES: usize = 20;
const FRAME: usize = 640 * 360 * 3;
const FORMAT: [&str; 6] = ["-w", "640", "-h", "360", "-F", "RGB3"];
const GIVEN: &str = "/tmp/codec-given";
const MADE: &str = "/tmp/codec-made";
const EXPECTED: &str = "/tmp/codec-expected";

/// On the real codec and on ours: what it makes of the camera's buffers is what the real one makes of the same frames
/// in a program's own memory.
fn stream_to(codec: &str, format: &str, more: &[&str]) -> anyhow::Result<()> {
    daemon::shared()?;
    let camera = nodes::vivid(0, Kind::VideoCapture)?.real().display().to_string();
    // The frames differ: bars that move. No clock is drawn.
    let moving = ["-d", &camera, "-c", "osd_text_mode=2,horizontal_movement=0"];
    run("v4l2-ctl", &moving, PATIENCE)?;
    let number = named(codec)?.number()?;
    let outcome = [real(number), ours(number)].into_iter().try_for_each(|node| {
        stream(&camera, node, format)
            .and_then(|()| check(real(number), format, more))
            .with_context(|| node.to_string())
    });
    let still = ["-d", &camera, "-c", "osd_text_mode=0,horizontal_movement=3"];
    run("v4l2-ctl", &still, PATIENCE)?;
    outcome
}

/// Frames of the camera go to the codec: to [`GIVEN`], and what it makes of them to [`MADE`].
fn stream(camera: &str, node: Node, format: &str) -> anyhow::Result<()> {
    let (path, frames) = (node.to_string(), FRAMES.to_string());
    let ends = ["-c", camera, "-d", &path, "-f", format, "-i", GIVEN, "-o", MADE];
    let arguments = [&ends[..], &FORMAT, &["-n", &frames, "-W"]].concat();
    let mut client = Client::start("camera_to_codec", &arguments)?;
    let said = client.line()?;
    ensure!(said == "streaming", "{said}");
    if node == ours(node.number) && !both_real() {
        let queue = status::queue(node, client.pid(), "video output")?;
        let counters = &queue["counters"];
        ensure!(
            counters["imported"] == FRAMES && counters["copied"] == 0 && counters["faults"] == 0,
            "not without a copy: {queue}"
        );
        figure(format!("camera to {format}: {counters}"));
    }
    client.close_stdin();
    let status = client.end(PATIENCE)?;
    ensure!(status.success(), "{status}: {}", client.rest());
    Ok(())
}

/// Is [`MADE`] what the real codec makes of [`GIVEN`]?
fn check(codec: Node, format: &str, more: &[&str]) -> anyhow::Result<()> {
    let path = codec.to_string();
    let files = ["-d", &path, "-f", format, "-i", GIVEN, "-o", EXPECTED];
    run("m2m_userptr", &[&files[..], &FORMAT, more].concat(), PATIENCE)?;
    let (given, made, expected) = (fs::read(GIVEN)?, fs::read(MADE)?, fs::read(EXPECTED)?);
    ensure!(given.len() == FRAMES * FRAME, "{} bytes given", given.len());
    let different = given
        .chunks(FRAME)
        .zip(given.chunks(FRAME).skip(1))
        .all(|(a, b)| a != b);
    ensure!(different, "the camera gave the same frame twice");
    ensure!(
        made.len() > FRAMES * 1000 && made == expected,
        "{} bytes made, {} expected, or they differ",
        made.len(),
        expected.len()
    );
    for file in [GIVEN, MADE, EXPECTED] {
        fs::remove_file(file)?;
    }
    Ok(())
}
