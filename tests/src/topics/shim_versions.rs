//! The shim and a daemon that is not there, not there any more, or of another version: the program gets what it would
//! without the shim.

use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::client::AT_ONCE;
use crate::daemon::{self, Daemon};
use crate::nodes::{Found, Kind, vivid};
use crate::picture::Picture;
use crate::report::figure;
use crate::setup::Test;
use crate::shim::{Seat, other_version};

pub const TESTS: &[(&str, Test)] = &[
    ("shim_versions::a_shim_of_another_version_is_as_none", other),
    ("shim_versions::a_killed_daemon_is_an_error_and_no_crash", killed),
    ("shim_versions::a_real_node_is_left_alone", real_node),
];

const PATIENCE: Duration = Duration::from_secs(60);
const FILE: &str = "/tmp/shim-versions";

fn camera() -> anyhow::Result<(Found, String)> {
    let node = vivid(0, Kind::VideoCapture)?;
    let path = node.real().display().to_string();
    Ok((node, path))
}

/// v4l2-ctl's capture into [`FILE`]: whether that is the picture, and what it has said.
fn capture(seat: &Seat, memory: &str, picture: &Picture) -> anyhow::Result<(bool, String)> {
    drop(std::fs::remove_file(FILE));
    let (stream, to) = (format!("--stream-{memory}=3"), format!("--stream-to={FILE}"));
    let (status, said) = seat.play(
        &["v4l2-ctl", "-d", "NODE", &stream, "--stream-count=3", &to],
        PATIENCE,
    )?;
    let bytes = std::fs::read(FILE).unwrap_or_default();
    Ok((status.success() && bytes == picture.bytes().repeat(3), said))
}

fn other() -> anyhow::Result<()> {
    daemon::shared()?;
    let (node, _) = camera()?;
    let picture = Picture::take()?;
    let seat = Seat::plain(&node).with_preload(&[&other_version()?])?;
    let (taken, said) = capture(&seat, "mmap", &picture)?;
    let (_, without) = capture(&Seat::plain(&node), "mmap", &picture)?;
    ensure!(
        !taken && said == without && said.contains("VIDIOC_REQBUFS returned -1 (Invalid argument)"),
        "another version: {said}, without shim: {without}"
    );
    let (taken, said) = capture(&seat, "user", &picture)?;
    ensure!(taken, "another version, USERPTR: {said}");
    // And that the right one works here.
    let (taken, said) = capture(&Seat::preloaded(&node)?, "mmap", &picture)?;
    ensure!(taken, "{said}");
    Ok(())
}

fn killed() -> anyhow::Result<()> {
    daemon::stop_shared();
    let (node, path) = camera()?;
    let picture = Picture::take()?;
    let play = |seat: &Seat, memory: &str| -> anyhow::Result<String> {
        let mut daemon = Daemon::start(&["--device", &path])?;
        let mut client = seat.start(&["guest-suite", "--helper", "until-error", "NODE", memory])?;
        let said = client.line()?;
        ensure!(
            said.starts_with("streams, "),
            "{memory}: {said} {}",
            client.rest()
        );
        daemon.end(Signal::SIGKILL, AT_ONCE)?;
        let status = client.end(2 * AT_ONCE)?;
        let rest = client.rest();
        ensure!(status.success(), "{memory}: {status}: {rest}");
        figure(format!(
            "{} by {memory} when the daemon is killed: {said}; {}",
            seat.name,
            rest.trim()
        ));
        Ok(rest
            .split(", /")
            .next()
            .unwrap_or_default()
            .trim_end_matches(", memory\n")
            .to_owned())
    };
    let errors = |text: &str| text.split(", ").take(2).map(str::to_owned).collect::<Vec<_>>();
    let without = errors(&play(&Seat::plain(&node), "userptr")?);
    for memory in ["userptr", "mmap"] {
        let with = errors(&play(&Seat::preloaded(&node)?, memory)?);
        ensure!(with == without, "{memory}: {with:?} instead of {without:?}");
    }
    // With another daemon all is as before.
    let _daemon = Daemon::start(&["--device", &path])?;
    let (taken, said) = capture(&Seat::preloaded(&node)?, "mmap", &picture)?;
    ensure!(taken, "{said}");
    let (taken, said) = capture(&Seat::preloaded(&node)?, "user", &picture).context("USERPTR")?;
    ensure!(taken, "{said}");
    Ok(())
}

/// No daemon, and a node that is not ours.
fn real_node() -> anyhow::Result<()> {
    daemon::stop_shared();
    let (node, _) = camera()?;
    let picture = Picture::take()?;
    let library = crate::shim::library()?;
    let seat = Seat::real(&node).with_preload(&[library.to_str().context("no text")?])?;
    for memory in ["mmap", "user"] {
        let (taken, said) = capture(&seat, memory, &picture)?;
        ensure!(taken, "{memory}: {said}");
    }
    Ok(())
}
