//! Starting and ending the daemon: in order, and where it cannot.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::client::{AT_ONCE, Client};
use crate::daemon::Daemon;
use crate::report::figure;
use crate::setup::{SPARE, Test, is_6_1, is_free};
use crate::sys::Pages;
use crate::video::{Node, Video, ours, real};

pub const TESTS: &[(&str, Test)] = &[
    (
        "lifecycle::sigterm_and_sigint_end_it_while_a_client_streams",
        end_streaming,
    ),
    (
        "lifecycle::sigterm_and_sigint_end_it_while_a_client_sleeps_in_dqbuf",
        end_sleeping,
    ),
    (
        "lifecycle::sigterm_ends_it_while_a_client_is_stopped_and_another_polls",
        end_stopped,
    ),
    (
        "lifecycle::sigkill_of_the_daemon_leaves_the_real_node_usable",
        killed,
    ),
    ("lifecycle::ten_starts_and_ends_in_a_row", ten_times),
    (
        "lifecycle::no_such_device_and_no_v4l2_node_are_refused_in_one_sentence",
        no_device,
    ),
    ("lifecycle::a_taken_name_is_refused_in_one_sentence", name_taken),
    (
        "lifecycle::one_device_given_twice_is_refused_in_one_sentence",
        same_twice,
    ),
    (
        "lifecycle::of_two_that_start_at_once_one_serves_and_the_other_is_refused",
        race,
    ),
    ("lifecycle::no_dev_cuse_is_refused_in_one_sentence", no_cuse),
    (
        "lifecycle::a_bad_second_device_leaves_no_node_of_the_first",
        second_device_bad,
    ),
    (
        "lifecycle::without_a_heap_the_devices_own_buffers_serve_and_it_says_so_once",
        no_heap,
    ),
    (
        "lifecycle::owner_group_and_mode_of_the_real_node_are_copied",
        access,
    ),
    ("lifecycle::log_lines_are_json_if_asked_for", json),
    ("lifecycle::ready_is_told_to_systemd", notify),
];

const DEVICE: &str = "/dev/video2";

fn start() -> anyhow::Result<Daemon> {
    Daemon::start(&["--device", DEVICE])
}

/// Streams until a call fails: which errno that was.
fn stream_until_error(video: &Video, frames: &std::sync::mpsc::Sender<()>) -> anyhow::Result<Errno> {
    let size = video.sizeimage()?;
    let memory = Pages::new(4 * size as usize)?;
    let count = video.reqbufs(4)?;
    for index in 0..count {
        video.qbuf(index, memory.at(index as usize * size as usize), size)?;
    }
    video.streamon()?;
    loop {
        let next = video
            .dqbuf()
            .and_then(|buffer| video.qbuf(buffer.index, buffer.m, buffer.length));
        match next {
            Ok(_) => drop(frames.send(())),
            Err(errno) => return Ok(errno),
        }
    }
}

/// One frame from the real node, by USERPTR.
fn real_node_works() -> anyhow::Result<()> {
    is_free(SPARE)?;
    one_frame(real(SPARE)).map(drop)
}

/// One frame.
fn one_frame(node: Node) -> anyhow::Result<Vec<u8>> {
    let video = node.open()?;
    let size = video.sizeimage()?;
    let memory = Pages::new(size as usize)?;
    video.reqbufs(2)?;
    video.qbuf(0, memory.at(0), size)?;
    video.streamon()?;
    let buffer = video.dqbuf()?;
    ensure!(
        buffer.flags & crate::video::buf_flag::ERROR == 0,
        "{node}: a damaged frame"
    );
    memory.read(0, size as usize)
}

/// Ends the daemon by `signal`; what must be true afterwards.
fn end(daemon: &mut Daemon, signal: Signal, situation: &str) -> anyhow::Result<()> {
    let begin = Instant::now();
    let status = daemon.end(signal, Duration::from_secs(5))?;
    figure(format!(
        "{signal} ends the daemon in {} ms, {situation}",
        begin.elapsed().as_millis()
    ));
    ensure!(status.code() == Some(0), "{situation}, {signal}: {status}");
    gone()?;
    real_node_works()
}

fn gone() -> anyhow::Result<()> {
    let found = fs::symlink_metadata(ours(SPARE).path());
    ensure!(
        found.is_err_and(|error| error.kind() == ErrorKind::NotFound),
        "{} is still there",
        ours(SPARE)
    );
    Ok(())
}

