//! The shim's socket against those who should get nothing: tokens of others, tokens of files that are closed, messages
//! that are none, thousands of connections. Who behaves is served all the while.
//!
//! The daemon is one of these tests' own; the other user is the suite itself, run by nobody.

mod link;
pub mod stranger;

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use vidcompat_proto::abi::v4l2::V4l2RequestBuffers;
use vidcompat_proto::ioc::Command as Ioctl;
use vidcompat_proto::shim::{Answer, Ask, MAY_ADOPT, spoken};

use crate::client::{AT_ONCE, run};
use crate::daemon::{Daemon, Resources};
use crate::helper::{ARGUMENT, NOBODY, as_nobody};
use crate::report::figure;
use crate::setup::{HDMI, SPARE, Test, both_real};
use crate::sys::{self, Area, PAGE, Rights, Source};
use crate::video::{CAPTURE, Video, command, memory, ours, real};

use link::{Connection, Link, hex, token};

pub const TESTS: &[(&str, Test)] = &[
    (
        "shim_attacks::a_token_is_its_users_alone_and_ends_with_its_file",
        tokens,
    ),
    (
        "shim_attacks::what_the_shim_does_not_say_is_refused_and_told_once",
        messages,
    ),
    (
        "shim_attacks::thousands_of_connections_hurt_only_who_makes_them",
        connections,
    ),
    (
        "shim_attacks::files_that_are_slow_to_close_hurt_only_who_sends_them",
        linger,
    ),
    (
        "shim_attacks::a_file_is_closed_at_once_while_others_ask_for_it",
        closing,
    ),
    (
        "shim_attacks::each_daemon_has_a_socket_or_says_that_it_has_none",
        sockets,
    ),
];

const SOCKET: &str = "/run/vidcompat-attacks/shim.sock";
/// Less than the shim's own, on a slow guest.
const PATIENCE: Duration = Duration::from_secs(4);
const PATTERN: &[u8] = b"what only they may see who have the file";

fn start(more: &[&str]) -> anyhow::Result<Daemon> {
    let device = real(SPARE).to_string();
    let args = ["--device", &device, "--control", "none"];
    Daemon::start(&[&args, more].concat())
}

/// mmap of a capture buffer, as a program does it.
const fn map(offset: u64, length: u64) -> Ask {
    Ask::Map {
        offset,
        length,
        prot: (libc::PROT_READ | libc::PROT_WRITE).cast_unsigned(),
        flags: libc::MAP_SHARED.cast_unsigned(),
    }
}

/// MMAP buffers, as the shim asks for them. The first begins at 0, with vb2.
fn allocate(video: &Video) -> anyhow::Result<()> {
    let mut request = V4l2RequestBuffers {
        count: 2,
        buf_type: CAPTURE,
        memory: memory::MMAP,
        ..V4l2RequestBuffers::default()
    };
    let spoken = spoken(Ioctl(u32::try_from(command::REQBUFS)?));
    sys::ioctl(video, spoken.0.into(), &mut request).context("REQBUFS(MMAP) with the shim")?;
    ensure!(request.count == 2, "{} buffers", request.count);
    Ok(())
}

/// Is the first buffer served? How long that took.
fn is_served(link: &Link) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let answer = link
        .ask(map(0, PAGE as u64))?
        .context("the connection was ended")?;
    ensure!(matches!(answer, (Answer::Map { .. }, Some(_))), "{answer:?}");
    Ok(begun.elapsed())
}

/// Asks until `stop`: how long the slowest answer took, and how many there were.
fn ask_until(link: &Link, stop: &AtomicBool) -> anyhow::Result<(Duration, usize)> {
    let (mut slowest, mut count) = (Duration::ZERO, 0);
    while !stop.load(Ordering::Relaxed) {
        slowest = slowest.max(is_served(link)?);
        count += 1;
    }
    Ok((slowest, count))
}

