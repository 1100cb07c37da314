//! The daemon's confinement: what it holds is what its table says, and what is in no table is not done.
//!
//! That everything else still works is what all other tests show, whose daemons are confined as well.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};

use crate::client;
use crate::daemon::{Daemon, take_refused};
use crate::report::figure;
use crate::setup::{SPARE, Test, is_free};

pub const TESTS: &[(&str, Test)] = &[
    (
        "confine::every_thread_holds_the_capabilities_of_the_table_and_no_other",
        capabilities,
    ),
    (
        "confine::what_is_not_in_the_table_is_refused_and_told_once",
        refused,
    ),
    ("confine::a_program_cannot_be_started_from_within", execve),
    ("confine::log_takes_nothing_away", logged),
    (
        "confine::a_capability_that_a_unit_takes_away_is_told_with_what_is_lost",
        missing,
    ),
];

const DEVICE: &str = "/dev/video2";
const PATIENCE: Duration = Duration::from_secs(10);

/// A daemon into which our library is preloaded, that makes these calls when it is told to.
struct Inside {
    daemon: Daemon,
    calls: usize,
}

impl Inside {
    fn start(mode: &str, calls: &str) -> anyhow::Result<Self> {
        let library = std::env::current_dir()?.join("target/clients/in_the_daemon.so");
        let library = library.to_str().context("a path")?;
        let environment = [("LD_PRELOAD", library), ("IN_THE_DAEMON", calls)];
        let daemon = Daemon::start_with(&["--device", DEVICE, mode], &environment)?;
        let calls = calls.split(' ').count();
        Ok(Self { daemon, calls })
    }

    /// What became of each call: the errno.
    fn results(&self) -> anyhow::Result<Vec<(String, i32)>> {
        let before = self.said().len();
        kill(self.daemon.pid(), Signal::SIGUSR2)?;
        let end = Instant::now() + PATIENCE;
        while self.said().len() < before + self.calls {
            ensure!(Instant::now() < end, "only {:?}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(self.said().split_off(before))
    }

    fn said(&self) -> Vec<(String, i32)> {
        let result = |line: &str| {
            let (name, errno) = line.strip_prefix("in the daemon: ")?.split_once(": ")?;
            Some((name.to_owned(), errno.parse().ok()?))
        };
        self.daemon.log().lines().filter_map(result).collect()
    }
}

fn stream() -> anyhow::Result<()> {
    let args = ["-d", "/dev/video66", "--stream-user=4", "--stream-count=5"];
    client::run("v4l2-ctl", &args, PATIENCE).map(drop)
}

/// Lines such as `CapEff:\t000001c00828000b`.
fn field(status: &str, name: &str) -> anyhow::Result<String> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| format!("no {name}"))?.trim().to_owned())
}

fn capabilities() -> anyhow::Result<()> {
    let list = client::run("vidcompatd", &["--confine-list"], PATIENCE)?;
    let kept: BTreeSet<&str> = list.lines().filter(|line| line.starts_with("CAP_")).collect();
    ensure!(kept.contains("CAP_SYS_PTRACE"), "{list}");
    let daemon = Daemon::start(&["--device", DEVICE, "--confine=enforce"])?;
    // Its threads of every sort.
    stream()?;
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let name = field(&status, "Name:")?;
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            let held = u64::from_str_radix(&field(&status, set)?, 16)?;
            let held: BTreeSet<&str> = (0..64)
                .filter(|bit| held & 1 << bit != 0)
                .map(|bit| NAMES.get(bit).copied().unwrap_or("unknown"))
                .collect();
            ensure!(held == kept, "{name}, {set} {held:?}, the table has {kept:?}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            ensure!(
                field(&status, set)?.trim_start_matches('0').is_empty(),
                "{name}, {set}"
            );
        }
        ensure!(field(&status, "NoNewPrivs:")? == "1", "{name}: NoNewPrivs");
        ensure!(field(&status, "Seccomp:")? == "2", "{name}: Seccomp");
        threads += 1;
    }
    figure(format!(
        "{threads} threads of the daemon hold {} capabilities",
        kept.len()
    ));
    ensure!(threads > 2, "{threads} threads");
    Ok(())
}

/// All of linux/capability.h, by number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Calls, and whether they are in the table.
const CALLS: &[(&str, bool)] = &[
    ("getpid", true),
    ("mincore", false),
    ("socket-inet", false),
    ("socket-unix", true),
    ("kill-init", false),
    ("kill-0", true),
    ("process", false),
    ("exec-memory", false),
    ("tiocsti", false),
    ("bpf-map", false),
    ("chown", true),
];

fn names() -> String {
    CALLS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

fn refused() -> anyhow::Result<()> {
    let inside = Inside::start("--confine=enforce", &names())?;
    for _ in 0..2 {
        for ((name, errno), (wanted, allowed)) in inside.results()?.into_iter().zip(CALLS) {
            ensure!(name == *wanted, "{name}");
            // kill(1, 0) may find itself without CAP_KILL: root's own it may.
            let right = if *allowed {
                errno == 0
            } else {
                errno == libc::ENOSYS
            };
            ensure!(right, "{name}: errno {errno}");
        }
    }
    // A sentence for each number: mincore, socket, kill, clone, mmap, ioctl, bpf.
    let told = take_refused();
    ensure!(told.len() == 7, "{told:#?}");
    // It serves as before.
    stream()
}

fn logged() -> anyhow::Result<()> {
    // Of those that would be logged only what has no effect: the kernel's log must stay without complaints.
    let inside = Inside::start("--confine=log", "getpid kill-0 chown")?;
    ensure!(inside.results()?.iter().all(|(_, errno)| *errno == 0));
    let inside = (drop(inside), Inside::start("--confine=off", &names())?).1;
    for (name, errno) in inside.results()? {
        // The same calls work where nothing confines: it is the filter that has refused them. (bpf is told that its
        // argument is nonsense, and no terminal is there to type into.)
        let refused = errno == libc::ENOSYS;
        ensure!(!refused, "{name}: errno {errno}");
        ensure!(
            errno == 0 || ["bpf-map", "tiocsti"].contains(&name.as_str()),
            "{name}: errno {errno}"
        );
    }
    ensure!(take_refused().is_empty());
    Ok(())
}

fn execve() -> anyhow::Result<()> {
    let mut inside = Inside::start("--confine=enforce", "execve")?;
    kill(inside.daemon.pid(), Signal::SIGUSR2)?;
    let status = inside.daemon.ended(PATIENCE)?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    ensure!(signal == Some(libc::SIGSYS), "{status}");
    is_free(SPARE)
}

fn missing() -> anyhow::Result<()> {
    // As a unit with CapabilityBoundingSet=~CAP_SYS_ADMIN.
    let caps = ["--bounding-set=-sys_admin", "--inh-caps=-all"];
    let command = ["--", "vidcompatd", "--device", DEVICE, "--confine=enforce"];
    let mut daemon = Daemon::start_by("setpriv", &[&caps[..], &command].concat())?;
    let log = daemon.log();
    ensure!(
        log.contains("CAP_SYS_ADMIN is missing, so: no framebuffer on a graphics card"),
        "{log}"
    );
    ensure!(!log.contains("CAP_SYS_PTRACE is missing"), "{log}");
    stream()?;
    daemon.end(Signal::SIGTERM, PATIENCE).map(drop)
}
