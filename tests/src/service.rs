//! What tests of the daemon as a service need: a configuration, devices that come and go, and patience.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::stat::{major, minor};

use crate::client::run;
use crate::daemon::Daemon;
use crate::modules::again;
use crate::setup::devices;
use crate::sys::Pages;
use crate::video::{Video, buf_flag};

/// The configuration of the daemons that [`start`] makes.
pub const CONFIG: &str = "/tmp/vidcompat-test.toml";
/// Long enough for anything that is to happen by itself, also under an emulator.
pub const SOON: Duration = Duration::from_secs(5);

/// Writes the configuration.
pub fn configure(text: &str) -> anyhow::Result<()> {
    Ok(fs::write(CONFIG, text)?)
}

/// A daemon with this configuration.
pub fn start(text: &str) -> anyhow::Result<Daemon> {
    configure(text)?;
    Daemon::start(&["--config", CONFIG])
}

/// Waits until `is_so`; how long that took.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    while !is_so() {
        ensure!(begin.elapsed() < SOON, "still not after {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(begin.elapsed())
}

/// Waits until the daemon has said something.
pub fn until_said(daemon: &Daemon, text: &str) -> anyhow::Result<Duration> {
    until(text, || daemon.log().contains(text))
}

/// The device number of what is at `path`.
pub fn number(path: &str) -> Option<(u64, u64)> {
    let node = fs::symlink_metadata(path).ok()?;
    Some((major(node.rdev()), minor(node.rdev())))
}

/// Is the node there, and ours?
pub fn is_ours(path: &str) -> bool {
    number(path).is_some_and(|(_, minor)| minor >= 256)
}

/// Is the node there, and the driver's?
pub fn is_real(path: &str) -> bool {
    number(path).is_some_and(|(_, minor)| minor < 256)
}

/// Opens the node, and takes a frame by USERPTR.
pub fn works(path: &str) -> anyhow::Result<()> {
    let frame = || -> anyhow::Result<()> {
        let video = Video::at(Path::new(path), 0)?;
        let size = video.sizeimage().context("G_FMT")?;
        let memory = Pages::new(size as usize)?;
        video.reqbufs(2).context("REQBUFS")?;
        video.qbuf(0, memory.at(0), size).context("QBUF")?;
        video.streamon().context("STREAMON")?;
        let buffer = video.dqbuf().context("DQBUF")?;
        ensure!(buffer.flags & buf_flag::ERROR == 0, "a damaged frame");
        Ok(())
    };
    frame().with_context(|| format!("{path} does not work"))
}

const DRIVER: &str = "/sys/bus/platform/drivers/vivid";

/// As when the cameras are pulled out, whoever has them open: both, for they are one device of vivid's.
pub fn unplug() -> anyhow::Result<()> {
    Ok(fs::write(format!("{DRIVER}/unbind"), "vivid.0")?)
}

/// As when they are put in again.
pub fn plug() -> anyhow::Result<()> {
    Ok(fs::write(format!("{DRIVER}/bind"), "vivid.0")?)
}

/// The cameras of this device set, whatever the test before has made of them.
pub fn cameras() -> anyhow::Result<()> {
    run("vidcompatd", &["--give-back"], SOON)?;
    match is_real("/dev/video0") && is_real("/dev/video1") {
        true => Ok(()),
        false => again("vivid").and_then(|()| devices()),
    }
}
