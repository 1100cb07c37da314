//! Takeover: ours has the name of the real node, and whatever happens to the daemon, that comes back.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{AT_ONCE, Client, run};
use crate::daemon::{Daemon, wait};
use crate::modules::again;
use crate::report::figure;
use crate::service::{
    CONFIG, cameras, configure, is_ours, is_real, number, plug, start, unplug, until, works,
};
use crate::setup::{Test, is_6_1, is_long};
use crate::video::Video;

pub const TESTS: &[(&str, Test)] = &[
    ("takeover::the_name_is_ours_and_on_stop_the_real_ones_again", stop),
    (
        "takeover::after_each_of_100_crashes_the_name_is_a_working_node",
        crashes,
    ),
    (
        "takeover::after_a_loss_of_power_the_journal_does_no_harm",
        power_loss,
    ),
    (
        "takeover::a_second_daemon_is_told_who_has_the_name_and_leaves_it_alone",
        second,
    ),
    (
        "takeover::a_module_is_taken_out_and_loaded_again_while_taken_over",
        module,
    ),
    (
        "takeover::a_device_that_goes_while_open_takes_the_name_along",
        go_while_open,
    ),
    (
        "takeover::under_a_keeper_the_name_stays_ours_while_daemons_are_killed",
        kept,
    ),
    (
        "takeover::rights_given_to_ours_are_the_real_ones_afterwards",
        rights,
    ),
];

const NODE: &str = "/dev/video0";
const ASIDE: &str = "/dev/vidcompat/video0";
const JOURNAL: &str = "/run/vidcompat/takeover/video0";
const TAKEOVER: &str =
    "[[device]]\nall = true\nway = \"off\"\n[[device]]\npath = \"/dev/video0\"\nway = \"takeover\"\n";

/// What must be as it was: inode, number, owner, group, mode.
type Identity = (u64, Option<(u64, u64)>, u32, u32, u32);

fn identity(path: &str) -> anyhow::Result<Identity> {
    let node = fs::symlink_metadata(path).with_context(|| path.to_owned())?;
    Ok((node.ino(), number(path), node.uid(), node.gid(), node.mode()))
}

/// The real node has its name, is the same as before, and nothing is left.
fn is_back(before: &Identity) -> anyhow::Result<()> {
    let now = identity(NODE)?;
    ensure!(now == *before, "{before:?} has become {now:?}");
    let left: Vec<_> = fs::read_dir("/dev/vidcompat")?.flatten().collect();
    ensure!(left.is_empty(), "{left:?}");
    ensure!(!Path::new(JOURNAL).exists(), "the journal is still there");
    works(NODE)
}

/// A node with an owner and a mode that it would not have by itself.
fn prepare() -> anyhow::Result<Identity> {
    cameras()?;
    chown(NODE, Some(0), Some(44))?;
    fs::set_permissions(NODE, Permissions::from_mode(0o640))?;
    identity(NODE)
}