fn end_streaming() -> anyhow::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = start()?;
        let video = ours(SPARE).open()?;
        let (frames, frame) = channel();
        let client = thread::spawn(move || stream_until_error(&video, &frames));
        for _ in 0..10 {
            frame.recv_timeout(AT_ONCE).context("no frames")?;
        }
        end(&mut daemon, signal, "a client streams")?;
        let errno = client.join().ok().context("the client panicked")??;
        figure(format!(
            "{signal} while a client streams: the client gets {errno:?}"
        ));
    }
    Ok(())
}

fn end_sleeping() -> anyhow::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = start()?;
        let mut client = Client::start("dqbuf_sleeper", &[&ours(SPARE).to_string()])?;
        ensure!(client.line()? == "waiting", "the client failed");
        client.until_asleep_in_dqbuf()?;
        end(&mut daemon, signal, "a client sleeps in DQBUF")?;
        client.end(AT_ONCE)?;
        let said = client.rest();
        ensure!(said.starts_with("DQBUF: E"), "the client's DQBUF: {said}");
        figure(format!(
            "{signal} while a client sleeps in DQBUF: the client gets {}",
            said.trim()
        ));
    }
    Ok(())
}

fn end_stopped() -> anyhow::Result<()> {
    let mut daemon = start()?;
    let mut client = Client::start("dqbuf_sleeper", &[&ours(SPARE).to_string()])?;
    ensure!(client.line()? == "waiting", "the client failed");
    client.until_asleep_in_dqbuf()?;
    let video = ours(SPARE).open()?;
    let poller = thread::spawn(move || video.poll(nix::poll::PollFlags::POLLPRI, 20_000));
    client.signal(Signal::SIGSTOP)?;
    client.until_stopped()?;
    end(&mut daemon, Signal::SIGTERM, "a client is stopped, another polls")?;
    let bits = poller.join().ok().context("the poller panicked")??;
    ensure!(
        bits.contains(nix::poll::PollFlags::POLLERR),
        "the poller got {bits:?}"
    );
    client.signal(Signal::SIGCONT)?;
    client.end(AT_ONCE)?;
    let said = client.rest();
    ensure!(said.starts_with("DQBUF: E"), "the client's DQBUF: {said}");
    Ok(())
}

fn killed() -> anyhow::Result<()> {
    let mut daemon = start()?;
    let video = ours(SPARE).open()?;
    let (frames, frame) = channel();
    let client = thread::spawn(move || {
        let errno = stream_until_error(&video, &frames);
        (errno, video.format().err())
    });
    frame.recv_timeout(AT_ONCE).context("no frames")?;
    daemon.end(Signal::SIGKILL, AT_ONCE)?;
    let (errno, later) = client.join().ok().context("the client panicked")?;
    figure(format!(
        "SIGKILL of the daemon: its client gets {:?}, then {later:?}",
        errno?
    ));
    ensure!(
        later == Some(Errno::ENOTCONN),
        "a later call of the client: {later:?}"
    );
    gone()?;
    real_node_works()?;
    // And it starts again.
    let mut daemon = start()?;
    one_frame(ours(SPARE))?;
    end(&mut daemon, Signal::SIGTERM, "nobody has it open")
}

fn ten_times() -> anyhow::Result<()> {
    for _ in 0..10 {
        let mut daemon = start()?;
        one_frame(ours(SPARE))?;
        let status = daemon.end(Signal::SIGTERM, AT_ONCE)?;
        ensure!(status.code() == Some(0), "{status}");
        gone()?;
    }
    real_node_works()
}

/// The daemon must not start: one sentence with `words` in it, an exit code that is not 0, nothing changed.
fn refused(args: &[&str], words: &str) -> anyhow::Result<()> {
    let (status, said) = Daemon::refuse(args)?;
    ensure!(
        status.code().is_some_and(|code| code != 0),
        "{args:?}: {status}\n{said}"
    );
    let sentences: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("vidcompatd: "))
        .collect();
    ensure!(
        sentences.len() == 1,
        "{args:?}: {} sentences:\n{said}",
        sentences.len()
    );
    ensure!(
        sentences[0].contains(words),
        "{args:?}: no word of {words:?} in {:?}",
        sentences[0]
    );
    ensure!(!said.contains("panicked"), "{args:?}: {said}");
    real_node_works()
}

