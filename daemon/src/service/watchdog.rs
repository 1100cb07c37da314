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
//! - *Waiting for a lock or working without end, while no thread that it may wait for is in a driver or in a client's memory*,
//!   three times in a row. It may wait for those of the same node, and for those that belong to none (the shim's); not for those
//!   of another node, with which it shares no lock for longer than a moment, nor for one that only asks a driver something. That
//!   is a bug of ours, and nothing will end it. The clients of that node are freed by the kernel's own switch
//!   (`/sys/class/cuse/NAME/abort`): each of their calls ends with ECONNABORTED, and each later one with ENOTCONN. (The node
//!   itself stands until nobody holds the channel; who inherits that finds it dead, and makes the node anew.) Where somebody
//!   starts us again (`NOTIFY_SOCKET`) we end by SIGABRT, which leaves a core to look at, as systemd's own watchdog would; the
//!   other nodes go on in the next daemon. Else the other nodes matter more, and we go on without this one; so they do while a
//!   thread of ours is in a driver, for as long as that hangs no process ends, and none takes its place.
//!
//! `WATCHDOG=1` is sent as long as the main runtime answers within the first deadline and nothing was found to be our own
//! fault. Where this thread itself does not run (SIGSTOP, no processor) nothing is sent, and systemd acts. A look that comes
//! late forgives everybody the time before it: nobody could have been served.

use std::collections::{HashMap, HashSet};
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
use crate::devices::{ASKING, Node};

/// Time between two looks, at most.
const INTERVAL: Duration = Duration::from_secs(2);
/// [`Task::id`] of a runtime; no request has this number.
const RUNTIME: u64 = 0;

/// What is looked at.
#[derive(Clone, Debug, Default)]
pub struct Watchdog(Arc<Mutex<Vec<Watched>>>);

/// Threads that work for a node and are not at a request: those that wait for its device, that serve what is ready, that go on
/// with what a daemon before us has left.
#[derive(Clone, Debug, Default)]
pub(super) struct Crew(Arc<Mutex<HashSet<u32>>>);

impl Crew {
    /// The calling thread belongs to it from now on.
    pub(super) fn join(&self) {
        self.members().insert(own_number());
    }

    /// No more.
    pub(super) fn leave(&self) {
        self.members().remove(&own_number());
    }

    fn members(&self) -> std::sync::MutexGuard<'_, HashSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn own_number() -> u32 {
    nix::unistd::gettid().as_raw().cast_unsigned()
}

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
    crew: Crew,
}

impl Watchdog {
    /// Looks after a node from now on, until its channel is gone. `name` is what it stands for; `runtime` is its device's.
    pub(super) fn add(
        &self,
        name: &str,
        node: &Node,
        channel: &Arc<Channel>,
        runtime: Option<&Handle>,
        crew: Crew,
    ) {
        let mut nodes = self.lock();
        let number = nodes.iter().map(|node| node.number + 1).max().unwrap_or(1);
        nodes.push(Watched {
            number,
            name: name.to_owned(),
            path: node.path(),
            abort: node.abort_switch(),
            channel: Arc::downgrade(channel),
            pulse: runtime.cloned().map(Pulse::new),
            crew,
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
            let owners = owners(&tasks, &nodes);
            let findings = judge.look(now(), &tasks, whereabouts::of, |node| is_held_up(node, &owners));
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

/// Which thread works for which node.
fn owners(tasks: &[Task], nodes: &[Watched]) -> HashMap<u32, usize> {
    let crews = nodes.iter().flat_map(|node| {
        let members: Vec<_> = node.crew.members().iter().copied().collect();
        members.into_iter().map(|thread| (thread, node.number))
    });
    // Those at a request have the last word.
    crews
        .chain(tasks.iter().map(|task| (task.thread, task.node)))
        .collect()
}

/// Is any thread of ours that a task of `node` may wait for in a driver, or in a client's memory?
fn is_held_up(node: usize, owners: &HashMap<u32, usize>) -> bool {
    whereabouts::threads().into_iter().any(|thread| {
        matches!(whereabouts::of(thread), Whereabouts::Driver | Whereabouts::Client)
            && may_wait_for(node, owners.get(&thread).copied())
            && whereabouts::name(thread).as_deref() != Some(ASKING)
    })
}

/// May a task of `node` wait for a thread that works for `owner`? The main thread (node 0) waits for all.
fn may_wait_for(node: usize, owner: Option<usize>) -> bool {
    node == 0 || owner.is_none_or(|owner| owner == node)
}

/// Does no thread of ours hang in a driver, from where the kernel takes none, whatever signal there is?
fn can_end() -> bool {
    let is_there = |thread: &u32| whereabouts::of(*thread) == Whereabouts::Driver;
    let mut hang = whereabouts::threads();
    for _ in 0..5 {
        hang.retain(is_there);
        if hang.is_empty() {
            return true;
        }
        // One that is only passing is elsewhere soon.
        thread::sleep(Duration::from_millis(100));
    }
    false
}

/// Tells, and does what can be done. Is it our own fault?
fn act(what: &str, finding: Finding, node: Option<&Watched>, limits: Limits) -> bool {
    let (slow, last) = (limits.slow.as_secs(), limits.last.as_secs());
    match finding {
        Finding::Slow(_, blame) => {
            let place = match blame {
                Blame::Driver => "it is in the device's driver",
                Blame::Client => "the memory of that program does not answer",
                Blame::Another => {
                    "it waits for another call, which is in its driver or in a program's memory"
                }
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
            if std::env::var_os("NOTIFY_SOCKET").is_some() && can_end() {
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

#[cfg(test)]
mod tests {
    use super::{Crew, Task, may_wait_for, own_number, owners};
    use std::time::Duration;

    #[test]
    fn who_waits_may_wait_for_the_same_node_and_for_nobodys_threads() {
        assert!(may_wait_for(1, Some(1)) && may_wait_for(1, None) && may_wait_for(0, Some(2)));
        assert!(!may_wait_for(1, Some(2)) && !may_wait_for(1, Some(0)));
    }

    #[test]
    fn threads_belong_to_whom_they_work_for() {
        let crew = Crew::default();
        crew.join();
        assert!(crew.members().contains(&own_number()));
        let other = crew.clone();
        std::thread::spawn(move || other.join()).join().expect("a thread");
        assert_eq!(crew.members().len(), 2);
        crew.leave();
        assert_eq!(crew.members().len(), 1);
        let task = Task {
            node: 3,
            id: 1,
            thread: 77,
            since: Duration::ZERO,
        };
        assert_eq!(owners(&[task], &[]).get(&77), Some(&3));
    }
}
