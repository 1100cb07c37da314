//! The keeper: what systemd is for its services, as a small parent of one daemon.
//!
//! It holds the files that the daemon stores (see [`crate::survive`]), and when the daemon dies it starts the next one with
//! them at once. It speaks systemd's protocol (sd_notify(3), sd_listen_fds(3)), so the daemon knows of one only. It knows
//! nothing of what the files are.
//!
//! When the keeper itself is killed the daemon goes on: nothing is lost at that moment, so a signal on the keeper's death
//! (`PR_SET_PDEATHSIG`) would only add a way to lose it. But nobody holds its files then, and its own death is the end; it
//! says so when it next wants to store one.

mod daemon;
mod files;
mod lives;
mod messages;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use daemon::{Daemon, End, Start, WATCHDOG};
use files::Files;
use lives::{Lives, Verdict};
use messages::{Change, Message, Messages};

/// Where the socket is, in a folder of its own.
const FOLDER: &str = "/run/vidcompat";
/// Files that we keep at most. Far more than are used: 64 buffers of some dozen sessions.
const MOST_FILES: usize = 8192;
/// How long a daemon may take to end when it was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// Messages that are read before we look whether anything else has happened.
const AT_ONCE: usize = 256;

/// Starts the daemon, with our own options but `--keep`, and starts it again whenever it dies, until it ends by itself or
/// somebody ends us (SIGTERM, SIGINT).
#[must_use]
pub fn run() -> ExitCode {
    let kept = prepare().map(|(mut keeper, signals)| keeper.keep(&signals));
    match kept {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("vidcompatd: the system refuses what a keeper needs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn prepare() -> io::Result<(Keeper, SignalFd)> {
    // Before anything is made that has to be taken away again.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let messages = Messages::new(Path::new(FOLDER))?;
    let most = room()?;
    let start = Start::ourselves(&messages.path(), most);
    Ok((Keeper::new(messages, start, most), signals))
}

/// For how many files there is room. Every start needs two more descriptors for each for a moment.
fn room() -> io::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let limit = usize::try_from(hard).unwrap_or(usize::MAX);
    Ok((limit / 3).saturating_sub(64).min(MOST_FILES))
}

/// Who tells us what to do.
trait Wishes: AsFd {
    /// The next signal, if one waits.
    fn next(&self) -> Option<Signal>;
}

impl Wishes for SignalFd {
    fn next(&self) -> Option<Signal> {
        let signal = self.read_signal().ok()??;
        Signal::try_from(i32::try_from(signal.ssi_signo).ok()?).ok()
    }
}

/// See the module.
#[derive(Debug)]
struct Keeper {
    messages: Messages,
    start: Start,
    files: Files,
    lives: Lives,
    /// Was any daemon ready?
    was_ready: bool,
    /// Since when there is none, after the first.
    missing: Option<Instant>,
    /// Somebody has asked us to end, and until when the daemon may take for it.
    ending: Option<Instant>,
    /// We have said that something cannot be kept.
    said: bool,
}

impl Keeper {
    fn new(messages: Messages, start: Start, most: usize) -> Self {
        Self {
            messages,
            start,
            files: Files::new(most),
            lives: Lives::default(),
            was_ready: false,
            missing: None,
            ending: None,
            said: false,
        }
    }

    /// Until it is over. What a shell is to be told then.
    fn keep(&mut self, wishes: &impl Wishes) -> u8 {
        let mut before = None;
        loop {
            let (ready, end) = match self.start.start(&self.files, before) {
                Ok(mut daemon) => {
                    let end = self.attend(&mut daemon, wishes);
                    (daemon.ready, end)
                }
                Err(error) => {
                    tracing::error!(%error, "the daemon cannot be started");
                    (None, End::Status(1))
                }
            };
            if self.ending.is_some() {
                return match end {
                    End::Signal(Signal::SIGTERM | Signal::SIGINT) => 0,
                    end => end.code(),
                };
            }
            match end {
                End::Status(0) => return 0,
                // There is nothing to keep yet, and it has said itself what is wrong.
                End::Status(_) if !self.was_ready => return end.code(),
                _ => {}
            }
            before = Some(end);
            self.missing.get_or_insert_with(Instant::now);
            let files = self.files.len();
            let lived = ready.map(|since| since.elapsed());
            match self
                .lives
                .died(lived, end == End::Signal(Signal::SIGKILL), files > 0)
            {
                Verdict::Again(pause) => {
                    tracing::warn!(
                        files,
                        "the daemon {end}, and is started again with what it has stored"
                    );
                    if self.pause(pause, wishes) {
                        return 0;
                    }
                }
                Verdict::GiveUp(times) => {
                    tracing::error!(
                        files,
                        "the daemon {end}, {times} times in a row: what it has stored is let go of, and its nodes vanish; \
                         the log above says why, and `vidcompat doctor` may"
                    );
                    return end.code();
                }
            }
        }
    }

    /// Serves a daemon until it has ended.
    fn attend(&mut self, daemon: &mut Daemon, wishes: &impl Wishes) -> End {
        loop {
            wait(
                [self.messages.as_fd(), daemon.as_fd(), wishes.as_fd()],
                self.due(daemon),
            );
            // Before its messages: after its end there are no more, and what is in the socket then is all that it has said.
            let has_ended = is_readable(daemon.as_fd());
            let mut heard = 0;
            while (has_ended || heard < AT_ONCE)
                && let Some(message) = self.messages.next(daemon.pid)
            {
                heard += 1;
                self.hear(message, daemon);
            }
            if has_ended {
                return daemon.end();
            }
            while let Some(signal) = wishes.next() {
                daemon.send(signal);
                if signal != Signal::SIGHUP && self.ending.is_none() {
                    self.ending = Some(Instant::now() + GRACE);
                }
            }
            self.look(daemon);
        }
    }

    fn hear(&mut self, message: Message, daemon: &mut Daemon) {
        if message.ready && daemon.ready.is_none() {
            daemon.ready = Some(Instant::now());
            self.was_ready = true;
            if let Some(missing) = self.missing.take() {
                // What clients have waited, but for the time that the process took to die.
                let gap = format!("{:.1} ms", missing.elapsed().as_secs_f64() * 1000.0);
                tracing::info!(gap, "the daemon is ready again");
            }
            tell(sd_notify::NotifyState::Ready);
        }
        if message.stopping {
            tracing::debug!("the daemon ends by itself");
        }
        if message.watchdog {
            daemon.heard = Some(Instant::now());
        }
        match message.file {
            Some((name, Change::Put(fd))) => match self.files.put(&name, fd) {
                Ok(()) => self.said = false,
                Err(reason) if !std::mem::replace(&mut self.said, true) => {
                    tracing::warn!(name, files = self.files.len(), "a file is not kept: {reason}");
                }
                Err(_) => {}
            },
            Some((name, Change::Remove)) => self.files.remove(&name),
            None => {}
        }
    }

    /// When something is to be done although nothing happens.
    fn due(&self, daemon: &Daemon) -> Option<Instant> {
        let watched = daemon.heard.map(|heard| heard + WATCHDOG);
        [watched, self.ending].into_iter().flatten().min()
    }

    /// Ends a daemon that hangs.
    fn look(&mut self, daemon: &mut Daemon) {
        let now = Instant::now();
        if self.due(daemon).is_none_or(|due| now < due) {
            return;
        }
        if self.ending.is_some_and(|until| now >= until) {
            tracing::error!("the daemon does not end: it is killed");
            self.ending = Some(now + GRACE);
        } else {
            tracing::error!("the daemon has given no sign of life for {WATCHDOG:?}: it is killed");
            daemon.heard = None;
        }
        daemon.send(Signal::SIGKILL);
    }

    /// Waits, and says whether we are to end.
    fn pause(&mut self, pause: Duration, wishes: &impl Wishes) -> bool {
        let until = Instant::now() + pause;
        loop {
            // A reload is what the next start is, anyway.
            while let Some(signal) = wishes.next() {
                if signal != Signal::SIGHUP {
                    return true;
                }
            }
            if Instant::now() >= until {
                return false;
            }
            wait([wishes.as_fd()], Some(until));
        }
    }
}

/// Until one of `fds` is readable, or it is `due`.
fn wait<const N: usize>(fds: [BorrowedFd<'_>; N], due: Option<Instant>) {
    let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let timeout = due.map_or(PollTimeout::NONE, |due| {
        // Not too early by less than a millisecond, again and again.
        let left = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    // EINTR: we come again.
    if let Err(error) = poll(&mut fds, timeout) {
        tracing::trace!(%error, "poll");
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1))
}

/// Whoever has started us may want to know, too.
fn tell(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "nobody to notify");
    }
}