fn stop() -> anyhow::Result<()> {
    let before = prepare()?;
    // As udev makes them.
    let link = "/dev/v4l/by-id/usb-Test_camera-video-index0";
    fs::create_dir_all("/dev/v4l/by-id")?;
    symlink("../../video0", link)?;
    let daemon = start(&TAKEOVER.replace(NODE, link))?;
    ensure!(is_ours(NODE), "{:?}", number(NODE));
    ensure!(identity(ASIDE)? == before, "{:?}", identity(ASIDE)?);
    let ours = identity(NODE)?;
    ensure!(
        (ours.2, ours.3, ours.4) == (before.2, before.3, before.4),
        "{ours:?}"
    );
    for path in [NODE, link] {
        works(path)?;
        let said = run("v4l2-ctl", &["-d", path, "-D"], 4 * AT_ONCE)?;
        ensure!(said.contains("Driver name      : vivid"), "{said}");
    }
    // Nothing to do but the shim.
    let said = run(
        "vidcompat",
        &["run", "--", "v4l2-ctl", "-d", NODE, "-D"],
        4 * AT_ONCE,
    )?;
    ensure!(said.contains("Driver name      : vivid"), "{said}");
    // Nobody finds the name without a node, however it ends.
    let looking = thread::spawn(|| {
        let (begin, mut missing) = (Instant::now(), 0_u32);
        while begin.elapsed() < Duration::from_millis(1500) {
            missing += u32::from(!Path::new(NODE).exists());
        }
        missing
    });
    thread::sleep(Duration::from_millis(300));
    drop(daemon);
    let missing = looking.join().ok().context("a panic")?;
    ensure!(
        missing == 0,
        "the name was without a node {missing} times while the daemon ended"
    );
    is_back(&before)?;
    fs::remove_file(link)?;
    // A client that streams when it ends is told as ever, and the name changes hands under it.
    let mut daemon = start(TAKEOVER)?;
    let mut client = Client::start(
        "v4l2-ctl",
        &["-d", NODE, "--stream-user=4", "--stream-count=100000"],
    )?;
    thread::sleep(Duration::from_millis(300));
    let status = daemon.end(Signal::SIGTERM, AT_ONCE)?;
    ensure!(status.code() == Some(0), "{status}");
    until("the client has ended", || client.has_ended().unwrap_or(true))?;
    is_back(&before)
}

/// A daemon that nobody waits for.
fn spawn() -> anyhow::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open("/tmp/vidcompat-crashes.log")?;
    let daemon = Command::new("vidcompatd")
        .args(["--config", CONFIG])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(daemon)
}

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn crashes() -> anyhow::Result<()> {
    let before = prepare()?;
    configure(TAKEOVER)?;
    let count = if is_long() { 1000 } else { 100 };
    let mut random = Random(20_261_123);
    let (mut early, mut without_node, mut taken) = (0, 0, 0);
    // How long it takes from the start to the name.
    let begin = Instant::now();
    let mut daemon = spawn()?;
    until("ours has the name", || is_ours(NODE))?;
    let usual = u64::try_from(begin.elapsed().as_micros())?;
    for round in 0..count {
        // Half of them around the taking of the name, the others later, some while a client streams.
        let mut client = None;
        let delay = match round % 4 {
            0 | 1 => random.below(2 * usual),
            2 => usual + random.below(100_000),
            _ => {
                until("ours has the name", || is_ours(NODE))?;
                let arguments = ["-d", NODE, "--stream-user=4", "--stream-count=100000"];
                client = Some(Client::start("v4l2-ctl", &arguments)?);
                random.below(150_000)
            }
        };
        thread::sleep(Duration::from_micros(delay));
        daemon.kill()?;
        wait(&mut daemon, AT_ONCE)?;
        match number(NODE) {
            None => without_node += 1,
            Some((_, minor)) if minor >= 256 => taken += 1,
            Some(_) => early += 1,
        }
        drop(client.map(|mut client| client.end(AT_ONCE)));
        if round % 2 == 0 {
            // What the unit does; twice does no harm.
            for _ in 0..=u32::from(round % 10 == 0) {
                run("vidcompatd", &["--give-back"], AT_ONCE)?;
            }
            is_back(&before).with_context(|| format!("crash {round}"))?;
            daemon = spawn()?;
        } else {
            // The next start.
            daemon = spawn()?;
            until("ours has the name", || is_ours(NODE)).with_context(|| format!("crash {round}"))?;
            until("it works", || works(NODE).is_ok()).with_context(|| format!("crash {round}"))?;
        }
    }
    daemon.kill()?;
    wait(&mut daemon, AT_ONCE)?;
    run("vidcompatd", &["--give-back"], AT_ONCE)?;
    is_back(&before)?;
    figure(format!(
        "takeover: {count} crashes; the name was then the real node's {early} times, nobody's {without_node} times, ours \
         {taken} times; each time it was a working node afterwards"
    ));
    ensure!(
        without_node > 0 && early > 0,
        "the crashes have not met both sides of the taking"
    );
    Ok(())
}

