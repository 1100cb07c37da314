//! The shim beside what else is in a program: libv4l where it really converts, and an allocator that counts.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::daemon;
use crate::nodes::{Found, Kind, vivid};
use crate::report::equal;
use crate::setup::Test;
use crate::shim::Seat;

pub const TESTS: &[(&str, Test)] = &[
    ("shim_beside::nothing_is_allocated_in_our_calls", quiet),
    ("shim_beside::libv4l_converts_before_and_after_us", converts),
];

const PATIENCE: Duration = Duration::from_secs(60);
const CONVERT: &str = "/usr/lib/x86_64-linux-gnu/libv4l/v4l2convert.so";

fn lines(seat: &Seat, words: &[&str]) -> anyhow::Result<Vec<String>> {
    let (status, said) = seat.play(words, PATIENCE)?;
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.push(status.to_string());
    Ok(lines)
}

/// Mapping, exporting and adopting included.
fn quiet() -> anyhow::Result<()> {
    daemon::shared()?;
    for instance in [0, 1] {
        let node = vivid(instance, Kind::VideoCapture)?;
        let native = lines(&Seat::real(&node), &["quiet", "NODE"])?;
        ensure!(
            native == ["nothing was allocated", "exit status: 0"],
            "{native:?}"
        );
        equal(&native, &lines(&Seat::preloaded(&node)?, &["quiet", "NODE"])?)?;
    }
    Ok(())
}

/// With its buffers turned upside down libv4l has buffers of its own, at offsets that only it knows: it must see REQBUFS
/// as the program says it, and what it makes of it must come to us.
fn converts() -> anyhow::Result<()> {
    daemon::shared()?;
    let node = vivid(0, Kind::VideoCapture)?;
    set_format(&node, "RGB3")?;
    let outcome = compare(&node);
    set_format(&node, "YUYV")?;
    outcome
}

fn set_format(node: &Found, format: &str) -> anyhow::Result<()> {
    let format = format!("--set-fmt-video=pixelformat={format},width=320,height=180");
    let (status, said) = Seat::real(node).play(&["v4l2-ctl", "-d", "NODE", &format], PATIENCE)?;
    ensure!(status.success(), "v4l2-ctl: {status}: {said}");
    Ok(())
}

fn compare(node: &Found) -> anyhow::Result<()> {
    for way in ["-c", "-e"] {
        let call = ["mmap_capture", way, "-n", "2", "-d", "NODE"];
        let seat = |seat: Seat| seat.with_environment("LIBV4LCONTROL_FLAGS=3");
        let native = lines(&seat(Seat::real(node).with_preload(&[CONVERT])?), &call)?;
        ensure!(
            native.iter().any(|line| line.ends_with("at 0xabcdef00")),
            "libv4l does not convert: {native:?}"
        );
        let before = Seat::preloaded_with(node, &[CONVERT], &[])?;
        equal(&native, &lines(&seat(before), &call)?).context("libv4l before us")?;
        let after = Seat::preloaded_with(node, &[], &[CONVERT])?;
        equal(&native, &lines(&seat(after), &call)?).context("libv4l after us")?;
    }
    Ok(())
}