fn no_device() -> anyhow::Result<()> {
    refused(&["--device", "/dev/video9"], "no such device")?;
    refused(&["--device", "/dev/null"], "is no V4L2 node")?;
    refused(&["--device", "/etc/passwd"], "is no V4L2 node")?;
    refused(&["--device", "/dev/v4l"], "no such device")?;
    // Something else under the name of a video node.
    let fake = Removed::at("/dev/video40");
    mknod(
        &fake.0,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o600),
        makedev(1, 3),
    )?;
    refused(&["--device", "/dev/video40"], "does not answer as a V4L2 device")?;
    drop(fake);
    let file = Removed::at("/dev/video40");
    fs::write(&file.0, "")?;
    refused(&["--device", "/dev/video40"], "is no V4L2 node")?;
    drop(file);
    let nobody = Removed::at("/dev/video40");
    mknod(
        &nobody.0,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o600),
        makedev(81, 200),
    )?;
    refused(&["--device", "/dev/video40"], "does not answer as a V4L2 device")?;
    gone()
}

fn name_taken() -> anyhow::Result<()> {
    let taken = ours(SPARE).to_string();
    {
        let mut first = start()?;
        refused(&["--device", DEVICE], "exists already")?;
        one_frame(ours(SPARE)).context("the first daemon after the second has failed")?;
        refused(&["--device", &taken], "0 to 63")?;
        end(&mut first, Signal::SIGTERM, "a second one was refused")?;
    }
    let file = Removed::at(&taken);
    fs::write(&file.0, "precious")?;
    refused(&["--device", DEVICE], "exists already")?;
    ensure!(fs::read_to_string(&file.0)? == "precious", "the file was changed");
    drop(file);
    let link = Removed::at(&taken);
    symlink("/nowhere", &link.0)?;
    refused(&["--device", DEVICE], "exists already")?;
    drop(link);
    gone()
}

/// Whatever the daemon makes of it, the same node must not be made twice.
fn same_twice() -> anyhow::Result<()> {
    refused(&["--device", DEVICE, "--device", DEVICE], DEVICE)?;
    gone()
}

/// Two start at the same moment: one serves, the other says why it does not, and harms nothing.
fn race() -> anyhow::Result<()> {
    for round in 0..8 {
        let contenders: Vec<_> = (0..2).map(|_| thread::spawn(start)).collect();
        let outcomes: Vec<_> = contenders
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect();
        // Time for the loser's end to do its harm.
        thread::sleep(Duration::from_millis(200));
        let (mut winners, losers): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        let losers: Vec<_> = losers
            .into_iter()
            .filter_map(Result::err)
            .map(|error| error.to_string())
            .collect();
        ensure!(
            winners.len() == 1,
            "round {round}: {} say they are ready; others: {losers:?}",
            winners.len()
        );
        let said = losers[0].matches("vidcompatd: ").count();
        ensure!(
            said == 1 && losers[0].contains("video66"),
            "round {round}: {}",
            losers[0]
        );
        one_frame(ours(SPARE))
            .with_context(|| format!("round {round}: the one that is ready does not serve"))?;
        let mut winner = winners.remove(0)?;
        end(&mut winner, Signal::SIGTERM, "after a race of two")?;
    }
    Ok(())
}

fn no_cuse() -> anyhow::Result<()> {
    let hidden = Hidden::new("/dev/cuse")?;
    refused(&["--device", DEVICE], "modprobe cuse")?;
    drop(hidden);
    let mut daemon = start()?;
    end(&mut daemon, Signal::SIGTERM, "nobody has it open")
}

fn second_device_bad() -> anyhow::Result<()> {
    refused(&["--device", DEVICE, "--device", "/dev/video9"], "/dev/video9")?;
    gone()
}

fn no_heap() -> anyhow::Result<()> {
    // Debian's 6.1 has none anyway.
    let hidden = if is_6_1() {
        None
    } else {
        Some(Hidden::new("/dev/dma_heap")?)
    };
    let mut daemon = start()?;
    let frame = one_frame(ours(SPARE))?;
    ensure!(
        frame == one_frame(ours(SPARE))?,
        "two frames of one picture differ"
    );
    let said = daemon.log();
    let count = said.lines().filter(|line| line.contains("dma_heap")).count();
    ensure!(count == 1, "{count} lines about the heap:\n{said}");
    end(&mut daemon, Signal::SIGTERM, "without a heap")?;
    ensure!(
        frame == one_frame(real(SPARE))?,
        "the frame is not that of the real node"
    );
    drop(hidden);
    Ok(())
}

