//! What stands around each test: devices in a known state, a watchdog, the daemons' log.

use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use vidcompat_proto::abi::v4l2::V4l2RequestBuffers;

use crate::client::{self, AT_ONCE};
use crate::daemon;
use crate::kinds;
use crate::nodes::{self, Kind};
use crate::report::figure;
use crate::screens;
use crate::video::{command, memory, real};

/// A test: an error is a failure.
pub type Test = fn() -> anyhow::Result<()>;

/// What devices the guest has: `tests/guest-tests --set` loads the modules and says which by `VIDCOMPAT_SET`. Each topic
/// belongs to one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Three plain webcams: [`VMALLOC`], [`CONTIG`], [`SPARE`].
    Cameras,
    /// Three vivids with nodes of every kind, inputs of every type and EDID: 0 single-planar, 1 multi-planar, 2
    /// single-planar and dma-contig. Their nodes are found by [`nodes::vivid`].
    Kinds,
    /// vim2m, vicodec, two v4l2loopback nodes (the second one says OUTPUT until somebody writes), and a vivid with a
    /// webcam and an output.
    M2m,
    /// Every kind of memory that a pointer may lie in: two plain webcams that take it ([`VMALLOC`], [`CONTIG`]), two whose
    /// buffers it may be ([`EXPORTER`], [`CONTIG_EXPORTER`]), vim2m; the framebuffers of vesafb, vfb and virtio-gpu, whose
    /// DRM node it also may be; and a PCI device that is all memory and has no driver.
    Memory,
    /// The same two webcams and bochs, which takes the graphics card over from vesafb.
    Bochs,
    /// What the client shim is for: three vivids with a webcam and an output each, of which 0 is vmalloc and its output
    /// HDMI, 1 is dma-contig, and 2 is multi-planar; vim2m; a v4l2loopback.
    Shim,
    /// Framebuffers: virtio-gpu with the console on it, bochs, vfb (see `screens`), and one plain webcam, [`VMALLOC`].
    Screens,
}

impl Set {
    /// The one of this guest.
    pub fn here() -> anyhow::Result<Self> {
        match std::env::var("VIDCOMPAT_SET").as_deref() {
            Err(_) | Ok("cameras") => Ok(Self::Cameras),
            Ok("kinds") => Ok(Self::Kinds),
            Ok("m2m") => Ok(Self::M2m),
            Ok("memory") => Ok(Self::Memory),
            Ok("bochs") => Ok(Self::Bochs),
            Ok("shim") => Ok(Self::Shim),
            Ok("screens") => Ok(Self::Screens),
            Ok(other) => bail!("there is no device set `{other}`"),
        }
    }
}

/// Vivid with USERPTR of its own.
pub const VMALLOC: u32 = 0;
/// Vivid that refuses USERPTR.
pub const CONTIG: u32 = 1;
/// Vivid for daemons that a test starts itself.
pub const SPARE: u32 = 2;
/// Vivid with an HDMI input, for daemons that a test starts itself.
pub const HDMI: u32 = 3;

/// In [`Set::Memory`] vivids whose buffers other devices are given: larger than a frame of these.
pub const EXPORTER: u32 = 2;
/// The same with dma-contig.
pub const CONTIG_EXPORTER: u32 = 3;

/// Is this the long run?
pub fn is_long() -> bool {
    std::env::var("VIDCOMPAT_LONG").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// Is the real node to take the place of ours (`VIDCOMPAT_BOTH_REAL=1`)? A test that then fails compares what differs
/// from run to run, and would say nothing about ours.
pub fn both_real() -> bool {
    std::env::var("VIDCOMPAT_BOTH_REAL").is_ok_and(|value| value == "1")
}

/// Is it Debian's 6.1, with neither dma-heap nor USERPTR's newer rules?
pub fn is_6_1() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").is_ok_and(|release| release.starts_with("6.1."))
}

/// Looks whether the devices of this set are there, and brings them into a known state.
pub fn devices() -> anyhow::Result<()> {
    let set = Set::here()?;
    match set {
        Set::Cameras => cameras(),
        Set::Kinds => {
            for instance in 0..3 {
                for kind in Kind::OF_VIVID {
                    let node = nodes::vivid(instance, kind)?;
                    let has_planes = matches!(kind, Kind::VideoCapture | Kind::VideoOutput | Kind::Touch);
                    ensure!(
                        !has_planes || node.is_mplane() == (instance == 1),
                        "{node}: planes"
                    );
                }
            }
            Ok(())
        }
        Set::M2m => {
            for name in [
                "vim2m",
                "stateful-encoder",
                "stateful-decoder",
                "stateless-decoder",
            ] {
                nodes::named(name)?;
            }
            ensure!(nodes::loopbacks()?.len() == 2, "two nodes of v4l2loopback");
            nodes::vivid(0, Kind::VideoOutput)?;
            nodes::vivid(0, Kind::VideoCapture).map(drop)
        }
        Set::Memory => {
            for (number, size) in [
                (VMALLOC, SMALL),
                (CONTIG, SMALL),
                (EXPORTER, LARGE),
                (CONTIG_EXPORTER, LARGE),
            ] {
                camera(number, size)?;
            }
            nodes::named("vim2m")?;
            kinds::prepare(&["VESA VGA", "Virtual FB", "virtio_gpudrmfb"])
        }
        Set::Bochs => {
            camera(VMALLOC, SMALL)?;
            camera(CONTIG, SMALL)?;
            kinds::prepare(&["bochs-drmdrmfb"])
        }
        Set::Shim => {
            for instance in 0..3 {
                for kind in [Kind::VideoCapture, Kind::VideoOutput] {
                    let node = nodes::vivid(instance, kind)?;
                    ensure!(node.is_mplane() == (instance == 2), "{node}: planes");
                }
                let node = nodes::vivid(instance, Kind::VideoCapture)?;
                if node.is_mplane() {
                    still(&node.real(), SMALL)?;
                } else {
                    camera(node.number()?, SMALL)?;
                }
            }
            nodes::named("vim2m")?;
            ensure!(nodes::loopbacks()?.len() == 1, "one node of v4l2loopback");
            Ok(())
        }
        Set::Screens => {
            camera(VMALLOC, SMALL)?;
            screens::prepare()
        }
    }
    .with_context(|| format!("device set {set:?}: the suite runs inside a guest: tests/guest-tests"))
}

