//! What stands around each test: devices in a known state, a watchdog, the daemons' log.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::client::{self, AT_ONCE};
use crate::daemon;
use crate::report::figure;
use crate::video::{command, memory, real};

/// A test: an error is a failure.
pub type Test = fn() -> anyhow::Result<()>;

/// Vivid with USERPTR of its own.
pub const VMALLOC: u32 = 0;
/// Vivid that refuses USERPTR.
pub const CONTIG: u32 = 1;
/// Vivid for daemons that a test starts itself.
pub const SPARE: u32 = 2;

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

/// Finds the devices and gives them a small, fast, unchanging picture.
pub fn devices() -> anyhow::Result<()> {
    for number in [VMALLOC, CONTIG, SPARE] {
        let path = real(number).to_string();
        let format = [
            "-d",
            &path,
            "-v",
            "width=320,height=180,pixelformat=YUYV",
            "-p",
            "120",
        ];
        client::run("v4l2-ctl", &format, 4 * AT_ONCE)
            .context("the suite runs inside a guest: tests/guest-tests")?;
        // No text, no clock; nothing moves unless a test asks for it.
        client::run("v4l2-ctl", &["-d", &path, "-c", "osd_text_mode=2"], 4 * AT_ONCE)?;
        ensure!(
            real(number).open()?.sizeimage()? == 320 * 180 * 2,
            "{path} did not take the format"
        );
    }
    Ok(())
}

/// Runs one test with everything around it.
pub fn run_test(name: &str, test: Test) -> anyhow::Result<()> {
    drop(daemon::take_log());
    let begin = Instant::now();
    let watchdog = Watchdog::start(Duration::from_secs(if is_long() { 1800 } else { 150 }));
    let outcome = test()
        .and_then(|()| devices_are_free())
        .and_then(|()| daemon::check_shared());
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
    for number in [VMALLOC, CONTIG, SPARE] {
        is_free(number)?;
    }
    Ok(())
}

/// An error if somebody holds the queue of the real node.
pub fn is_free(number: u32) -> anyhow::Result<()> {
    let video = real(number).open()?;
    let mut request = vidcompat_proto::abi::v4l2::V4l2RequestBuffers {
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
