//! Does everything still go on? If so systemd (or the keeper) is told; if not, the operator, and at last we act.
//!
//! A thread of its own looks every two seconds, or twice in the time that `WATCHDOG_USEC` allows, at
//! - every request that a thread of ours works on ([`Channel::under_way`]). A request that waits for a frame, an event, room
//!   to write or a poll has no thread and no deadline;
//! - every device's runtime, and the main one: a task is given to each, and must have run.
//!
//! After the first deadline (a sixth of the last one, 10 s) the log names device, program and call, and where the thread is.
//! After the last one (60 s, `--stuck-after`) what is done depends on where the thread is ([`super::whereabouts`]):
//! - *In the device's driver.* A native program would hang there as well, and the kernel lets nobody take a thread out of a
//!   driver. The sentence says so, and nothing is done: the other devices go on, and so does this one when the driver does.
//! - *In a client's memory* (userfaultfd, a file system of the client's). Only that client waits. Nothing is done.
//! - *Waiting for a lock or working without end, while no thread of ours is in a driver or in a client's memory*, three times
//!   in a row. That is a bug of ours, and nothing will end it. The clients of that node are freed by the kernel's own switch
//!   (`/sys/class/cuse/NAME/abort`): each of their calls ends with ECONNABORTED, and each later one with ENOTCONN. (The node
//!   itself stands until nobody holds the channel; who inherits that finds it dead, and makes the node anew.) Where somebody
//!   starts us again (`NOTIFY_SOCKET`) we end by SIGABRT,
//!   which leaves a core to look at, as systemd's own watchdog would; the other nodes go on in the next daemon. Else the
//!   other nodes matter more, and we go on without this one.
//!
//! `WATCHDOG=1` is sent as long as the main runtime answers within the first deadline and nothing was found to be our own
//! fault. Where this thread itself does not run (SIGSTOP, no processor) nothing is sent, and systemd acts. A look that comes
//! late forgives everybody the time before it: nobody could have been served.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use vidcompat_proto::ioc::Command;
use vidcompat_proto::ioctl::{fbdev, lookup};

use super::patience::{Blame, Finding, Judge, Limits, Task};
use super::whereabouts::{self, Whereabouts};
use crate::client::process_and_name;
use crate::cuse::{Channel, Kind, Work, now};
use crate::devices::Node;

/// Time between two looks, at most.
const INTERVAL: Duration = Duration::from_secs(2);
/// [`Task::id`] of a runtime; no request has this number.
const RUNTIME: u64 = 0;

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub struct Watchdog(Arc<Mutex<Vec<Watched>>>);

/// A node. Forgotten when its channel is.
#[derive(Debug)]
struct Watched {
    number: usize,
    /// What it stands for.
    name: String,
    path: PathBuf,
    abort: PathBuf,
    channel: Weak<Channel>,
    pulse: Option<Pulse>,
}

impl Watchdog {
    /// Looks after a node from now on, until its channel is gone. `name` is what it stands for; `runtime` is its device's.
    pub(super) fn add(&self, name: &str, node: &Node, channel: &Arc<Channel>, runtime: Option<&Handle>) {
        let mut nodes = self.lock();
        let number = nodes.iter().map(|node| node.number + 1).max().unwrap_or(1);
        nodes.push(Watched {
            number,
            name: name.to_owned(),
            path: node.path(),
            abort: node.abort_switch(),
            channel: Arc::downgrade(channel),
            pulse: runtime.cloned().map(Pulse::new),
        });
    }

    /// Looks until the process ends. `last` is the last deadline. To be called in the main runtime.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn start(&self, last: Duration) -> std::io::Result<()> {
        let (nodes, main) = (self.clone(), Pulse::new(Handle::current()));
        let allowed = sd_notify::watchdog_enabled();
        let interval = allowed.map_or(INTERVAL, |allowed| INTERVAL.min(allowed / 2));
        let limits = Limits {
            slow: last / 6,
            last,
            interval,
        };
        thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                nodes.run(main, limits, allowed.is_some());
            })?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Watched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut main: Pulse, limits: Limits, tell: bool) {
        let mut judge = Judge::new(limits);
        loop {
            let mut tasks = Vec::new();
            let mut requests = Vec::new();
            tasks.extend(main.beat(0));
            let mut nodes = self.lock();
            nodes.retain(|node| node.channel.strong_count() > 0);
            for node in nodes.iter_mut() {
                if let Some(channel) = node.channel.upgrade() {
                    for work in channel.under_way().all() {
                        tasks.push(task(node.number, work));
                        requests.push((node.number, work));
                    }
                }
                tasks.extend(node.pulse.as_mut().and_then(|pulse| pulse.beat(node.number)));
            }
            let findings = judge.look(now(), &tasks, whereabouts::of, is_held_up);
            let mut well = tasks.iter().all(|task| {
                task.node != 0 || now().saturating_sub(task.since) < limits.slow + limits.interval
            });
            for finding in findings {
                let (Finding::Slow(task, _) | Finding::Hangs(task, _) | Finding::Stuck(task)) = finding;
                let node = nodes.iter().find(|node| node.number == task.node);
                let work = requests
                    .iter()
                    .find(|(number, work)| *number == task.node && work.unique == task.id);
                let what = describe(node, work.map(|(_, work)| work));
                well &= !act(&what, finding, node, limits);
            }
            drop(nodes);
            if tell && well {
                // Nobody may listen any more; then nobody acts either.
                drop(sd_notify::notify(&[sd_notify::NotifyState::Watchdog]));
            }
            thread::sleep(limits.interval);
        }
    }
}