fn power_loss() -> anyhow::Result<()> {
    let before = prepare()?;
    configure(TAKEOVER)?;
    let crash = || -> anyhow::Result<Vec<u8>> {
        let mut daemon = start(TAKEOVER)?;
        daemon.end(Signal::SIGKILL, AT_ONCE)?;
        Ok(fs::read(JOURNAL)?)
    };
    // /run has outlived what was in /dev: the node is where the kernel has made it.
    let journal = crash()?;
    run("vidcompatd", &["--give-back"], AT_ONCE)?;
    is_back(&before)?;
    fs::write(JOURNAL, &journal)?;
    run("vidcompatd", &["--give-back"], AT_ONCE)?;
    is_back(&before)?;
    // A journal that is none.
    fs::write(JOURNAL, b"{\"real\":[81")?;
    drop(start(TAKEOVER)?);
    is_back(&before)?;
    // Neither node is there: the real one is made anew, as it was.
    crash()?;
    fs::remove_file(ASIDE)?;
    ensure!(!Path::new(NODE).exists(), "{:?}", number(NODE));
    run("vidcompatd", &["--give-back"], AT_ONCE)?;
    let now = identity(NODE)?;
    ensure!(
        (now.1, now.2, now.3, now.4) == (before.1, before.2, before.3, before.4),
        "{before:?} has become {now:?}"
    );
    works(NODE)?;
    // Somebody else's file has the name: it is left alone, and told.
    crash()?;
    fs::write(NODE, "precious")?;
    let mut client = Client::start("vidcompatd", &["--give-back"])?;
    let status = client.end(AT_ONCE)?;
    let said = client.rest();
    ensure!(
        !status.success() && said.contains("neither the real node nor ours"),
        "{status}: {said}"
    );
    ensure!(fs::read_to_string(NODE)? == "precious", "it is overwritten");
    fs::remove_file(NODE)?;
    run("vidcompatd", &["--give-back"], AT_ONCE)?;
    works(NODE)?;
    fs::remove_file(NODE)?;
    again("vivid")
}

fn second() -> anyhow::Result<()> {
    let before = prepare()?;
    let first = start(TAKEOVER)?;
    let told = format!("/dev/video0 is taken over by process {} already", first.pid());
    let arguments = ["--config", CONFIG, "--control", "none", "--shim-socket", "none"];
    let other = Daemon::start(&arguments)?;
    until(&told, || other.log().contains(&told))?;
    ensure!(
        is_ours(NODE) && identity(ASIDE)? == before,
        "{:?}",
        identity(ASIDE)?
    );
    let mut client = Client::start(
        "v4l2-ctl",
        &["-d", NODE, "--stream-user=4", "--stream-count=100000"],
    )?;
    thread::sleep(Duration::from_millis(200));
    drop(other);
    // Nor does anybody else undo what a living daemon has done.
    run("vidcompatd", &["--give-back"], AT_ONCE)?;
    let (status, said) = Daemon::refuse(&["--device", NODE, "--control", "none", "--shim-socket", "none"])?;
    ensure!(
        status.code() == Some(1) && said.contains("is a node of vidcompatd itself"),
        "{status}: {said}"
    );
    ensure!(
        is_ours(NODE) && identity(ASIDE)? == before,
        "{:?}",
        identity(ASIDE)?
    );
    ensure!(!client.has_ended()?, "{}", client.rest());
    client.signal(Signal::SIGTERM)?;
    client.end(AT_ONCE)?;
    works(NODE)?;
    drop(first);
    is_back(&before)
}

const PARAMETERS: [&str; 5] = [
    "vivid",
    "n_devs=2",
    "node_types=0x1,0x1",
    "num_inputs=1,1",
    "input_types=0,0",
];

