//! Devices that go away: vivid's own "Disconnect" and a driver that is unbound, both while programs stream and sleep;
//! and a module that is taken out under a daemon. The client is told what the real node tells, and the daemon goes on
//! to serve the other devices.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;

use super::errnos::word;
use crate::client::{AT_ONCE, Client, run, run_any};
use crate::daemon;
use crate::modules::{again, remove};
use crate::nodes::{Kind, named, vivid};
use crate::picture::set;
use crate::report::{equal, figure};
use crate::setup::{Test, both_real};
use crate::sys::{self, Pages};
use crate::video::{Node, Video, command, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "faults::a_disconnected_device_says_enodev_and_the_others_are_served_on",
        disconnect,
    ),
    (
        "faults::a_device_unbound_from_its_driver_says_enodev_and_the_others_are_served_on",
        unbind,
    ),
    ("faults::a_module_can_be_taken_out_when_nobody_streams", module),
];

const MODULE: &str = "vivid";

/// What vim2m makes of a file, as ours serves it: the daemon is well.
fn vim2m_is_served() -> anyhow::Result<()> {
    let (input, path) = ("/tmp/faults-input", ours(named("vim2m")?.number()?).to_string());
    fs::write(input, vec![7; 4 * 320 * 180 * 3])?;
    let arguments = [
        "-d",
        &path,
        "-i",
        input,
        "-o",
        "/dev/null",
        "-F",
        "RGB3",
        "-f",
        "YUYV",
    ];
    run("m2m_userptr", &arguments, 4 * AT_ONCE)
        .context("another device")
        .map(drop)
}

