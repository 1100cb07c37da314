//! A daemon under a keeper, to be killed.

use std::cell::Cell;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;
use crate::daemon::Daemon;
use crate::nodes::Found;

/// A daemon under a keeper, which starts the next one.
pub struct Kept {
    pub keeper: Daemon,
    pub kills: Cell<usize>,
    /// The one that was killed last: until its keeper has noticed, it is still there.
    pub last: Cell<Option<Pid>>,
}

impl Kept {
    /// One that dies where [`DIE_AT`] says.
    pub fn start_mortal(devices: &[&Found]) -> anyhow::Result<Self> {
        let library = std::env::current_dir()?.join("target/clients/die_at.so");
        let library = library.to_str().context("a path")?;
        Self::start_with(devices, &["--confine=off"], &[("LD_PRELOAD", library)])
    }

    pub fn start(devices: &[&Found]) -> anyhow::Result<Self> {
        Self::start_with(devices, &[], &[])
    }

    pub fn start_with(
        devices: &[&Found],
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let devices: Vec<String> = devices
            .iter()
            .map(|device| device.real().display().to_string())
            .collect();
        let devices = devices.iter().flat_map(|device| ["--device", device]);
        let args: Vec<&str> = more.iter().copied().chain(devices).collect();
        Self::start_args(&args, environment)
    }

    /// With these words behind `--keep`.
    pub fn start_args(args: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        Ok(Self {
            keeper: Daemon::start_with(&[&["--keep"], args].concat(), environment)?,
            kills: Cell::new(0),
            last: Cell::new(None),
        })
    }

    /// The daemon's process, if there is one at the moment.
    pub fn daemon(&self) -> Option<Pid> {
        let keeper = self.keeper.pid();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
        let child = children.split_ascii_whitespace().next()?;
        child.parse().ok().map(Pid::from_raw)
    }

    /// How often a daemon has died.
    pub fn deaths(&self) -> usize {
        let log = self.keeper.log();
        log.lines()
            .filter(|line| line.contains("killed by SIGKILL"))
            .count()
    }

    /// The next daemon dies at a certain call: see tests/clients/preload/die_at.c. It gets ready first, or dies on the way.
    pub fn arm(&self, at: &str) -> anyhow::Result<()> {
        // The keeper gives up where each daemon dies right after it was ready.
        thread::sleep(Duration::from_millis(80));
        fs::write(DIE_AT, at)?;
        self.kill(false)?;
        let begun = Instant::now();
        while fs::exists(DIE_AT)? {
            ensure!(
                begun.elapsed() < PATIENCE,
                "no daemon begins: {}",
                self.keeper.log()
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    pub fn until_ready(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.is_ready() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "no daemon gets ready: {}",
                self.keeper.log()
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Has the daemon that was started after the last kill said that it is ready? (One may have died by itself since.)
    pub fn is_ready(&self) -> bool {
        let log = self.keeper.log();
        let last = log.rsplit("killed by SIGKILL").next().unwrap_or_default();
        self.deaths() >= self.kills.get() && last.lines().any(|line| line == "ready")
    }

    /// Kills the daemon. With `until_ready` the next one is waited for: how long that takes.
    pub fn kill(&self, until_ready: bool) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let kills = || {
            let daemon = self.daemon().filter(|daemon| Some(*daemon) != self.last.get());
            self.last.set(daemon.or(self.last.get()));
            daemon.is_some_and(|daemon| kill(daemon, Signal::SIGKILL).is_ok())
        };
        while !kills() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "there is no daemon any more: {}",
                self.keeper.log()
            );
            thread::sleep(Duration::from_millis(1));
        }
        self.kills.set(self.kills.get() + 1);
        let killed = Instant::now();
        while until_ready && !self.is_ready() {
            ensure!(
                killed.elapsed() < PATIENCE,
                "no daemon gets ready: {}",
                self.keeper.log()
            );
            thread::sleep(Duration::from_millis(1));
        }
        Ok(if until_ready {
            killed.elapsed()
        } else {
            Duration::ZERO
        })
    }
}

/// Where the daemon is to die.
const DIE_AT: &str = "/tmp/die-at";