/// Waits until the daemon holds no more than it has held: what was answered last may not be closed yet, then and now.
fn settles(daemon: &Daemon, before: &Resources) -> anyhow::Result<()> {
    let end = Instant::now() + 4 * AT_ONCE;
    loop {
        let now = daemon.resources()?;
        if now.fds.len() <= before.fds.len() && now.threads <= before.threads {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{} threads, {:?}", now.threads, now.fds);
        thread::sleep(Duration::from_millis(50));
    }
}

fn complaints(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let bad = log
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"));
    // A kernel without dma-heap is no complaint about anybody.
    bad.filter(|line| !line.contains("dma_heap"))
        .map(str::to_owned)
        .collect()
}

fn tokens() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let daemon = start(&["--shim-socket", SOCKET])?;
    let video = ours(SPARE).open()?;
    allocate(&video)?;
    let link = Link::of(&video)?;
    let (answer, file) = link.ask(map(0, PAGE as u64))?.context("the end")?;
    let (Answer::Map { offset }, Some(file)) = (answer, file) else {
        bail!("{answer:?}");
    };
    let area = Area::reserve(PAGE)?;
    area.map(0, PAGE, Source::Shared(file.as_fd(), offset), Rights::ReadWrite)?;
    area.write(0, PATTERN)?;

    let stolen = as_nobody(&["shim-attack", "steal", SOCKET, &hex(link.token)], Stdio::null())?;
    ensure!(
        stolen == ["(Errno(ENOENT), None)"; 5].join(" "),
        "with root's token: {stolen}"
    );
    // Who is passed the file may ask for himself, and his token is not root's.
    let passed = video.0.try_clone()?;
    let his = as_nobody(&["shim-attack", "own", &hex(link.token)], passed)?;
    let his = Link {
        token: token(&his)?,
        ..link.clone()
    };
    let refused = his.ask(map(0, PAGE as u64))?.context("the end")?;
    ensure!(
        matches!(refused, (Answer::Errno(errno), None) if errno.raw() == libc::ENOENT),
        "{refused:?}"
    );
    // Asked again, a file gives the same token, and another file another.
    ensure!(Link::of(&video)?.token == link.token);
    let other = ours(SPARE).open()?;
    ensure!(Link::of(&other)?.token != link.token);

    let before = daemon.resources()?;
    drop(video);
    for ask in [
        map(0, PAGE as u64),
        Ask::NextMove,
        Ask::IsLent {
            client_addr: area.at(0),
            length: PAGE as u64,
        },
    ] {
        let answer = link.ask(ask)?.context("the end")?;
        ensure!(
            matches!(answer, (Answer::Errno(errno), None) if errno.raw() == libc::ENOENT),
            "{ask:?} after close: {answer:?}"
        );
    }
    let of_device = |held: &Resources| held.fds.iter().filter(|fd| fd.contains("/dev/video")).count();
    // That of `other`, and what the daemon has of its own.
    ensure!(
        of_device(&daemon.resources()?) + 1 == of_device(&before),
        "the real node is still open"
    );
    ensure!(area.read(0, PATTERN.len())? == PATTERN, "what is mapped stays");
    Ok(())
}

fn messages() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let daemon = start(&["--shim-socket", SOCKET])?;
    let video = ours(SPARE).open()?;
    allocate(&video)?;
    let link = Link::of(&video)?;
    is_served(&link)?;
    let before = daemon.resources()?;
    let stop = AtomicBool::new(false);
    let (said, asked) = thread::scope(|scope| {
        let asking = scope.spawn(|| ask_until(&link, &stop));
        let said = video.0.try_clone().map_err(Into::into);
        let said = said.and_then(|stdin| as_nobody(&["shim-attack", "messages", SOCKET], stdin));
        stop.store(true, Ordering::Relaxed);
        (said, asking.join().map_err(|_| anyhow::anyhow!("a panic")))
    });
    let (slowest, count) = asked??;
    let said = said?;
    figure(format!(
        "the shim's socket under nonsense: {count} answers to another user, the slowest after {slowest:?}; {said}"
    ));
    ensure!(said != "served 0", "what was right was not served");
    ensure!(slowest < PATIENCE, "{slowest:?}");
    settles(&daemon, &before)?;
    let complaints = complaints(&daemon);
    ensure!(
        complaints.len() == 1 && complaints[0].contains(&format!("uid={NOBODY}")),
        "{complaints:#?}"
    );
    Ok(())
}

