//! Whole captures by v4l2-ctl: bytes and frame rate.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::errno::Errno;

use crate::client::run;
use crate::daemon;
use crate::report::figure;
use crate::setup::{CONTIG, Test, VMALLOC};
use crate::video::{Node, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "capture::v4l2_ctl_gets_the_same_bytes_at_the_same_rate_from_vmalloc",
        || compare(VMALLOC),
    ),
    (
        "capture::v4l2_ctl_gets_the_same_bytes_at_the_same_rate_from_dma_contig",
        || compare(CONTIG),
    ),
    (
        "capture::the_dma_contig_device_refuses_userptr_and_ours_serves_it",
        refused,
    ),
];

const FRAMES: usize = 60;
const SIZES: &[(&str, &str)] = &[("width=320,height=180", "40"), ("width=640,height=360", "30")];

/// One capture: the bytes, the frame rate by the driver's timestamps, and how many frames were missed.
struct Capture {
    bytes: Vec<u8>,
    rate: f64,
    missed: i64,
}

fn capture(node: Node, method: &str) -> anyhow::Result<Capture> {
    let (path, file) = (node.to_string(), "/tmp/frames");
    let to = format!("--stream-to={file}");
    let count = format!("--stream-count={FRAMES}");
    let args = ["-d", &path, method, &count, &to, "--verbose"];
    let output = run("v4l2-ctl", &args, Duration::from_secs(30))?;
    let (sequences, stamps) = (numbers(&output, "seq:"), numbers(&output, "ts:"));
    ensure!(
        sequences.len() == FRAMES && stamps.len() == FRAMES,
        "{node}: not {FRAMES} frames:\n{output}"
    );
    let bytes = fs::read(file)?;
    fs::remove_file(file)?;
    let (last, gaps) = (FRAMES - 1, f64::from(u32::try_from(FRAMES - 1)?));
    // Whole numbers, far below 2^53.
    #[allow(clippy::cast_possible_truncation)]
    let missed = (sequences[last] - sequences[0] - gaps) as i64;
    Ok(Capture {
        bytes,
        rate: gaps / (stamps[last] - stamps[0]),
        missed,
    })
}

/// The numbers that stand behind `label` in the lines about dequeued buffers.
fn numbers(output: &str, label: &str) -> Vec<f64> {
    let frames = output.lines().filter(|line| line.contains("dqbuf"));
    frames
        .filter_map(|line| line.split(label).nth(1)?.split_whitespace().next()?.parse().ok())
        .collect()
}

/// Rates are compared so often at most: a machine that is busy with something else is no slow daemon.
const TRIES: usize = 4;

fn compare(number: u32) -> anyhow::Result<()> {
    daemon::shared()?;
    for (size, rate) in SIZES {
        let mut slow = None;
        for _ in 0..TRIES {
            let (native, served) = rates(number, size, rate)?;
            slow = (served <= 0.95 * native).then_some((native, served));
            if slow.is_none() {
                break;
            }
        }
        if let Some((native, served)) = slow {
            anyhow::bail!("{served:.2} frames/s instead of {native:.2}, {TRIES} times");
        }
    }
    crate::setup::devices()
}

/// The rates of the real node and of ours, whose bytes are the same.
fn rates(number: u32, size: &str, rate: &str) -> anyhow::Result<(f64, f64)> {
    let path = real(number).to_string();
    let format = format!("{size},pixelformat=YUYV");
    run(
        "v4l2-ctl",
        &["-d", &path, "-v", &format, "-p", rate],
        Duration::from_secs(10),
    )?;
    let native = capture(real(number), "--stream-mmap=4").context("real node, MMAP")?;
    let served = capture(ours(number), "--stream-user=4").context("our node, USERPTR")?;
    figure(format!(
        "{path} {size} at {rate}/s: real MMAP {:.2} frames/s ({} missed), ours USERPTR {:.2} ({} missed)",
        native.rate, native.missed, served.rate, served.missed
    ));
    let frame = real(number).open()?.sizeimage()? as usize;
    ensure!(
        native.bytes.len() == FRAMES * frame,
        "{} bytes from the real node",
        native.bytes.len()
    );
    ensure!(
        served.bytes.len() == native.bytes.len(),
        "{} bytes from ours",
        served.bytes.len()
    );
    ensure!(
        native.bytes.iter().any(|byte| *byte != native.bytes[0]),
        "the picture is of one colour"
    );
    let differing = native.bytes.iter().zip(&served.bytes).position(|(a, b)| a != b);
    if let Some(at) = differing {
        anyhow::bail!("frame {} differs from byte {} on", at / frame, at % frame);
    }
    Ok((native.rate, served.rate))
}

fn refused() -> anyhow::Result<()> {
    daemon::shared()?;
    let native = real(CONTIG).open()?.reqbufs(4);
    ensure!(
        native == Err(Errno::EINVAL),
        "the real node says {native:?}: nothing to serve"
    );
    let served = ours(CONTIG).open()?.reqbufs(4);
    ensure!(served == Ok(4), "ours says {served:?}");
    Ok(())
}
