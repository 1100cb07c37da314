//! Bounds on the memory that clients can make us hold, and on what of it they have got into their own hands: that is
//! charged until they have let go of it, whatever has become of the queue.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sys::{field, own_fdinfo};

/// How often it is looked whether clients have let go of something.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes that buffers may take: in total, and for each client.
#[derive(Debug)]
pub struct Budget {
    total: AtomicU64,
    per_client: AtomicU64,
    used: Mutex<Used>,
    handed_out: Mutex<Vec<HandedOut>>,
}

/// A dma-buf that only a client may still need.
#[derive(Debug)]
struct HandedOut {
    fd: Arc<OwnedFd>,
    client: i32,
    bytes: u64,
}

impl HandedOut {
    /// Has anybody but us the dma-buf, as an fd or mapped? (`count` of its fdinfo, drivers/dma-buf/dma-buf.c.)
    fn is_used(&self) -> bool {
        own_fdinfo(&*self.fd).is_ok_and(|fdinfo| others_have(&fdinfo))
    }
}

fn others_have(fdinfo: &str) -> bool {
    let count = field(fdinfo, "count").and_then(|count| count.parse::<u64>().ok());
    count.is_some_and(|count| count > 1)
}

#[derive(Debug, Default)]
struct Used {
    total: u64,
    /// Clients that hold something, by process id. A recycled id inherits only what is still held.
    clients: HashMap<i32, u64>,
}

/// A client asked for more than it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverBudget {
    /// Its own bound.
    #[error(
        "the client holds {held} bytes of buffers and asks for {asked} more; --memory-per-client is {limit}"
    )]
    Client {
        /// bytes
        held: u64,
        /// bytes
        asked: u64,
        /// bytes
        limit: u64,
    },
    /// The bound of all.
    #[error(
        "all clients hold {held} bytes of buffers, {asked} more are asked for; --memory-total is {limit}"
    )]
    Total {
        /// bytes
        held: u64,
        /// bytes
        asked: u64,
        /// bytes
        limit: u64,
    },
}

impl Budget {
    /// A budget with nothing spent; bounds in bytes.
    #[must_use]
    pub fn new(total: u64, per_client: u64) -> Arc<Self> {
        Arc::new(Self {
            total: total.into(),
            per_client: per_client.into(),
            used: Mutex::default(),
            handed_out: Mutex::default(),
        })
    }

    /// Other bounds from now on, in bytes; what is spent already stays.
    pub fn change(&self, total: u64, per_client: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.per_client.store(per_client, Ordering::Relaxed);
    }

    fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn per_client(&self) -> u64 {
        self.per_client.load(Ordering::Relaxed)
    }

    /// Spends `bytes` for the process `client` until the charge is dropped.
    ///
    /// # Errors
    /// See [`OverBudget`]; nothing was spent.
    pub fn charge(self: &Arc<Self>, client: i32, bytes: u64) -> Result<Charge, OverBudget> {
        self.look();
        // A panic elsewhere leaves the sums whole: nothing in here can fail between two changes.
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let held = used.clients.get(&client).copied().unwrap_or(0);
        if bytes > self.per_client().saturating_sub(held) {
            return Err(OverBudget::Client {
                held,
                asked: bytes,
                limit: self.per_client(),
            });
        }
        if bytes > self.total().saturating_sub(used.total) {
            return Err(OverBudget::Total {
                held: used.total,
                asked: bytes,
                limit: self.total(),
            });
        }
        used.total += bytes;
        *used.clients.entry(client).or_insert(0) += bytes;
        Ok(Charge {
            budget: Some(Arc::clone(self)),
            client,
            bytes,
        })
    }

    /// As [`Budget::charge`], for what a daemon before us has charged already: it is there, whatever the bounds are now.
    #[must_use]
    pub fn charge_again(self: &Arc<Self>, client: i32, bytes: u64) -> Charge {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.total = used.total.saturating_add(bytes);
        let held = used.clients.entry(client).or_insert(0);
        *held = held.saturating_add(bytes);
        Charge {
            budget: Some(Arc::clone(self)),
            client,
            bytes,
        }
    }

    /// Is there anything that clients have in their hands? What they have let go of is spent no more.
    fn look(&self) -> bool {
        let mut handed_out = self.handed_out.lock().unwrap_or_else(PoisonError::into_inner);
        handed_out.retain(|out| {
            let used = out.is_used();
            if !used {
                self.give_back(out.client, out.bytes);
            }
            used
        });
        !handed_out.is_empty()
    }