fn access() -> anyhow::Result<()> {
    let path = real(SPARE).path();
    let before = fs::metadata(&path)?;
    let restore = || -> anyhow::Result<()> {
        chown(&path, Some(before.uid()), Some(before.gid()))?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(before.mode() & 0o7777),
        )?)
    };
    let check = || -> anyhow::Result<()> {
        for (uid, gid, mode) in [
            (1234, 44, 0o640),
            (0, 44, 0o660),
            (0, 0, 0o600),
            (65534, 65534, 0o604),
        ] {
            chown(&path, Some(uid), Some(gid))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            let daemon = start()?;
            let made = fs::metadata(ours(SPARE).path())?;
            drop(daemon);
            let found = (made.uid(), made.gid(), made.mode() & 0o7777);
            ensure!(
                found == (uid, gid, mode),
                "{found:?} instead of {:?}",
                (uid, gid, mode)
            );
            let now = fs::metadata(&path)?;
            ensure!(
                (now.uid(), now.gid(), now.mode() & 0o7777) == found,
                "the real node has changed"
            );
        }
        Ok(())
    };
    let outcome = check();
    restore()?;
    outcome
}

fn json() -> anyhow::Result<()> {
    let args = ["--log-format", "json", "--device", DEVICE];
    let mut daemon = Daemon::start_with(&args, &[("VIDCOMPAT_LOG", "debug")])?;
    one_frame(ours(SPARE))?;
    let video = ours(SPARE).open()?;
    video.reqbufs(2)?;
    ensure!(video.qbuf(0, 0, 1 << 20) == Err(Errno::EFAULT), "a bad pointer");
    drop(video);
    end(&mut daemon, Signal::SIGTERM, "with a JSON log")?;
    let said = daemon.log();
    let mut objects = 0;
    for line in said.lines().filter(|line| *line != "ready") {
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        ensure!(
            value.get("level").is_some() && value.get("fields").is_some(),
            "not a log line: {line}"
        );
        objects += 1;
    }
    ensure!(objects >= 4, "only {objects} log lines:\n{said}");
    Ok(())
}

fn notify() -> anyhow::Result<()> {
    let path = Removed::at("/tmp/notify");
    let socket = UnixDatagram::bind(&path.0)?;
    socket.set_read_timeout(Some(AT_ONCE))?;
    let address = path.0.display().to_string();
    let mut daemon = Daemon::start_with(&["--device", DEVICE], &[("NOTIFY_SOCKET", &address)])?;
    let mut text = [0; 256];
    let length = socket.recv(&mut text).context("nothing was told")?;
    let told = String::from_utf8_lossy(&text[..length]).into_owned();
    ensure!(told.lines().any(|line| line == "READY=1"), "told: {told}");
    kill(daemon.pid(), Signal::SIGTERM)?;
    let length = socket.recv(&mut text).context("the end was not told")?;
    let told = String::from_utf8_lossy(&text[..length]).into_owned();
    ensure!(told.lines().any(|line| line == "STOPPING=1"), "told: {told}");
    let status = daemon.end(Signal::SIGTERM, AT_ONCE)?;
    // Twice asked, ended once.
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}

/// A file that is removed when this is dropped.
struct Removed(PathBuf);

impl Removed {
    fn at(path: &str) -> Self {
        Self(PathBuf::from(path))
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        // It may never have been made.
        drop(fs::remove_file(&self.0));
    }
}

/// A file or directory under another name, until this is dropped.
pub struct Hidden {
    path: PathBuf,
    aside: PathBuf,
}

impl Hidden {
    pub fn new(path: &str) -> anyhow::Result<Self> {
        let (path, aside) = (
            Path::new(path).to_owned(),
            PathBuf::from(format!("{path}.hidden")),
        );
        fs::rename(&path, &aside).with_context(|| format!("{}", path.display()))?;
        Ok(Self { path, aside })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Err(error) = fs::rename(&self.aside, &self.path) {
            eprintln!("{} cannot be put back: {error}", self.path.display());
        }
    }
}