fn module() -> anyhow::Result<()> {
    cameras()?;
    let daemon = start(TAKEOVER)?;
    works(NODE)?;
    run("rmmod", &["vivid"], 4 * AT_ONCE)?;
    until("no device, no node", || {
        !Path::new(NODE).exists() && !Path::new(ASIDE).exists() && !Path::new(JOURNAL).exists()
    })?;
    run("modprobe", &PARAMETERS, 4 * AT_ONCE)?;
    until("ours has the name again", || is_ours(NODE))?;
    works(NODE)?;
    // Faster than it can be followed: the kernel finds the name taken.
    for _ in 0..5 {
        run("rmmod", &["vivid"], 4 * AT_ONCE)?;
        run("modprobe", &PARAMETERS, 4 * AT_ONCE)?;
    }
    until("it works", || is_ours(NODE) && works(NODE).is_ok())?;
    drop(daemon);
    ensure!(is_real(NODE), "{:?}", number(NODE));
    works(NODE)?;
    // The daemon dies, and the device is another one when somebody looks.
    let mut daemon = start(TAKEOVER)?;
    daemon.end(Signal::SIGKILL, AT_ONCE)?;
    run("rmmod", &["vivid"], 4 * AT_ONCE)?;
    run("modprobe", &PARAMETERS, 4 * AT_ONCE)?;
    run("vidcompatd", &["--give-back"], AT_ONCE)?;
    ensure!(is_real(NODE) && !Path::new(ASIDE).exists(), "{:?}", number(NODE));
    works(NODE)?;
    // Or there is none.
    let mut daemon = start(TAKEOVER)?;
    daemon.end(Signal::SIGKILL, AT_ONCE)?;
    run("rmmod", &["vivid"], 4 * AT_ONCE)?;
    run("vidcompatd", &["--give-back"], AT_ONCE)?;
    ensure!(
        !Path::new(NODE).exists() && !Path::new(ASIDE).exists(),
        "{:?}",
        number(NODE)
    );
    run("modprobe", &PARAMETERS, 4 * AT_ONCE)?;
    works(NODE)?;
    again("vivid")
}

fn go_while_open() -> anyhow::Result<()> {
    cameras()?;
    let daemon = start(TAKEOVER)?;
    let video = Video::at(Path::new(NODE), 0)?;
    ensure!(video.sizeimage().is_ok(), "it works");
    unplug()?;
    until("the name has gone", || {
        !Path::new(NODE).exists() && !Path::new(ASIDE).exists()
    })?;
    let said = video.sizeimage();
    ensure!(said == Err(Errno::ENODEV), "{said:?}");
    // It has its number until then: until the daemon has closed it, too, or the cameras would change places.
    drop(video);
    until("the node has ended", || {
        !Path::new("/sys/class/cuse/video0").exists()
    })?;
    plug()?;
    until("it works", || is_ours(NODE) && works(NODE).is_ok())?;
    // Served no more while a client has it open: the name is the real one's, the client goes on.
    let video = Video::at(Path::new(NODE), 0)?;
    configure("[[device]]\nall = true\nway = \"off\"\n")?;
    kill(daemon.pid(), Signal::SIGHUP)?;
    until("the name is the real one's", || is_real(NODE))?;
    ensure!(
        video.sizeimage().is_ok(),
        "the client is not served any more: {:?}",
        video.sizeimage()
    );
    drop(video);
    until("the node has ended", || {
        !Path::new("/sys/class/cuse/video0").exists()
    })?;
    works(NODE)?;
    drop(daemon);
    again("vivid")
}

fn rights() -> anyhow::Result<()> {
    let before = prepare()?;
    let daemon = start(TAKEOVER)?;
    // As logind does, by name, when another person sits at the screen.
    fs::set_permissions(NODE, Permissions::from_mode(0o666))?;
    let mode = |path: &str| fs::metadata(path).map_or(0, |node| node.mode() & 0o7777);
    until("the real node has it too", || mode(ASIDE) == 0o666)?;
    let mut daemon = daemon;
    daemon.end(Signal::SIGKILL, AT_ONCE)?;
    run("vidcompatd", &["--give-back"], AT_ONCE)?;
    ensure!(mode(NODE) == 0o666, "{:o}", mode(NODE));
    fs::set_permissions(NODE, Permissions::from_mode(before.4 & 0o7777))?;
    is_back(&before)
}

