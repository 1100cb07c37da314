//! vidcompatd as a child of the suite. Whatever it logs is kept, and shown when a test fails.

use std::fmt::Write;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::nodes;
use crate::setup::{CONTIG, Set, VMALLOC, both_real};
use crate::video;

/// Lines of all daemons since the current test began.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// The daemon that most tests use: for /dev/video0 and /dev/video1, and in other device sets for every node.
static SHARED: Mutex<Option<Daemon>> = Mutex::new(None);

/// What daemons have said of system calls that their own filter has refused, since the current test began.
static REFUSED: Mutex<Vec<String>> = Mutex::new(Vec::new());

const PATIENCE: Duration = Duration::from_secs(20);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the log lines that have been collected.
pub fn take_log() -> Vec<String> {
    std::mem::take(&mut *lock(&LOG))
}

/// An error if a daemon has made a system call that is not in its table, and was refused; a test that wants that takes it.
pub fn check_refused() -> anyhow::Result<()> {
    let refused = take_refused();
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(())
}

/// Takes what [`check_refused`] would complain about.
pub fn take_refused() -> Vec<String> {
    std::mem::take(&mut *lock(&REFUSED))
}

/// How daemons are confined (`VIDCOMPAT_CONFINE=off|log|enforce`), if not as they are by themselves.
fn confinement(args: &[&str]) -> Option<String> {
    let chosen = std::env::var("VIDCOMPAT_CONFINE").ok()?;
    let is_said = args.iter().any(|arg| arg.starts_with("--confine"));
    (!is_said).then(|| format!("--confine={chosen}"))
}

