//! The daemon as the keeper sees it: how it is started, and the process that runs.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use super::files::Files;
use crate::survive::ENDED_BY;
use crate::sys;

/// A daemon that says `WATCHDOG=1` has to say it again within this time.
pub(super) const WATCHDOG: Duration = Duration::from_secs(30);

/// Our own binary, also where another one has its path by now.
const OURSELVES: &str = "/proc/self/exe";

/// What we do not pass on: it was meant for us, or says something else to the daemon.
const NOT_PASSED_ON: [&str; 10] = [
    ENDED_BY,
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "FDSTORE",
    "VIDCOMPAT_FDSTORE",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// How the daemon is started.
#[derive(Debug)]
pub(super) struct Start {
    program: PathBuf,
    args: Vec<CString>,
    environment: Vec<CString>,
}

impl Start {
    /// `program` with `args`, of which the first is its name. It finds us at `socket`, where it can store `most` files.
    pub(super) fn new(
        program: PathBuf,
        args: impl IntoIterator<Item = OsString>,
        socket: &Path,
        most: usize,
    ) -> Self {
        let ours = [
            ("NOTIFY_SOCKET", socket.as_os_str().to_owned()),
            ("VIDCOMPAT_FDSTORE", most.to_string().into()),
            ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string().into()),
        ];
        let passed_on = env::vars_os().filter(|(name, _)| NOT_PASSED_ON.iter().all(|not| name != not));
        let ours = ours.map(|(name, value)| (OsString::from(name), value));
        Self {
            program,
            args: args.into_iter().filter_map(c_string).collect(),
            environment: passed_on
                .chain(ours)
                .filter_map(|(name, value)| variable(&name, &value))
                .collect(),
        }
    }

    /// With one more variable.
    #[cfg(test)]
    pub(super) fn with(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment
            .extend(variable(OsStr::new(name), value.as_ref()));
        self
    }

    /// Ourselves, with our own options less the one that makes us a keeper.
    pub(super) fn ourselves(socket: &Path, most: usize) -> Self {
        let mut args: Vec<_> = env::args_os().collect();
        if let Some(at) = args.iter().position(|arg| arg == "--keep") {
            args.remove(at);
        }
        Self::new(own_path(), args, socket, most)
    }

    /// Starts it with `files`, and tells it how the one `before` it has ended.
    pub(super) fn start(&self, files: &Files, before: Option<End>) -> io::Result<Daemon> {
        let mut environment = self.environment.clone();
        let ended_by = match before {
            Some(End::Signal(signal)) => signal.as_str(),
            Some(End::Status(_)) | None => "",
        };
        environment.extend(variable(OsStr::new(ENDED_BY), OsStr::new(ended_by)));
        if files.len() > 0 {
            let names: Vec<_> = files.iter().map(|(name, _)| name).collect();
            let told = [
                ("LISTEN_FDS", files.len().to_string()),
                ("LISTEN_FDNAMES", names.join(":")),
            ];
            environment.extend(
                told.iter()
                    .filter_map(|(name, value)| variable(OsStr::new(name), OsStr::new(value))),
            );
        }
        let files: Vec<_> = files.iter().map(|(_, fd)| fd).collect();
        let program = c_string(self.program.clone().into_os_string()).unwrap_or_default();
        let pid = sys::spawn(&program, &self.args, &environment, &files)?;
        // It is our child, and nobody has waited for it: the number is its own.
        let number = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).inspect_err(|_| {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        })?;
        Ok(Daemon {
            pid,
            pidfd,
            ready: None,
            heard: None,
        })
    }
}

/// The path that we were started from, for what people see of the process is the name in it; or, where that is another file
/// by now (an upgrade: the next keeper brings it), what leads to our binary all the same.
fn own_path() -> PathBuf {
    let same = |path: &PathBuf| {
        let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
        matches!((identity(path), identity(Path::new(OURSELVES))), (Ok(one), Ok(other)) if one == other)
    };
    env::current_exe()
        .ok()
        .filter(same)
        .unwrap_or_else(|| OURSELVES.into())
}

fn variable(name: &OsStr, value: &OsStr) -> Option<CString> {
    let mut text = name.to_owned();
    text.push("=");
    text.push(value);
    c_string(text)
}

/// What the system has handed us has no zero in it.
fn c_string(text: OsString) -> Option<CString> {
    CString::new(text.into_vec()).ok()
}

/// A daemon that runs.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) pid: Pid,
    pidfd: OwnedFd,
    /// Since when.
    pub(super) ready: Option<Instant>,
    /// The last `WATCHDOG=1`, if ever.
    pub(super) heard: Option<Instant>,
}

impl Daemon {
    pub(super) fn send(&self, signal: Signal) {
        // Not waited for yet, so the number is still its own.
        if let Err(error) = kill(self.pid, signal) {
            tracing::debug!(%error, %signal, "the daemon ends");
        }
    }

    /// How it has ended. Waits for it.
    pub(super) fn end(&self) -> End {
        loop {
            match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, status)) => return End::Status(status),
                Ok(WaitStatus::Signaled(_, signal, _)) => return End::Signal(signal),
                // ECHILD cannot be: it is our child, and nobody else waits for it.
                Err(nix::errno::Errno::ECHILD) => return End::Status(1),
                Ok(_) | Err(_) => {}
            }
        }
    }
}

impl AsFd for Daemon {
    /// Readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// How a daemon has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Status(i32),
    Signal(Signal),
}

impl End {
    /// As a shell tells it.
    pub(super) fn code(self) -> u8 {
        let code = match self {
            Self::Status(status) => status,
            Self::Signal(signal) => 128 + signal as i32,
        };
        u8::try_from(code).unwrap_or(1)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "has ended with status {status}"),
            Self::Signal(signal) => write!(f, "was killed by {signal}"),
        }
    }
}
