//! Waiting for a device without polling it too early.
//!
//! A node may be polled for input or output only once it streams (or its own client has asked to): an earlier POLLIN or
//! POLLOUT starts read() or write() emulation in the driver and blocks REQBUFS. So a watch has nothing registered until it is told what is
//! wanted, and is told anew whenever that changes.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::PollFlags;
use nix::sys::epoll::EpollFlags;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::sys::{self, Watched};

/// How often a device is asked that cannot be watched at the moment: a frame comes late by no more.
const AGAIN: Duration = Duration::from_millis(10);

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A buffer, or data to read (POLLIN).
    pub input: bool,
    /// A buffer of an output queue, or room to write (POLLOUT).
    pub output: bool,
    /// An event (POLLPRI).
    pub priority: bool,
    /// Another number makes a registration anew. v4l2loopback lets nobody wait who looks while there is something: a
    /// registration that began so is never told of anything (its poll() calls `poll_wait` only where it has nothing).
    pub look: u64,
}

/// What a call of `on_ready` tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It was there when the watch began to look, and may be known.
    Old,
    /// It came since.
    New,
}

impl Wanted {
    fn events(self) -> PollFlags {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, self.input);
        events.set(PollFlags::POLLOUT, self.output);
        events.set(PollFlags::POLLPRI, self.priority);
        events
    }

    /// The same for epoll; `None`: nothing is waited for. Errors come unasked, and an unplugged node has POLLPRI too
    /// (v4l2-dev.c:342).
    fn watched(self) -> Option<EpollFlags> {
        let mut events = EpollFlags::empty();
        events.set(EpollFlags::EPOLLIN, self.input);
        events.set(EpollFlags::EPOLLOUT, self.output);
        events.set(EpollFlags::EPOLLPRI, self.priority);
        (!events.is_empty()).then_some(events)
    }
}

/// Who is told that the device is ready: never twice at once.
pub trait Served: Send + Sync + 'static {
    /// Serves who waits, if that takes no time: this is the thread that waits for the device. `false`: there is more to do
    /// than that, and nothing was done.
    fn at_once(&self, what: Readiness) -> bool;
    /// Serves who waits, on a thread that may block.
    fn on_ready(&self, what: Readiness);
}

/// What is wanted, and how often that has changed: a task that comes late sees the last of several changes only.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    wanted: Wanted,
    serial: u64,
}

/// A task that calls back when the device is ready.
#[derive(Debug)]
pub struct Watch {
    wish: watch::Sender<Wish>,
    /// The serial number of the wish that is registered.
    registered: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches `fd` on `runtime`, for nothing at first. `served` is called for each change of the device's readiness, and
    /// once for what was there already when something new is wanted, as [`Readiness::Old`].
    pub fn start(runtime: &Handle, fd: Arc<File>, served: impl Served) -> Self {
        let (wish, receiver) = watch::channel(Wish::default());
        let (report, registered) = watch::channel(0);
        let task = runtime.spawn(run(fd, receiver, report, Arc::new(served)));
        Self {
            wish,
            registered,
            task,
        }
    }

    /// What is waited for from now on.
    pub fn want(&self, wanted: Wanted) {
        self.wish.send_if_modified(|now| {
            let changes = now.wanted != wanted;
            if changes {
                now.wanted = wanted;
                now.serial += 1;
            }
            changes
        });
    }

    /// Waits until what is wanted now is registered, or what was wanted later: another thread may change its mind before
    /// the task looks. Not to be called on a thread of `runtime`, nor with a lock that `on_ready` takes.
    pub fn settled(&self, runtime: &Handle) -> impl FnOnce() + use<> {
        let (serial, mut registered) = (self.wish.borrow().serial, self.registered.clone());
        let runtime = runtime.clone();
        move || {
            // An error means that the task has ended, and with it every registration.
            drop(
                runtime
                    .block_on(registered.wait_for(|now| *now >= serial))
                    .map(drop),
            );
        }
    }

    /// Ends the watch and waits until it holds the descriptor no more. Not to be called on a thread of `runtime`.
    pub fn stop(self, runtime: &Handle) {
        let Self { wish, task, .. } = self;
        drop(wish);
        if let Err(error) = runtime.block_on(task) {
            tracing::error!(%error, "the watch of a device ended badly");
        }
    }
}

async fn run(
    fd: Arc<File>,
    mut wishes: watch::Receiver<Wish>,
    registered: watch::Sender<u64>,
    served: Arc<impl Served>,
) {
    let mut is_told = false;
    loop {
        let Wish { wanted: now, serial } = *wishes.borrow_and_update();
        let changed = match now.watched().map(|events| sys::register(Arc::clone(&fd), events)) {
            None => {
                registered.send_replace(serial);
                wishes.changed().await
            }
            Some(Ok(watched)) => {
                registered.send_replace(serial);
                // Then epoll tells of it as of an event.
                let first = if sys::poll(&*fd, now.events()).is_empty() {
                    Readiness::New
                } else {
                    Readiness::Old
                };
                until_changed(&watched, first, &mut wishes, &served).await
            }
            Some(Err(error)) => {
                // The device is gone or cannot be polled: whoever waits finds out by asking it.
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(%error, "a device cannot be watched");
                }
                registered.send_replace(serial);
                call(&served, Readiness::New).await;
                if is_want_of(&error) {
                    // Another client's doing, which must not let this one sleep for ever.
                    tokio::select! {
                        changed = wishes.changed() => changed,
                        () = sleep(AGAIN) => Ok(()),
                    }
                } else {
                    wishes.changed().await
                }
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Do we only want for descriptors, watches or memory at the moment?
fn is_want_of(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOSPC)
    )
}

async fn until_changed(
    watched: &Watched,
    mut what: Readiness,
    wishes: &mut watch::Receiver<Wish>,
    served: &Arc<impl Served>,
) -> Result<(), watch::error::RecvError> {
    loop {
        tokio::select! {
            biased;
            changed = wishes.changed() => return changed,
            changed = watched.changed() => {
                // The runtime ends.
                if changed.is_err() {
                    return wishes.changed().await;
                }
                call(served, std::mem::replace(&mut what, Readiness::New)).await;
            }
        }
    }
}

async fn call(served: &Arc<impl Served>, what: Readiness) {
    // Each change of threads costs more than what most calls have to do.
    if served.at_once(what) {
        return;
    }
    let served = Arc::clone(served);
    if let Err(error) = tokio::task::spawn_blocking(move || served.on_ready(what)).await {
        tracing::error!(%error, "serving a ready device failed");
    }
}

#[cfg(test)]
mod tests {
    use super::{Readiness, Served, Wanted, Watch};
    use std::fs::File;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::time::Duration;

    struct Nobody;

    impl Served for Nobody {
        fn at_once(&self, _: Readiness) -> bool {
            true
        }
        fn on_ready(&self, _: Readiness) {}
    }

    #[test]
    fn a_wish_that_is_replaced_before_it_is_seen_is_settled_with_the_next() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        let file = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
        let watch = Watch::start(runtime.handle(), file, Nobody);
        let priority = Wanted {
            priority: true,
            ..Wanted::default()
        };
        watch.want(priority);
        watch.want(Wanted::default());
        let settled = watch.settled(runtime.handle());
        // Nothing of the runtime has run yet: its task sees this last wish only.
        watch.want(priority);
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            settled();
            tell.send(()).expect("a listener");
        });
        let told = std::thread::spawn(move || told.recv_timeout(Duration::from_secs(10)).is_ok());
        runtime.block_on(async {
            while !told.is_finished() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(told.join().expect("no panic"));
    }
}
