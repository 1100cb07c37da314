//! What the threads of a channel are doing: for somebody who looks whether one of them hangs.
//!
//! Only requests that a thread *works on* are in here, from the moment it has read them until it is free again. A request that
//! waits for a device has no thread, and may wait as long as it likes.
//!
//! Each thread has a place of its own and writes to nobody else's: a request costs a look at the clock and a few stores.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::request::{Operation, Request};

/// Of this time `since` is counted.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time by which [`Work::since`] goes: since some moment of this process, without the time that the machine slept.
#[must_use]
pub fn now() -> Duration {
    BEGINNING.elapsed()
}

/// What kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// open(2)
    Open,
    /// close(2), the last one
    Release,
    /// read(2)
    Read,
    /// write(2)
    Write,
    /// An ioctl with this command.
    Ioctl(u32),
    /// poll(2)
    Poll,
    /// A signal for the caller of another one.
    Interrupt,
}

/// A request that a thread works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Its number.
    pub unique: u64,
    /// What is asked.
    pub kind: Kind,
    /// Who asks: a thread; 0 where nobody does.
    pub caller_tid: u32,
    /// The thread of ours.
    pub thread: u32,
    /// When it was read.
    pub since: Duration,
}

/// A thread's place.
#[derive(Debug)]
pub(super) struct Place {
    thread: u32,
    /// Milliseconds and one; 0: nothing.
    since: AtomicU64,
    unique: AtomicU64,
    /// [`Kind`] in the lower half, the command of an ioctl in the upper.
    kind: AtomicU64,
    caller_tid: AtomicU32,
}

/// The places of a channel's threads.
#[derive(Debug, Default)]
pub struct UnderWay(Mutex<Vec<Weak<Place>>>);

impl UnderWay {
    /// A place for the calling thread, as long as it keeps it.
    pub(super) fn place(&self) -> Arc<Place> {
        let place = Arc::new(Place {
            thread: nix::unistd::gettid().as_raw().cast_unsigned(),
            since: AtomicU64::new(0),
            unique: AtomicU64::new(0),
            kind: AtomicU64::new(0),
            caller_tid: AtomicU32::new(0),
        });
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|place| place.strong_count() > 0);
        places.push(Arc::downgrade(&place));
        place
    }

    /// What is worked on now.
    #[must_use]
    pub fn all(&self) -> Vec<Work> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places
            .iter()
            .filter_map(|place| place.upgrade()?.work())
            .collect()
    }
}

impl Place {
    pub(super) fn begin(&self, request: &Request<'_>) {
        let (kind, unique) = kind_of(&request.operation);
        // Unseen until the time is there, which is stored last.
        self.unique.store(unique, Ordering::Relaxed);
        self.kind.store(kind, Ordering::Relaxed);
        self.caller_tid.store(request.caller.tid, Ordering::Relaxed);
        let since = u64::try_from(now().as_millis()).unwrap_or(u64::MAX - 1);
        self.since.store(since + 1, Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.since.store(0, Ordering::Release);
    }

    fn work(&self) -> Option<Work> {
        let since = self.since.load(Ordering::Acquire);
        let work = Work {
            unique: self.unique.load(Ordering::Relaxed),
            kind: kind_from(self.kind.load(Ordering::Relaxed))?,
            caller_tid: self.caller_tid.load(Ordering::Relaxed),
            thread: self.thread,
            since: Duration::from_millis(since.checked_sub(1)?),
        };
        // Another request by now: what was read may be of both.
        (self.since.load(Ordering::Acquire) == since).then_some(work)
    }
}

fn kind_of(operation: &Operation<'_>) -> (u64, u64) {
    let (kind, unique) = match operation {
        Operation::Open { reply, .. } => (1, reply.unique()),
        Operation::Release { reply, .. } => (2, reply.unique()),
        Operation::Read { reply, .. } => (3, reply.unique()),
        Operation::Write { reply, .. } => (4, reply.unique()),
        Operation::Ioctl(ioctl) => (5 | u64::from(ioctl.command) << 32, ioctl.reply.unique()),
        Operation::Poll { reply, .. } => (6, reply.unique()),
        Operation::Interrupt { unique, .. } => (7, *unique),
    };
    (kind, unique)
}

fn kind_from(kind: u64) -> Option<Kind> {
    let command = u32::try_from(kind >> 32).ok()?;
    Some(match kind & u64::from(u32::MAX) {
        1 => Kind::Open,
        2 => Kind::Release,
        3 => Kind::Read,
        4 => Kind::Write,
        5 => Kind::Ioctl(command),
        6 => Kind::Poll,
        7 => Kind::Interrupt,
        _ => return None,
    })
}
