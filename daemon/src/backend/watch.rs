//! Waiting for a device without polling it too early.
//!
//! A node may be polled for input only once it streams (or its own client has asked to): an earlier POLLIN starts
//! read() emulation in the driver and blocks REQBUFS. So a watch has nothing registered until it is told what is
//! wanted, and is told anew whenever that changes.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::sys;

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A buffer, or data to read (POLLIN).
    pub input: bool,
    /// An event (POLLPRI).
    pub priority: bool,
}

impl Wanted {
    fn interest(self) -> Option<Interest> {
        match (self.input, self.priority) {
            (false, false) => None,
            (true, false) => Some(Interest::READABLE.add(Interest::ERROR)),
            (false, true) => Some(Interest::PRIORITY.add(Interest::ERROR)),
            (true, true) => Some(Interest::READABLE.add(Interest::PRIORITY).add(Interest::ERROR)),
        }
    }
}

/// A task that calls back when the device is ready.
#[derive(Debug)]
pub struct Watch {
    wanted: watch::Sender<Wanted>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches `fd` on `runtime`, for nothing at first. `on_ready` runs on a thread that may block, never twice at
    /// once, and again for each change of the device's readiness.
    pub fn start(runtime: &Handle, fd: Arc<File>, on_ready: impl Fn() + Send + Sync + 'static) -> Self {
        let (wanted, receiver) = watch::channel(Wanted::default());
        let task = runtime.spawn(run(fd, receiver, Arc::new(on_ready)));
        Self { wanted, task }
    }

    /// What is waited for from now on.
    pub fn want(&self, wanted: Wanted) {
        self.wanted
            .send_if_modified(|now| std::mem::replace(now, wanted) != wanted);
    }

    /// Ends the watch and waits until it holds the descriptor no more. Not to be called on a thread of `runtime`.
    pub fn stop(self, runtime: &Handle) {
        let Self { wanted, task } = self;
        drop(wanted);
        if let Err(error) = runtime.block_on(task) {
            tracing::error!(%error, "the watch of a device ended badly");
        }
    }
}

async fn run(
    fd: Arc<File>,
    mut wanted: watch::Receiver<Wanted>,
    on_ready: Arc<impl Fn() + Send + Sync + 'static>,
) {
    loop {
        let interest = wanted.borrow_and_update().interest();
        let changed = match interest {
            None => wanted.changed().await,
            Some(interest) => match until_changed(&fd, interest, &mut wanted, &on_ready).await {
                Ok(changed) => changed,
                Err(error) => {
                    // The device is gone or cannot be polled: whoever waits finds out by asking it.
                    tracing::warn!(%error, "a device cannot be watched");
                    call(&on_ready).await;
                    wanted.changed().await
                }
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn until_changed(
    fd: &Arc<File>,
    interest: Interest,
    wanted: &mut watch::Receiver<Wanted>,
    on_ready: &Arc<impl Fn() + Send + Sync + 'static>,
) -> io::Result<Result<(), watch::error::RecvError>> {
    let watched = sys::register(Arc::clone(fd), interest)?;
    loop {
        tokio::select! {
            biased;
            changed = wanted.changed() => return Ok(changed),
            ready = watched.ready(interest) => {
                // Cleared first: a change that comes during the call is seen afterwards.
                ready?.clear_ready();
                call(on_ready).await;
            }
        }
    }
}

async fn call(on_ready: &Arc<impl Fn() + Send + Sync + 'static>) {
    let on_ready = Arc::clone(on_ready);
    if let Err(error) = tokio::task::spawn_blocking(move || on_ready()).await {
        tracing::error!(%error, "serving a ready device failed");
    }
}