/// A running vidcompatd. Dropped: it is ended, by force if need be.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    fn spawn(
        program: &str,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<(Self, Receiver<()>)> {
        let mut child = Command::new(program)
            .args(args)
            .args(confinement(args))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| program.to_owned())?;
        let stderr = child.stderr.take().context("no pipe")?;
        let (name, lines, (ready, when_ready)) = (child.id(), Arc::default(), channel());
        let kept: Arc<Mutex<Vec<String>>> = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lock(&LOG).push(format!("vidcompatd[{name}]: {line}"));
                if line.contains("is not in the table") {
                    lock(&REFUSED).push(line.clone());
                }
                if line == "ready" {
                    // Nobody listens to a daemon that was given up.
                    let _ = ready.send(());
                }
                lock(&kept).push(line);
            }
        });
        Ok((Self { child, lines }, when_ready))
    }

    /// Starts it and waits until it says `ready`.
    pub fn start(args: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(args, &[])
    }

    /// The same with more environment variables.
    pub fn start_with(args: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_program("vidcompatd", args, environment)
    }

    /// The same by a program that becomes vidcompatd.
    pub fn start_by(program: &str, args: &[&str]) -> anyhow::Result<Self> {
        Self::start_program(program, args, &[])
    }

    fn start_program(program: &str, args: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let (mut daemon, ready) = Self::spawn(program, args, environment)?;
        match ready.recv_timeout(PATIENCE) {
            Ok(()) => Ok(daemon),
            Err(RecvTimeoutError::Disconnected) => {
                bail!(
                    "vidcompatd {args:?} did not start: {}: {}",
                    daemon.child.wait()?,
                    daemon.log()
                )
            }
            Err(RecvTimeoutError::Timeout) => bail!("vidcompatd {args:?} is not ready after {PATIENCE:?}"),
        }
    }

    /// Runs it where it cannot start: its exit status and all that it said.
    pub fn refuse(args: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
        let (mut daemon, ready) = Self::spawn("vidcompatd", args, &[])?;
        match ready.recv_timeout(PATIENCE) {
            Ok(()) => bail!("vidcompatd {args:?} says it is ready"),
            Err(RecvTimeoutError::Timeout) => bail!("vidcompatd {args:?} does not end"),
            // The end of its stderr: every line is there.
            Err(RecvTimeoutError::Disconnected) => Ok((daemon.child.wait()?, daemon.log())),
        }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        lock(&self.lines).join("\n")
    }

    /// Sends `signal` and waits for the end; an error after `limit`.
    pub fn end(&mut self, signal: Signal, limit: Duration) -> anyhow::Result<ExitStatus> {
        kill(self.pid(), signal)?;
        wait(&mut self.child, limit).with_context(|| format!("vidcompatd after {signal}"))
    }

    /// Waits for its end, which something else brings; an error after `limit`.
    pub fn ended(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        wait(&mut self.child, limit).context("vidcompatd")
    }

    /// Open fds, threads, VmRSS in KiB.
    pub fn resources(&self) -> anyhow::Result<Resources> {
        let pid = self.pid();
        let field = |name| number_in(&format!("/proc/{pid}/status"), name);
        let mut fds: Vec<String> = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            // The number behind e.g. `socket:` differs each time.
            fds.push(
                target
                    .display()
                    .to_string()
                    .split(":[")
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
        fds.sort();
        Ok(Resources {
            fds,
            threads: field("Threads:")?,
            rss_kib: field("VmRSS:")?,
            anonymous_kib: field("RssAnon:")?,
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // Either works, or there is nothing left to end.
        if self.end(Signal::SIGTERM, Duration::from_secs(7)).is_err() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// What a daemon holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// What its fds refer to, sorted.
    pub fds: Vec<String>,
    /// Number of threads.
    pub threads: usize,
    /// Resident memory.
    pub rss_kib: usize,
    /// The part of it that is no file's and no device's.
    pub anonymous_kib: usize,
}

/// The number behind `name` in a file such as `/proc/meminfo`.
pub fn number_in(path: &str, name: &str) -> anyhow::Result<usize> {
    let text = fs::read_to_string(path)?;
    let number = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    Ok(number.with_context(|| format!("no {name} in {path}"))?.parse()?)
}

/// Waits for the end of a child; an error after `limit`.
pub fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(Instant::now() < end, "still runs after {limit:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Makes sure that the shared daemon runs: its pid.
pub fn shared() -> anyhow::Result<Pid> {
    if both_real() {
        return Ok(Pid::this());
    }
    with_shared(|daemon| Ok(daemon.pid()))
}

/// Does something with the shared daemon, which is started if it does not run.
pub fn with_shared<T>(act: impl FnOnce(&mut Daemon) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut shared = lock(&SHARED);
    if shared.is_none() {
        let devices = match Set::here()? {
            Set::Cameras | Set::Bochs | Set::Service => {
                vec![video::real(VMALLOC).path(), video::real(CONTIG).path()]
            }
            Set::Memory => vec![
                video::real(VMALLOC).path(),
                video::real(CONTIG).path(),
                nodes::named("vim2m")?.real(),
            ],
            // Tests of framebuffers start their own, with the screens that they want.
            Set::Screens => vec![video::real(VMALLOC).path()],
            Set::Kinds | Set::M2m | Set::Shim => nodes::all()?.iter().map(nodes::Found::real).collect(),
        };
        let devices: Vec<String> = devices
            .iter()
            .map(|device| device.display().to_string())
            .collect();
        let args: Vec<&str> = devices.iter().flat_map(|device| ["--device", device]).collect();
        *shared = Some(Daemon::start(&args)?);
    }
    act(shared.as_mut().context("just started")?)
}

/// The pid of the shared daemon, if one was started.
pub fn shared_pid() -> Option<Pid> {
    lock(&SHARED).as_ref().map(Daemon::pid)
}

/// An error if the shared daemon has ended by itself; the next test gets a new one.
pub fn check_shared() -> anyhow::Result<()> {
    let mut shared = lock(&SHARED);
    if let Some(daemon) = &mut *shared
        && let Some(status) = daemon.child.try_wait()?
    {
        let mut text = format!("the shared vidcompatd has ended ({status}); its last lines:");
        for line in daemon.log().lines().rev().take(5) {
            write!(text, "\n  {line}")?;
        }
        *shared = None;
        bail!(text);
    }
    Ok(())
}

/// Ends the shared daemon.
pub fn stop_shared() {
    lock(&SHARED).take();
}

/// Kills the shared daemon, which frees everybody who hangs in a call to it.
pub fn kill_shared(pid: Pid) {
    // It may be gone already.
    let _ = kill(pid, Signal::SIGKILL);
}