/// Width and height of the pictures.
const SMALL: (usize, usize) = (320, 180);
const LARGE: (usize, usize) = (640, 360);

fn cameras() -> anyhow::Result<()> {
    [VMALLOC, CONTIG, SPARE]
        .into_iter()
        .try_for_each(|number| camera(number, SMALL))
}

/// Gives a webcam a small, fast, unchanging picture.
fn camera(number: u32, (width, height): (usize, usize)) -> anyhow::Result<()> {
    still(&real(number).path(), (width, height))?;
    let rate = ["-d", &real(number).to_string(), "-p", "120"];
    client::run("v4l2-ctl", &rate, 4 * AT_ONCE)?;
    ensure!(
        real(number).open()?.sizeimage()? as usize == width * height * 2,
        "{} did not take the format",
        real(number)
    );
    Ok(())
}

/// The same, with planes or without. Of a camera with planes v4l2-ctl does not set the rate.
pub fn still(path: &Path, (width, height): (usize, usize)) -> anyhow::Result<()> {
    let path = path.display().to_string();
    let format = format!("width={width},height={height},pixelformat=YUYV");
    // No text, no clock; nothing moves unless a test asks for it.
    let format = ["-d", &path, "-v", &format, "-c", "osd_text_mode=2"];
    client::run("v4l2-ctl", &format, 4 * AT_ONCE).map(drop)
}

/// Runs one test with everything around it.
pub fn run_test(name: &str, test: Test) -> anyhow::Result<()> {
    drop(daemon::take_log());
    let begin = Instant::now();
    let watchdog = Watchdog::start(Duration::from_secs(if is_long() { 1800 } else { 150 }));
    let outcome = test().and_then(|()| devices_are_free());
    // Whatever went wrong: the next test must have a daemon.
    let lives = daemon::check_shared();
    let outcome = outcome.and(lives);
    let barked = watchdog.end();
    if begin.elapsed() > Duration::from_secs(15) {
        figure(format!("{name}: took {} s", begin.elapsed().as_secs()));
    }
    let outcome = match barked {
        true => outcome
            .and(Err(anyhow::anyhow!("too slow")))
            .context("the watchdog killed the shared daemon"),
        false => outcome,
    };
    outcome.map_err(|error| {
        let mut text = format!("{error:#}");
        let log = daemon::take_log();
        if !log.is_empty() {
            text.push_str("\nlog of the daemons:");
        }
        for line in log.iter().skip(log.len().saturating_sub(60)) {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n  {line}");
        }
        anyhow::anyhow!(text)
    })
}

/// Whatever a test did, it must have left the real queues without an owner.
fn devices_are_free() -> anyhow::Result<()> {
    if Set::here()? == Set::Cameras {
        for number in [VMALLOC, CONTIG, SPARE] {
            is_free(number)?;
        }
        return Ok(());
    }
    for node in nodes::all()? {
        let file = File::options().read(true).write(true).open(node.real())?;
        // v4l2_buf_type; a queue that the node has not is EINVAL, a node without queues ENOTTY.
        for buf_type in 1..=14 {
            let mut request = V4l2RequestBuffers {
                buf_type,
                memory: memory::MMAP,
                ..Default::default()
            };
            let asked = crate::sys::ioctl(&file, command::REQBUFS, &mut request);
            ensure!(
                asked != Err(Errno::EBUSY),
                "{node} is still in use, buffers of type {buf_type}"
            );
        }
    }
    Ok(())
}

/// An error if somebody holds the queue of the real node.
pub fn is_free(number: u32) -> anyhow::Result<()> {
    let video = real(number).open()?;
    let mut request = V4l2RequestBuffers {
        count: 1,
        buf_type: crate::video::CAPTURE,
        memory: memory::MMAP,
        ..Default::default()
    };
    let asked = crate::sys::ioctl(&video, command::REQBUFS, &mut request);
    asked.with_context(|| format!("{} is still in use", real(number)))?;
    Ok(())
}

/// Kills the shared daemon when a test takes too long: that ends every call that hangs in it.
struct Watchdog {
    end: mpsc::Sender<()>,
    barked: Arc<AtomicBool>,
}

impl Watchdog {
    fn start(limit: Duration) -> Self {
        let (end, ended) = mpsc::channel();
        let barked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&barked);
        let pid = daemon::shared_pid();
        thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                flag.store(true, Ordering::Relaxed);
                if let Some(pid) = pid {
                    daemon::kill_shared(pid);
                }
            }
        });
        Self { end, barked }
    }

    fn end(self) -> bool {
        // The thread may have ended by itself.
        let _ = self.end.send(());
        self.barked.load(Ordering::Relaxed)
    }
}