/// What a thread's call says, if it returns in time.
fn outcome<T>(thread: thread::JoinHandle<T>, show: impl Fn(T) -> String) -> anyhow::Result<String> {
    let end = Instant::now() + Duration::from_secs(3);
    while !thread.is_finished() {
        if Instant::now() > end {
            return Ok("still asleep".to_owned());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(show(thread.join().ok().context("the thread panicked")?))
}

/// What programs are told when their device goes away.
fn lose(node: Node, go_away: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Vec<String>> {
    let mut lines = vec![];
    // One owns the queue and sleeps in DQBUF, with nothing queued; it is a process, which can be killed.
    let mut sleeper = Client::start("dqbuf_sleeper", &[&node.to_string()])?;
    let line = sleeper.line()?;
    ensure!(line == "waiting", "dqbuf_sleeper on {node}: {line}");
    sleeper.until_asleep_in_dqbuf()?;
    // Another polls, a third has opened it only.
    let (polling, idle) = (node.open()?, node.open()?);
    let size = idle.sizeimage()?;
    let pages = Pages::new(size as usize)?;
    let poller = thread::spawn(move || polling.poll(PollFlags::POLLIN | PollFlags::POLLPRI, 6000));
    thread::sleep(Duration::from_millis(300));
    lines.push(format!("asleep before: {}", !poller.is_finished()));

    go_away()?;

    lines.push(format!(
        "poll that slept: {}",
        outcome(poller, |polled| format!("{polled:?}"))?
    ));
    lines.push(format!("poll: {:?}", idle.poll(PollFlags::POLLIN, 500)));
    lines.push(format!(
        "poll for events: {:?}",
        idle.poll(PollFlags::POLLPRI, 500)
    ));
    lines.push(format!("G_FMT: {}", word(idle.sizeimage())));
    lines.push(format!("REQBUFS: {}", word(idle.reqbufs(2))));
    lines.push(format!(
        "QBUF: {}",
        word(idle.qbuf(0, pages.at(0), size).map(drop))
    ));
    lines.push(format!("DQBUF: {}", word(idle.dqbuf().map(drop))));
    lines.push(format!("STREAMOFF: {}", word(idle.streamoff())));
    lines.push(format!(
        "an ioctl that is none: {}",
        word(sys::ioctl_null(&idle, 0x5600 + 200))
    ));
    lines.push(format!(
        "QUERYCAP: {}",
        word(sys::ioctl(&idle, command::QUERYCAP, &mut [0_u8; 104]))
    ));
    lines.push(format!("read: {}", word(sys::read(&idle, &pages, 0, 100))));
    lines.push(format!("mmap: {}", word(sys::try_mmap(&idle, 4096))));
    let end = Instant::now() + Duration::from_secs(2);
    while !sleeper.has_ended()? && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    let asleep = !sleeper.has_ended()?;
    lines.push(format!("the one in DQBUF still sleeps: {asleep}"));
    if asleep {
        sleeper.signal(Signal::SIGTERM)?;
    }
    let status = sleeper.end(AT_ONCE)?;
    lines.push(format!("it ended: {status}; {}", sleeper.rest().trim_end()));
    drop(idle);
    Ok(lines)
}

/// The same on both nodes, each with the device put back afterwards.
fn both(
    expected: &str,
    go_away: impl Fn(Node) -> anyhow::Result<()>,
    come_back: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut told = vec![];
    for node in [real, ours] {
        let pid = daemon::shared()?;
        let number = vivid(0, Kind::VideoCapture)?.number()?;
        let lines = lose(node(number), || go_away(real(number)));
        let served = lines.as_ref().map_or(Ok(()), |_| vim2m_is_served());
        ensure!(
            both_real() || daemon::shared()? == pid,
            "the daemon is another one"
        );
        // The nodes are others when they come back: a daemon that was started for these knows nothing of them.
        daemon::stop_shared();
        come_back()?;
        told.push(lines.with_context(|| node(number).to_string())?);
        served?;
    }
    figure(format!("{expected}: {}", told[0].join("; ")));
    // What ours says otherwise: one that slept is not inside the driver; it asks again when it is woken, and the device
    // is gone by then. (A driver leaves it asleep for ever after Disconnect, and says EINVAL, not streaming, after unbind.)
    for line in told[0].iter_mut().filter(|_| !both_real()) {
        if line.starts_with("the one in DQBUF") {
            "the one in DQBUF still sleeps: false".clone_into(line);
        } else if line.starts_with("it ended") {
            "it ended: exit status: 0; DQBUF: ENODEV, handler ran 0 times".clone_into(line);
        }
    }
    equal(&told[0], &told[1])?;
    ensure!(
        told[0].iter().any(|line| line == "G_FMT: ENODEV"),
        "{:?}",
        told[0]
    );
    Ok(())
}

fn disconnect() -> anyhow::Result<()> {
    both(
        "Disconnect",
        |node| set(node.number, "disconnect=1"),
        || again(MODULE),
    )
}

/// As when a USB camera is pulled out.
fn unbind() -> anyhow::Result<()> {
    let driver = "/sys/bus/platform/drivers/vivid";
    let device = fs::read_dir(driver)?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find(|name| name.starts_with("vivid."))
        .context("no device of vivid")?;
    both(
        "unbind",
        |_| Ok(fs::write(format!("{driver}/unbind"), &device)?),
        || again(MODULE),
    )
}

fn module() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    daemon::shared()?;
    let number = vivid(0, Kind::VideoCapture)?.number()?;
    let (native, served) = (real(number), ours(number));
    // A file that is open on ours is open on the real node: the module is in use.
    let video: Video = served.open()?;
    let (status, said) = run_any("rmmod", &[MODULE], 4 * AT_ONCE)?;
    ensure!(
        !status.success() && said.contains("in use"),
        "rmmod with an open file: {status}: {said}"
    );
    drop(video);
    // An idle daemon holds nothing.
    remove(MODULE).context("with an idle daemon")?;
    ensure!(!native.path().exists(), "{native} is still there");
    let opened = served.open().err().map(|error| error.root_cause().to_string());
    figure(format!("open of {served} without its module: {opened:?}"));
    let expected = [Errno::ENODEV, Errno::ENXIO, Errno::ENOENT];
    ensure!(
        opened.as_ref().is_some_and(|opened| expected
            .iter()
            .any(|errno| opened.contains(&format!("(os error {})", *errno as i32)))),
        "{opened:?}"
    );
    vim2m_is_served()?;
    again(MODULE)?;
    // The same names again: what was served is served again, and by this daemon.
    let same = Path::new(&native.path()).exists() && vivid(0, Kind::VideoCapture)?.number()? == number;
    ensure!(same, "the device has come back under another name");
    let outcome = served.open().and_then(|video| Ok(video.sizeimage()?));
    figure(format!("{served} after its module has come back: {outcome:?}"));
    daemon::stop_shared();
    Ok(())
}
