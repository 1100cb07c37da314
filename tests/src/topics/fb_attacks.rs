//! What a hostile client may do to the daemon with a framebuffer: of the real node, of a card, of memory. The daemon lives,
//! and others are served.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::client::{AT_ONCE, Client, run};
use crate::daemon::Daemon;
use crate::report::figure;
use crate::screens::Screen;
use crate::setup::{Test, is_long};
use crate::shim::Seat;

pub const TESTS: &[(&str, Test)] = &[
    ("fb_attacks::hundreds_of_mappings", mappings),
    ("fb_attacks::as_many_files_as_one_user_may_open", files),
    ("fb_attacks::random_ioctls_of_four_threads", garbage),
    ("fb_attacks::cutting_short_what_is_mapped", tear),
    ("fb_attacks::a_mapping_outlives_the_daemon", outlives),
];

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with one framebuffer of each kind, and how programs get to each.
struct Targets {
    daemon: Daemon,
    seats: Vec<(&'static str, Seat)>,
}

fn targets() -> anyhow::Result<Targets> {
    let vfb = Screen::Vfb.real()?;
    let card = format!("kms:{},as=9,keep", Screen::Bochs.card()?.display());
    let vfb_name = vfb.to_str().context("no text")?.to_owned();
    let daemon = Daemon::start(&[
        "--fb",
        &vfb_name,
        "--fb",
        &card,
        "--fb",
        "memory:640x480x32,as=10",
    ])?;
    let seats = vec![
        (
            "the real node",
            Seat::run_at("on ours in front of vfb", vfb.clone()),
        ),
        (
            "a card",
            Seat::run_at("on ours made from a card", "/dev/fb9".into()),
        ),
        ("memory", Seat::run_at("on ours in memory", "/dev/fb10".into())),
    ];
    for node in [
        &vfb,
        &Screen::Vfb.ours()?,
        Path::new("/dev/fb9"),
        Path::new("/dev/fb10"),
    ] {
        fs::set_permissions(node, fs::Permissions::from_mode(0o666))?;
    }
    Ok(Targets { daemon, seats })
}

impl Targets {
    /// Another user is served, at once: the hostile one may have used up what one user may have.
    fn serve(&self) -> anyhow::Result<()> {
        self.seats
            .iter()
            .try_for_each(|(kind, seat)| Self::serve_at(kind, seat))
    }

    fn serve_at(kind: &str, seat: &Seat) -> anyhow::Result<()> {
        let begin = Instant::now();
        let user = [
            "setpriv",
            "--reuid",
            "nobody",
            "--regid",
            "nogroup",
            "--clear-groups",
        ];
        let (status, said) = seat.play(&[&user[..], &["fbset", "-i", "-fb", "NODE"]].concat(), AT_ONCE)?;
        ensure!(
            status.success() && said.contains("geometry"),
            "{kind}: {status}: {said}"
        );
        ensure!(
            begin.elapsed() < AT_ONCE,
            "{kind}: another client waited {:?}",
            begin.elapsed()
        );
        Ok(())
    }

    /// Runs the hostile client at each target, and looks whether others are served there while it holds what it has, and
    /// everywhere after it; long runs look everywhere all the time.
    fn attack(&self, words: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for (kind, seat) in &self.seats {
            let words: Vec<&str> = ["fb_hostile"]
                .iter()
                .chain(words)
                .chain(&["NODE"])
                .copied()
                .collect();
            let mut client = seat.start(&words)?;
            let said = line(&client, PATIENCE).with_context(|| format!("{kind}: {words:?}"))?;
            let served = if is_long() {
                self.serve()
            } else {
                Self::serve_at(kind, seat)
            };
            served.with_context(|| format!("{kind}, during {words:?}"))?;
            client.close_stdin();
            let status = client.end(PATIENCE)?;
            ensure!(
                status.success(),
                "{kind}: {words:?}: {status}: {said} {}",
                client.rest()
            );
            all.push(said);
        }
        self.serve()?;
        figure(format!("{words:?}: {}", all.join(" | ")));
        Ok(all)
    }
}

fn line(client: &Client, limit: Duration) -> anyhow::Result<String> {
    let end = Instant::now() + limit;
    loop {
        match client.line() {
            Ok(line) => return Ok(line),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => {}
        }
    }
}

/// Nothing of it is left in the daemon.
fn settles(daemon: &Daemon, before: usize) -> anyhow::Result<()> {
    let end = Instant::now() + AT_ONCE;
    loop {
        let fds = daemon.resources()?.fds.len();
        if fds <= before {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{fds} fds instead of {before}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn mappings() -> anyhow::Result<()> {
    let targets = targets()?;
    // A screen has memory from the first mapping on.
    targets.attack(&["maps", "1"])?;
    let before = targets.daemon.resources()?;
    let count = if is_long() { "20000" } else { "500" };
    let said = targets.attack(&["maps", count])?;
    ensure!(
        said.iter().all(|said| *said == format!("maps={count} then=-")),
        "{said:?}"
    );
    let after = targets.daemon.resources()?;
    ensure!(
        after.anonymous_kib < before.anonymous_kib + 16 * 1024,
        "{} KiB of memory before, {} after",
        before.anonymous_kib,
        after.anonymous_kib
    );
    settles(&targets.daemon, before.fds.len())
}

fn files() -> anyhow::Result<()> {
    let targets = targets()?;
    targets.serve()?;
    let before = targets.daemon.resources()?;
    let said = targets.attack(&["opens", "2000"])?;
    ensure!(said.iter().all(|said| said.starts_with("opens=")), "{said:?}");
    settles(&targets.daemon, before.fds.len())
}

fn garbage() -> anyhow::Result<()> {
    let targets = targets()?;
    let seconds = if is_long() { "60" } else { "3" };
    let said = targets.attack(&["garbage", seconds])?;
    ensure!(said.iter().all(|said| said == "calls=many"), "{said:?}");
    // vfb as it was.
    let real = Screen::Vfb.real()?;
    let real = real.to_str().context("no text")?;
    let mode = ["640", "480", "640", "480", "8"];
    run("fbset", &[&["-fb", real, "-g"][..], &mode].concat(), PATIENCE).map(drop)
}

fn tear() -> anyhow::Result<()> {
    let targets = targets()?;
    let said = targets.attack(&["tear"])?;
    for said in &said {
        ensure!(
            !said.contains("truncate=ok") && !said.contains("seal=ok"),
            "what was mapped could be changed for everybody: {said}"
        );
    }
    Ok(())
}

fn outlives() -> anyhow::Result<()> {
    let mut outcomes = Vec::new();
    for at in 0..3 {
        let mut targets = targets()?;
        let (kind, seat) = targets.seats[at].clone();
        let mut client = seat.start(&["fb_hostile", "holds", "NODE"])?;
        ensure!(line(&client, PATIENCE)? == "mapped", "{kind}");
        targets.daemon.end(Signal::SIGKILL, AT_ONCE)?;
        client.say("go on")?;
        let said = client.line()?;
        client.close_stdin();
        let status = client.end(AT_ONCE)?;
        ensure!(status.success(), "{kind}: {status}: {said}");
        ensure!(said == "42 7", "{kind}: the mapping is not what it was: {said}");
        outcomes.push(format!("{kind}: {said}"));
    }
    figure(format!(
        "mappings after SIGKILL of the daemon: {}",
        outcomes.join(", ")
    ));
    Ok(())
}
