//! The daemon tells whoever started it that it goes on, and the operator who is to blame where it does not.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

use crate::client::{AT_ONCE, Client};
use crate::daemon::{self, Daemon};
use crate::report::figure;
use crate::service::{CONFIG, configure, until};
use crate::setup::{CONTIG, SPARE, Test, is_free};
use crate::sys::{self, Pages};
use crate::video::ours;

pub const TESTS: &[(&str, Test)] = &[
    (
        "watchdog::is_told_while_all_goes_on_and_not_while_we_are_stopped",
        told,
    ),
    ("watchdog::a_client_that_sleeps_in_dqbuf_is_nobodys_fault", asleep),
    (
        "watchdog::a_deadlock_of_ours_frees_its_clients_and_ends_us",
        deadlock,
    ),
    (
        "watchdog::where_nobody_starts_us_again_the_other_nodes_go_on",
        deadlock_alone,
    ),
    ("watchdog::what_hangs_in_a_driver_is_told_and_left_alone", driver),
    (
        "watchdog::a_device_that_hangs_when_it_is_looked_at_hangs_alone",
        looked_at,
    ),
];

/// `VIDIOC_G_INPUT`
const G_INPUT: u64 = 0x8004_5626;
const DEVICE: &str = "/dev/video2";
/// What systemd would be told to allow.
const ALLOWED: Duration = Duration::from_secs(2);

struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new(path: &str) -> anyhow::Result<Self> {
        drop(std::fs::remove_file(path));
        let socket = UnixDatagram::bind(path)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    fn start(&self, more: &[&str]) -> anyhow::Result<Daemon> {
        let allowed = ALLOWED.as_micros().to_string();
        let environment = [("NOTIFY_SOCKET", self.path.as_str()), ("WATCHDOG_USEC", &allowed)];
        Daemon::start_with(&[&["--device", DEVICE][..], more].concat(), &environment)
    }

    /// A daemon in which each G_INPUT hangs.
    fn start_hanging(&self, how: &str) -> anyhow::Result<Daemon> {
        let allowed = ALLOWED.as_micros().to_string();
        let mut environment = hanging(how)?;
        environment.push(("NOTIFY_SOCKET", self.path.clone()));
        environment.push(("WATCHDOG_USEC", allowed));
        let environment: Vec<_> = environment
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        Daemon::start_with(&["--device", DEVICE, "--stuck-after=6"], &environment)
    }

    /// How often it was told within `time`, and the longest pause.
    fn listen(&self, time: Duration) -> anyhow::Result<(usize, Duration)> {
        let (begin, mut last) = (Instant::now(), Instant::now());
        let (mut count, mut longest) = (0, Duration::ZERO);
        let mut text = [0; 512];
        while let Some(left) = time.checked_sub(begin.elapsed()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left))?;
            let Ok(length) = self.socket.recv(&mut text) else {
                continue;
            };
            if text[..length]
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"WATCHDOG=1")
            {
                count += 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
        Ok((count, longest.max(last.elapsed())))
    }
}

fn told() -> anyhow::Result<()> {
    let manager = Manager::new("/tmp/watchdog-socket")?;
    let mut daemon = manager.start(&["--stuck-after=6"])?;
    let (count, longest) = manager.listen(3 * ALLOWED)?;
    figure(format!(
        "WATCHDOG=1 {count} times in {:?}, longest pause {longest:?}",
        3 * ALLOWED
    ));
    ensure!(count >= 4 && longest < ALLOWED, "{count} times, {longest:?}");
    kill(daemon.pid(), Signal::SIGSTOP)?;
    // What was sent before the signal came.
    manager.listen(Duration::from_millis(200))?;
    let (count, _) = manager.listen(2 * ALLOWED)?;
    ensure!(count == 0, "told {count} times while stopped");
    // Longer than its first deadline: what was under way is not blamed for it.
    thread::sleep(Duration::from_secs(2));
    kill(daemon.pid(), Signal::SIGCONT)?;
    let (count, _) = manager.listen(2 * ALLOWED)?;
    ensure!(count >= 2, "told {count} times after it went on");
    ensure!(!daemon.log().contains(" has taken "), "{}", daemon.log());
    daemon.end(Signal::SIGTERM, AT_ONCE).map(drop)
}

fn asleep() -> anyhow::Result<()> {
    let manager = Manager::new("/tmp/watchdog-socket")?;
    let mut daemon = manager.start(&["--stuck-after=6"])?;
    let mut client = Client::start("dqbuf_sleeper", &["/dev/video66"])?;
    client.until_asleep_in_dqbuf()?;
    // Beyond both deadlines.
    let (count, longest) = manager.listen(Duration::from_secs(9))?;
    ensure!(count >= 7 && longest < ALLOWED, "{count} times, {longest:?}");
    ensure!(!client.has_ended()?, "{}", client.rest());
    ensure!(!daemon.log().contains(" has taken "), "{}", daemon.log());
    client.signal(Signal::SIGKILL)?;
    drop(client);
    daemon.end(Signal::SIGTERM, AT_ONCE).map(drop)
}

fn hanging(how: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    let library = std::env::current_dir()?.join("target/clients/in_the_daemon.so");
    let library = library.to_str().context("a path")?;
    Ok(vec![("LD_PRELOAD", library.to_owned()), ("HANG", how.to_owned())])
}

/// G_INPUT on a thread of its own: what came of it, and after what time.
fn g_input() -> anyhow::Result<Receiver<(Result<i32, Errno>, Duration)>> {
    let video = ours(SPARE).open()?;
    let (tell, told) = channel();
    thread::spawn(move || {
        let begin = Instant::now();
        let mut input = 0_u32;
        let outcome = sys::ioctl(&video, G_INPUT, &mut input);
        // The test may have failed meanwhile.
        let _ = tell.send((outcome, begin.elapsed()));
    });
    Ok(told)
}

