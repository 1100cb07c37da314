//! Requests that a signal may end.
//!
//! The kernel sends FUSE_INTERRUPT right after a request, so another thread may have read it before the one that
//! handles the request has begun to watch for it. An interrupt that comes early is remembered; no request number is
//! ever used twice.
//!
//! That holds for requests that are sent again to the next daemon, too, and nothing is lost (fs/fuse/dev.c of 6.12.117):
//! `fuse_resend` takes the interrupts of such requests off the queue and marks the number; the request stays `FR_INTERRUPTED`,
//! so as soon as it is read (`fuse_dev_do_read`) its interrupt comes once more, also when the daemon before had read it, and
//! names the request by the marked number, as the request itself does.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

type OnInterrupt = Box<dyn FnOnce() + Send>;

enum Watched {
    Running,
    Interrupted,
    Asleep(OnInterrupt),
}

/// Early interrupts that are remembered. Most are for requests that are never watched, and about to be answered.
const EARLY: usize = 1024;

#[derive(Default)]
struct Requests {
    watched: HashMap<u64, Watched>,
    early: VecDeque<u64>,
}

#[derive(Default)]
struct Table(Mutex<Requests>);

impl Table {
    fn with<R>(&self, act: impl FnOnce(&mut Requests) -> R) -> R {
        // A panic elsewhere leaves the table whole: every change to it is a single call.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The watched requests of a channel.
#[derive(Default)]
pub struct Interrupts(Arc<Table>);

/// The request was interrupted before it went to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl Interrupts {
    /// Watches request `unique` from now until the ticket is dropped.
    pub fn watch(&self, unique: u64) -> Ticket {
        self.0.with(|requests| {
            let early = requests.early.iter().position(|early| *early == unique);
            let begin = match early.and_then(|at| requests.early.remove(at)) {
                Some(_) => Watched::Interrupted,
                None => Watched::Running,
            };
            requests.watched.insert(unique, begin);
        });
        Ticket {
            table: Arc::clone(&self.0),
            unique,
        }
    }

    /// The kernel asks to end request `unique`. One that is never watched is answered in its own time.
    pub fn interrupt(&self, unique: u64) {
        let previous = self.0.with(|requests| {
            let Some(entry) = requests.watched.get_mut(&unique) else {
                if requests.early.len() >= EARLY {
                    requests.early.pop_front();
                }
                requests.early.push_back(unique);
                return None;
            };
            Some(std::mem::replace(entry, Watched::Interrupted))
        });
        if let Some(Watched::Asleep(wake)) = previous {
            wake();
        }
    }

    /// How many requests are watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.with(|requests| requests.watched.len())
    }

    /// Is nothing watched?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Interrupts({} watched)", self.len())
    }
}

/// A watched request.
#[must_use]
pub struct Ticket {
    table: Arc<Table>,
    unique: u64,
}

impl Ticket {
    /// The request that is watched.
    #[must_use]
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// From now on an interrupt calls `wake`, once, on the thread that received it.
    ///
    /// # Errors
    /// The interrupt has come already: answer it now.
    pub fn sleep(&self, wake: impl FnOnce() + Send + 'static) -> Result<(), Interrupted> {
        self.table
            .with(|requests| match requests.watched.get_mut(&self.unique) {
                Some(entry @ Watched::Running) => {
                    *entry = Watched::Asleep(Box::new(wake));
                    Ok(())
                }
                _ => Err(Interrupted),
            })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Dropped outside the lock: the closure may own what locks it again.
        let _gone = self.table.with(|requests| requests.watched.remove(&self.unique));
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({})", self.unique)
    }
}

#[cfg(test)]
mod tests {
    use super::{Interrupted, Interrupts};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn an_interrupt_wakes_a_sleeper_once() {
        let interrupts = Interrupts::default();
        let woken = Arc::new(AtomicU32::new(0));
        let ticket = interrupts.watch(6);
        let count = Arc::clone(&woken);
        ticket
            .sleep(move || count.store(count.load(Ordering::SeqCst) + 1, Ordering::SeqCst))
            .expect("not interrupted yet");
        interrupts.interrupt(6);
        interrupts.interrupt(6);
        assert_eq!(woken.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn an_interrupt_before_the_sleep_is_remembered() {
        let interrupts = Interrupts::default();
        let ticket = interrupts.watch(6);
        interrupts.interrupt(6);
        assert_eq!(ticket.sleep(|| ()), Err(Interrupted));
    }

    #[test]
    fn an_interrupt_before_the_watch_is_remembered_for_that_request_only() {
        let interrupts = Interrupts::default();
        interrupts.interrupt(6);
        assert_eq!(interrupts.watch(8).sleep(|| ()), Ok(()));
        assert_eq!(interrupts.watch(6).sleep(|| ()), Err(Interrupted));
        for unique in 100..10_000 {
            interrupts.interrupt(unique);
        }
        assert!(interrupts.is_empty());
        assert_eq!(interrupts.watch(9_999).sleep(|| ()), Err(Interrupted));
    }

    #[test]
    fn a_request_that_was_sent_again_is_another_than_before() {
        const AGAIN: u64 = 6 | 1 << 63;
        let interrupts = Interrupts::default();
        let (first, again) = (interrupts.watch(6), interrupts.watch(AGAIN));
        interrupts.interrupt(AGAIN);
        assert_eq!(first.sleep(|| ()), Ok(()));
        assert_eq!(again.sleep(|| ()), Err(Interrupted));
        drop(first);
        assert_eq!(interrupts.len(), 1, "the end of one is not the end of the other");
    }

    #[test]
    fn nothing_is_left_when_the_ticket_goes_and_late_interrupts_are_ignored() {
        let interrupts = Interrupts::default();
        drop(interrupts.watch(6));
        interrupts.interrupt(6);
        assert!(interrupts.is_empty());
    }
}