/// The daemon of this keeper.
fn child_of(keeper: &Daemon) -> Option<Pid> {
    let pid = keeper.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
        .map(Pid::from_raw)
}

/// Kills the daemon, does something, and waits for the next one.
fn next_daemon(keeper: &Daemon, meanwhile: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let ready = || keeper.log().lines().filter(|line| *line == "ready").count();
    let before = ready();
    let daemon = child_of(keeper).context("no daemon")?;
    kill(keeper.pid(), Signal::SIGSTOP)?;
    kill(daemon, Signal::SIGKILL)?;
    // Not before its last thread has gone are its files closed.
    let dead = || {
        let threads = fs::read_dir(format!("/proc/{daemon}/task")).map_or(0, Iterator::count);
        let stat = fs::read_to_string(format!("/proc/{daemon}/stat"));
        threads == 1 && stat.is_ok_and(|stat| stat.contains(") Z "))
    };
    let outcome = until("the daemon is dead", dead).and_then(|_| meanwhile());
    kill(keeper.pid(), Signal::SIGCONT)?;
    outcome?;
    until("the next daemon is ready", || ready() > before).map(drop)
}

/// As the unit does when the daemon has ended.
fn give_back_after(result: &str) -> anyhow::Result<()> {
    let ended = Command::new("vidcompatd")
        .arg("--give-back")
        .env("SERVICE_RESULT", result)
        .status()?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

fn kept() -> anyhow::Result<()> {
    let before = prepare()?;
    configure(TAKEOVER)?;
    let mut keeper = Daemon::start(&["--keep", "--config", CONFIG])?;
    ensure!(is_ours(NODE), "{:?}", number(NODE));
    let ours = identity(NODE)?;
    if is_6_1() {
        // Nothing outlives the daemon: the next one takes the name again.
        next_daemon(&keeper, || {
            ensure!(!Path::new(NODE).exists(), "{:?}", number(NODE));
            give_back_after("signal")?;
            is_back(&before)
        })?;
        ensure!(is_ours(NODE), "{:?}", number(NODE));
        works(NODE)?;
    } else {
        let mut client = Client::start(
            "v4l2-ctl",
            &["-d", NODE, "--stream-user=4", "--stream-count=100000"],
        )?;
        thread::sleep(Duration::from_millis(300));
        for _ in 0..10 {
            next_daemon(&keeper, || {
                // systemd's own next daemon comes at once, too.
                give_back_after("signal")?;
                ensure!(
                    identity(NODE)? == ours,
                    "{ours:?} has become {:?}",
                    identity(NODE)?
                );
                Ok(())
            })?;
            ensure!(
                identity(NODE)? == ours,
                "{ours:?} has become {:?}",
                identity(NODE)?
            );
            ensure!(identity(ASIDE)? == before, "{:?}", identity(ASIDE)?);
            ensure!(
                Video::at(Path::new(NODE), 0)?.sizeimage().is_ok(),
                "it does not answer"
            );
        }
        // `systemctl restart`: the real node has its name meanwhile, and then ours has it again.
        next_daemon(&keeper, || {
            give_back_after("success")?;
            ensure!(identity(NODE)? == before, "{:?}", identity(NODE)?);
            Ok(())
        })?;
        ensure!(is_ours(NODE) && identity(ASIDE)? == before, "{:?}", number(NODE));
        ensure!(
            Video::at(Path::new(NODE), 0)?.sizeimage().is_ok(),
            "it does not answer"
        );
        thread::sleep(Duration::from_millis(300));
        ensure!(!client.has_ended()?, "the client has ended: {}", client.rest());
        client.signal(Signal::SIGTERM)?;
        client.end(AT_ONCE)?;
        works(NODE)?;
    }
    let status = keeper.end(Signal::SIGTERM, 2 * AT_ONCE)?;
    ensure!(status.code() == Some(0), "{status}");
    is_back(&before)
}