/// Its call ends with ECONNABORTED a little after the last deadline.
fn freed(told: &Receiver<(Result<i32, Errno>, Duration)>) -> anyhow::Result<Duration> {
    let (outcome, after) = told
        .recv_timeout(Duration::from_secs(30))
        .context("it still hangs")?;
    ensure!(outcome == Err(Errno::ECONNABORTED), "{outcome:?} after {after:?}");
    ensure!(after > Duration::from_secs(6), "{after:?}");
    Ok(after)
}

fn deadlock() -> anyhow::Result<()> {
    let manager = Manager::new("/tmp/watchdog-socket")?;
    let mut daemon = manager.start_hanging("lock")?;
    let told = g_input()?;
    let after = freed(&told)?;
    let status = daemon.ended(AT_ONCE)?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    ensure!(signal == Some(libc::SIGABRT), "{status}");
    figure(format!(
        "a client of a daemon in a deadlock was freed after {after:?}, of 6 s"
    ));
    for sentence in [
        "G_INPUT of process",
        "has taken 1 s: vidcompatd is at it",
        "hangs in vidcompatd itself for 6 s: this is a bug",
        "/dev/video66 serves nobody any more, and every call to it fails",
    ] {
        ensure!(
            daemon.log().contains(sentence),
            "no `{sentence}` in\n{}",
            daemon.log()
        );
    }
    is_free(SPARE)
}

fn deadlock_alone() -> anyhow::Result<()> {
    // It may have the other device.
    daemon::stop_shared();
    let environment = hanging("lock")?;
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let devices = ["--device", DEVICE, "--device", "/dev/video1", "--stuck-after=6"];
    let mut daemon = Daemon::start_with(&devices, &environment)?;
    freed(&g_input()?)?;
    // (v4l2-ctl would ask for the input as well.)
    capture(CONTIG)?;
    let refused = File::open(ours(SPARE).path()).map_err(|error| error.raw_os_error());
    ensure!(
        refused.as_ref().err() == Some(&Some(libc::ENOTCONN)),
        "{refused:?}"
    );
    // A thread of it hangs for good.
    daemon.end(Signal::SIGTERM, 2 * AT_ONCE).map(drop)
}

/// Some frames.
fn capture(number: u32) -> anyhow::Result<()> {
    let video = ours(number).open()?;
    let size = video.sizeimage()?;
    let memory = Pages::new(size as usize)?;
    video.reqbufs(2)?;
    video.streamon()?;
    for _ in 0..5 {
        video.qbuf(0, memory.at(0), size)?;
        video.dqbuf()?;
    }
    Ok(())
}

fn driver() -> anyhow::Result<()> {
    let manager = Manager::new("/tmp/watchdog-socket")?;
    let mut daemon = manager.start_hanging("driver")?;
    let told = g_input()?;
    let (count, longest) = manager.listen(Duration::from_secs(10))?;
    ensure!(count >= 8 && longest < ALLOWED, "{count} times, {longest:?}");
    for sentence in [
        "has taken 1 s: it is in the device's driver",
        "hangs in the device's driver for 6 s, as it would without vidcompatd",
    ] {
        ensure!(
            daemon.log().contains(sentence),
            "no `{sentence}` in\n{}",
            daemon.log()
        );
    }
    ensure!(told.try_recv().is_err(), "the call has ended");
    // Others go on meanwhile.
    ensure!(ours(SPARE).open()?.sizeimage()? > 0);
    daemon.end(Signal::SIGKILL, AT_ONCE)?;
    let (outcome, _) = told.recv_timeout(AT_ONCE)?;
    ensure!(outcome == Err(Errno::ECONNABORTED), "{outcome:?}");
    Ok(())
}

fn looked_at() -> anyhow::Result<()> {
    const ANSWERS: &str = "/tmp/device-answers";
    daemon::stop_shared();
    drop(std::fs::remove_file(ANSWERS));
    configure("[[device]]\npath = \"/dev/video1\"\n[[device]]\npath = \"/dev/video2\"\n")?;
    let manager = Manager::new("/tmp/watchdog-socket")?;
    let mut environment = hanging("querycap")?;
    environment.extend([
        ("HANG_AT", DEVICE.to_owned()),
        ("NOTIFY_SOCKET", manager.path.clone()),
        ("WATCHDOG_USEC", ALLOWED.as_micros().to_string()),
    ]);
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let mut daemon = Daemon::start_with(&["--config", CONFIG, "--stuck-after=24"], &environment)?;
    let (count, longest) = manager.listen(Duration::from_secs(8))?;
    figure(format!(
        "a device hangs in QUERYCAP: WATCHDOG=1 {count} times in 8 s, longest pause {longest:?}"
    ));
    ensure!(count >= 6 && longest < ALLOWED, "{count} times, {longest:?}");
    capture(CONTIG)?;
    let said = daemon.log();
    let told = said
        .lines()
        .filter(|line| line.contains(DEVICE) && line.contains("hangs in open or QUERYCAP"));
    ensure!(told.count() == 1, "{said}");
    ensure!(!ours(SPARE).path().exists(), "it is served, and hangs");
    // It answers at last, and nobody has to do anything.
    File::create(ANSWERS)?;
    until("it is served", || ours(SPARE).path().exists())?;
    capture(SPARE)?;
    daemon.end(Signal::SIGTERM, AT_ONCE)?;
    std::fs::remove_file(ANSWERS)?;
    Ok(())
}