fn connections() -> anyhow::Result<()> {
    const KEPT: &str = "4000";
    if both_real() {
        return Ok(());
    }
    let daemon = start(&["--shim-socket", SOCKET])?;
    let video = ours(SPARE).open()?;
    allocate(&video)?;
    let link = Link::of(&video)?;
    is_served(&link)?;
    let before = daemon.resources()?;
    let stop = AtomicBool::new(false);
    let (said, asked, most) = thread::scope(|scope| {
        let asking = scope.spawn(|| ask_until(&link, &stop));
        let looking = scope.spawn(|| {
            let mut most = 0;
            while !stop.load(Ordering::Relaxed) {
                most = most.max(daemon.resources().map_or(0, |now| now.fds.len()));
                thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let said = as_nobody(&["shim-attack", "connect", SOCKET, KEPT, "5"], Stdio::null());
        stop.store(true, Ordering::Relaxed);
        let panic = |_| anyhow::anyhow!("a panic");
        (said, asking.join().map_err(panic), looking.join().map_err(panic))
    });
    let ((slowest, count), said) = (asked??, said?);
    let more = most?.saturating_sub(before.fds.len());
    figure(format!(
        "the shim's socket, connections of one user (kept, made): {said}; {count} answers to another user, the slowest \
         after {slowest:?}; {more} fds of the daemon's more"
    ));
    ensure!(said.starts_with(KEPT), "{said}");
    ensure!(slowest < PATIENCE, "{slowest:?}");
    // As many as one user may have, and those that are being refused.
    ensure!((32..=64 + 4 + 1024).contains(&more), "{more} fds more");
    settles(&daemon, &before)?;
    let complaints = complaints(&daemon);
    ensure!(complaints.len() == 1, "{complaints:#?}");
    Ok(())
}

fn linger() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    run("ip", &["link", "set", "lo", "up"], AT_ONCE)?;
    let daemon = start(&["--shim-socket", SOCKET])?;
    let video = ours(SPARE).open()?;
    allocate(&video)?;
    let link = Link::of(&video)?;
    is_served(&link)?;
    let before = daemon.resources()?;
    let mut stranger = Command::new("/proc/self/exe")
        .args([ARGUMENT, "shim-attack", "linger", SOCKET, "600"])
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(stranger.stdout.take().context("no pipe")?).lines();
    let said = lines.next().context("the stranger says nothing")??;
    let mut slowest = Duration::ZERO;
    for _ in 0..100 {
        slowest = slowest.max(is_served(&link)?);
        thread::sleep(Duration::from_millis(10));
    }
    let now = daemon.resources()?;
    figure(format!(
        "the shim's socket and files that are slow to close: {said}; another user's slowest answer after {slowest:?}; {} \
         threads and {} fds of the daemon's, {} and {} before",
        now.threads,
        now.fds.len(),
        before.threads,
        before.fds.len()
    ));
    let refused = said == "refused";
    ensure!(
        refused || now.threads > before.threads + 32,
        "none was slow to close"
    );
    ensure!(slowest < PATIENCE, "{slowest:?}");
    // Now nothing is waited for any more.
    stranger.stdin.take();
    stranger.wait()?;
    settles(&daemon, &before)?;
    is_served(&link).map(drop)
}

fn closing() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let _daemon = start(&["--shim-socket", SOCKET])?;
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let video = ours(SPARE).open()?;
        allocate(&video)?;
        let link = Link::of(&video)?;
        let answered = AtomicUsize::new(0);
        let hammer = || {
            let connection = Connection::to(&link.socket)?;
            let mut answers = 0;
            loop {
                connection.send(&map(0, PAGE as u64).encode(link.token), &[])?;
                match connection.receive()? {
                    Some((Answer::Map { .. }, Some(_))) => {
                        answers += 1;
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Some((Answer::Errno(errno), None)) if errno.raw() == libc::ENOENT => return Ok(answers),
                    other => bail!("{other:?} after {answers} answers"),
                }
            }
        };
        let (took, hammered) = thread::scope(|scope| {
            let hammering: Vec<_> = (0..8).map(|_| scope.spawn(hammer)).collect();
            let waiting = Instant::now();
            while answered.load(Ordering::Relaxed) < 8 && waiting.elapsed() < AT_ONCE {
                thread::sleep(Duration::from_millis(1));
            }
            let begun = Instant::now();
            drop(video);
            let took = begun.elapsed();
            let hammered: Vec<anyhow::Result<usize>> = hammering
                .into_iter()
                .map(|each| each.join().map_err(|_| anyhow::anyhow!("a panic"))?)
                .collect();
            (took, hammered)
        });
        slowest = slowest.max(took);
        let answers: usize = hammered
            .into_iter()
            .collect::<anyhow::Result<Vec<_>>>()?
            .iter()
            .sum();
        ensure!(answers > 0, "nobody was served before the file was closed");
        // The real node is free at once, or this fails.
        drop(ours(SPARE).open()?);
    }
    figure(format!(
        "close of a file while 8 threads ask for it: {slowest:?} at most"
    ));
    ensure!(slowest < PATIENCE, "{slowest:?}");
    Ok(())
}

fn sockets() -> anyhow::Result<()> {
    if both_real() {
        return Ok(());
    }
    let hello = || Link::of(ours(SPARE).open()?).map_err(anyhow::Error::from);
    let none = |why: &str| match Link::of(ours(SPARE).open()?) {
        Err(Errno::ENOTTY) => Ok(()),
        other => Err(anyhow::anyhow!("{why}: {other:?}")),
    };
    let mut daemon = start(&["--shim-socket", "none"])?;
    none("without a socket")?;
    drop(daemon);
    daemon = start(&["--shim-socket", SOCKET, "--adopt", "false"])?;
    ensure!(hello()?.flags & MAY_ADOPT == 0, "--adopt false");
    let mode = std::fs::metadata(SOCKET)?.permissions().mode();
    ensure!(mode & 0o7777 == 0o666, "{mode:o}");
    // Another daemon serves its devices all the same.
    let device = real(HDMI).to_string();
    let other = Daemon::start(&["--device", &device, "--control", "none", "--shim-socket", SOCKET])?;
    let log = other.log();
    ensure!(
        log.contains(&format!("in use by process {}", daemon.pid()))
            && log.contains("served as those without"),
        "{log}"
    );
    let video = ours(HDMI).open()?;
    ensure!(
        matches!(Link::of(&video), Err(Errno::ENOTTY)),
        "the second daemon"
    );
    drop((video, other));
    // What a dead one has left is replaced; its shims are told something else than the next one's.
    daemon.end(Signal::SIGKILL, AT_ONCE)?;
    drop(daemon);
    ensure!(std::fs::exists(SOCKET)?, "SIGKILL leaves it");
    let both = [real(SPARE).to_string(), real(HDMI).to_string()];
    let daemon = Daemon::start(&[
        "--device",
        &both[0],
        "--device",
        &both[1],
        "--control",
        "none",
        "--shim-socket",
        SOCKET,
    ])?;
    ensure!(
        hello()?.flags & MAY_ADOPT != 0,
        "by default buffers may be adopted"
    );
    // One socket for both, and a token is of one file.
    let (one, two) = (ours(SPARE).open()?, ours(HDMI).open()?);
    allocate(&one)?;
    let (of_one, of_two) = (Link::of(&one)?, Link::of(&two)?);
    ensure!(of_one.socket == of_two.socket && of_one.token != of_two.token);
    is_served(&of_one)?;
    let answer = of_two.ask(map(0, PAGE as u64))?.context("the end")?;
    ensure!(
        matches!(answer, (Answer::Errno(errno), None) if errno.raw() == libc::EINVAL),
        "{answer:?}"
    );
    let (_, file) = of_one.ask(map(0, PAGE as u64))?.context("the end")?;
    let area = Area::reserve(PAGE)?;
    area.map(
        0,
        PAGE,
        Source::Shared(file.context("no file")?.as_fd(), 0),
        Rights::ReadWrite,
    )?;
    area.write(0, PATTERN)?;
    // From a pid namespace of its own, where it is process 1.
    let suite = std::env::current_exe()?;
    let mut inside = Command::new("unshare")
        .args(["--pid", "--fork"])
        .arg(suite)
        .args([ARGUMENT, "shim-attack", "own", "nobody's"])
        .stdin(one.0.try_clone()?)
        .stdout(Stdio::piped())
        .spawn()?;
    ensure!(inside.wait()?.success(), "from a pid namespace");
    drop((one, two, daemon));
    // A file in the way stays.
    std::fs::write(SOCKET, "precious")?;
    let daemon = start(&["--shim-socket", SOCKET])?;
    none("with a file in the way")?;
    ensure!(
        daemon.log().contains("exists and is no socket"),
        "{}",
        daemon.log()
    );
    ensure!(std::fs::read_to_string(SOCKET)? == "precious");
    std::fs::remove_file(SOCKET)?;
    let long = format!("/run/{}", "x".repeat(103));
    let (status, said) = Daemon::refuse(&["--device", &both[0], "--shim-socket", &long])?;
    ensure!(
        !status.success() && said.contains("107 bytes at most"),
        "{status} {said}"
    );
    Ok(())
}