    /// Keeps `charge` until nobody else has `fd`.
    fn keep(self: &Arc<Self>, client: i32, bytes: u64, fd: Arc<OwnedFd>) {
        let mut handed_out = self.handed_out.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = handed_out.is_empty();
        handed_out.push(HandedOut { fd, client, bytes });
        drop(handed_out);
        if !is_first {
            return;
        }
        // Until then it is our fd that keeps the memory: somebody must look, though nobody asks for more.
        let budget = Arc::downgrade(self);
        let looking = thread::Builder::new().name("handed-out".into()).spawn(move || {
            while let Some(budget) = budget.upgrade() {
                if !budget.look() {
                    return;
                }
                drop(budget);
                thread::sleep(LOOK);
            }
        });
        if let Err(error) = looking {
            tracing::debug!(%error, "what clients let go of is noticed at the next request only");
        }
    }

    fn give_back(&self, client: i32, bytes: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.total -= bytes;
        if let Some(held) = used.clients.get_mut(&client) {
            *held -= bytes;
            if *held == 0 {
                used.clients.remove(&client);
            }
        }
    }

    /// Bytes that the process `client` could spend now.
    #[must_use]
    pub fn available(&self, client: i32) -> u64 {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let held = used.clients.get(&client).copied().unwrap_or(0);
        let of_client = self.per_client().saturating_sub(held);
        of_client.min(self.total().saturating_sub(used.total))
    }

    /// Bytes spent now.
    #[must_use]
    pub fn spent(&self) -> u64 {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

/// Bytes that are spent while this lives.
#[derive(Debug)]
pub struct Charge {
    /// `None`: handed on.
    budget: Option<Arc<Budget>>,
    client: i32,
    bytes: u64,
}

impl Charge {
    /// The process that it is spent for.
    #[must_use]
    pub fn client(&self) -> i32 {
        self.client
    }

    /// Spent until nobody but us has `fd`.
    pub fn until_let_go(mut self, fd: Arc<OwnedFd>) {
        if let Some(budget) = self.budget.take() {
            budget.keep(self.client, self.bytes, fd);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.give_back(self.client, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Budget, OverBudget};

    #[test]
    fn what_nobody_has_any_more_is_spent_no_more() {
        let budget = Budget::new(100, 100);
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        let charge = budget.charge(1, 60).expect("there is room");
        // No dma-buf, of which nobody else knows anything.
        charge.until_let_go(Arc::new(reader.into()));
        assert!(budget.charge(1, 100).is_ok());
        assert_eq!(budget.spent(), 0);
    }

    #[test]
    fn a_dma_buf_tells_how_many_have_it() {
        let fdinfo = |count| format!("pos:\t0\nsize:\t4096\ncount:\t{count}\nexp_name:\tsystem\n");
        assert!(super::others_have(&fdinfo(2)));
        assert!(!super::others_have(&fdinfo(1)));
        assert!(!super::others_have("pos:\t0\n"));
    }

    #[test]
    fn a_client_over_its_bound_is_refused_and_others_are_not() {
        let budget = Budget::new(100, 60);
        let first = budget.charge(1, 50).expect("within both");
        assert_eq!(
            budget.charge(1, 11).err(),
            Some(OverBudget::Client {
                held: 50,
                asked: 11,
                limit: 60
            })
        );
        let _second = budget.charge(2, 50).expect("within both");
        assert_eq!(
            budget.charge(3, 1).err(),
            Some(OverBudget::Total {
                held: 100,
                asked: 1,
                limit: 100
            })
        );
        assert_eq!(
            (budget.available(1), budget.available(2), budget.available(3)),
            (0, 0, 0)
        );
        drop(first);
        assert_eq!((budget.available(1), budget.available(2)), (50, 10));
        assert_eq!(budget.spent(), 50);
        assert!(budget.charge(3, 50).is_ok());
    }

    #[test]
    fn other_bounds_count_for_what_is_asked_then() {
        let budget = Budget::new(100, 60);
        let held = budget.charge(1, 60).expect("within both");
        budget.change(70, 50);
        assert_eq!((budget.available(1), budget.available(2)), (0, 10));
        drop(held);
        assert_eq!((budget.available(1), budget.spent()), (50, 0));
    }

    #[test]
    fn a_huge_demand_does_not_wrap_around() {
        let budget = Budget::new(100, 60);
        let _held = budget.charge(1, 60).expect("within both");
        assert!(budget.charge(1, u64::MAX).is_err());
        assert!(budget.charge(2, u64::MAX).is_err());
    }
}