fn task(node: usize, work: Work) -> Task {
    Task {
        node,
        id: work.unique,
        thread: work.thread,
        since: work.since,
    }
}

/// Is any thread of ours in a driver, or in a client's memory?
fn is_held_up() -> bool {
    whereabouts::threads()
        .into_iter()
        .any(|thread| matches!(whereabouts::of(thread), Whereabouts::Driver | Whereabouts::Client))
}

/// Tells, and does what can be done. Is it our own fault?
fn act(what: &str, finding: Finding, node: Option<&Watched>, limits: Limits) -> bool {
    let (slow, last) = (limits.slow.as_secs(), limits.last.as_secs());
    match finding {
        Finding::Slow(_, blame) => {
            let place = match blame {
                Blame::Driver => "it is in the device's driver",
                Blame::Client => "the memory of that program does not answer",
                Blame::Another => "it waits for another call, which is in a driver or in a program's memory",
                Blame::Ourselves => "vidcompatd is at it",
            };
            tracing::warn!("{what} has taken {slow} s: {place}");
            false
        }
        Finding::Hangs(_, Blame::Driver) => {
            tracing::error!(
                "{what} hangs in the device's driver for {last} s, as it would without vidcompatd, and nothing can end it; \
                 unplug the device or reload its driver"
            );
            false
        }
        Finding::Hangs(_, Blame::Client) => {
            tracing::error!(
                "{what} hangs for {last} s, for the memory of that program does not answer: end that program"
            );
            false
        }
        Finding::Hangs(..) => {
            tracing::error!("{what} waits for {last} s for another call, which hangs");
            false
        }
        Finding::Stuck(_) => {
            tracing::error!(
                "{what} hangs in vidcompatd itself for {last} s: this is a bug, please report it"
            );
            if let Some(node) = node {
                free(node);
            }
            if std::env::var_os("NOTIFY_SOCKET").is_some() {
                tracing::error!("vidcompatd ends, to be started again");
                std::process::abort();
            }
            true
        }
    }
}

/// Ends all calls of a node's clients.
fn free(node: &Watched) {
    // The switch goes by the name: only while the channel lives is the node of that name ours.
    if node.channel.strong_count() == 0 {
        return;
    }
    match fs::write(&node.abort, "1") {
        Ok(()) => tracing::error!(
            "{} serves nobody any more, and every call to it fails; start vidcompatd again to have it back",
            node.path.display()
        ),
        Err(error) => tracing::error!("{} cannot be ended: {error}", node.path.display()),
    }
}

fn describe(node: Option<&Watched>, work: Option<&Work>) -> String {
    let Some(node) = node else {
        return "the main thread".to_owned();
    };
    let name = &node.name;
    let Some(work) = work else {
        return format!("{name}: the thread that waits for the device");
    };
    let call = match work.kind {
        Kind::Open => "open".to_owned(),
        Kind::Release => "the last close".to_owned(),
        Kind::Read => "read".to_owned(),
        Kind::Write => "write".to_owned(),
        Kind::Poll => "poll".to_owned(),
        Kind::Interrupt => "an interrupt".to_owned(),
        Kind::Ioctl(command) => ioctl_name(command),
    };
    match process_and_name(work.caller_tid) {
        Some((process, program)) => format!("{name}: {call} of process {process} ({program})"),
        None => format!("{name}: {call}"),
    }
}

fn ioctl_name(command: u32) -> String {
    let abi = vidcompat_proto::abi::ClientAbi::Native;
    match (lookup(Command(command)), fbdev::lookup(abi, Command(command))) {
        (Some(row), _) => row.name.to_owned(),
        (None, Some(row)) => row.name.to_owned(),
        (None, None) => format!("ioctl {command:#x}"),
    }
}

/// A runtime that must run what it is given.
#[derive(Debug)]
struct Pulse {
    runtime: Handle,
    thread: Arc<AtomicU32>,
    given: Option<(JoinHandle<()>, Duration)>,
}

impl Pulse {
    fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            thread: Arc::new(AtomicU32::new(0)),
            given: None,
        }
    }

    /// Gives it something to do, or says how long it has not done that.
    fn beat(&mut self, node: usize) -> Option<Task> {
        if let Some((task, since)) = &self.given
            && !task.is_finished()
        {
            return Some(Task {
                node,
                id: RUNTIME,
                thread: self.thread.load(Ordering::Relaxed),
                since: *since,
            });
        }
        let thread = Arc::clone(&self.thread);
        let task = self.runtime.spawn(async move {
            thread.store(nix::unistd::gettid().as_raw().cast_unsigned(), Ordering::Relaxed);
        });
        self.given = Some((task, now()));
        None
    }
}
