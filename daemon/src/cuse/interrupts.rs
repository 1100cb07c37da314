//! Requests that a signal may end.
//!
//! The kernel sends FUSE_INTERRUPT right after a request, possibly before the thread that handles the request has
//! put it to sleep. So a request that may sleep is *watched* by the thread that read it, before anything else is
//! read; an interrupt that comes early is remembered.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

type OnInterrupt = Box<dyn FnOnce() + Send>;

enum Watched {
    Running,
    Interrupted,
    Asleep(OnInterrupt),
}

#[derive(Default)]
struct Table(Mutex<HashMap<u64, Watched>>);

impl Table {
    fn with<R>(&self, act: impl FnOnce(&mut HashMap<u64, Watched>) -> R) -> R {
        // A panic elsewhere leaves the map whole: every change to it is a single call.
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
        self.0.with(|map| map.insert(unique, Watched::Running));
        Ticket {
            table: Arc::clone(&self.0),
            unique,
        }
    }

    /// The kernel asks to end request `unique`. One that is not watched is about to be answered anyway.
    pub fn interrupt(&self, unique: u64) {
        let previous = self.0.with(|map| {
            let entry = map.get_mut(&unique)?;
            Some(std::mem::replace(entry, Watched::Interrupted))
        });
        if let Some(Watched::Asleep(wake)) = previous {
            wake();
        }
    }

    /// How many requests are watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.with(|map| map.len())
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
        self.table.with(|map| match map.get_mut(&self.unique) {
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
        let _gone = self.table.with(|map| map.remove(&self.unique));
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
    fn nothing_is_left_when_the_ticket_goes_and_late_interrupts_are_ignored() {
        let interrupts = Interrupts::default();
        drop(interrupts.watch(6));
        interrupts.interrupt(6);
        assert!(interrupts.is_empty());
    }
}
