//! Bounds on the memory that clients can make us hold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that buffers may take: in total, and for each client.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    per_client: u64,
    used: Mutex<Used>,
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
            total,
            per_client,
            used: Mutex::default(),
        })
    }

    /// Spends `bytes` for the process `client` until the charge is dropped.
    ///
    /// # Errors
    /// See [`OverBudget`]; nothing was spent.
    pub fn charge(self: &Arc<Self>, client: i32, bytes: u64) -> Result<Charge, OverBudget> {
        // A panic elsewhere leaves the sums whole: nothing in here can fail between two changes.
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let held = used.clients.get(&client).copied().unwrap_or(0);
        if bytes > self.per_client.saturating_sub(held) {
            return Err(OverBudget::Client {
                held,
                asked: bytes,
                limit: self.per_client,
            });
        }
        if bytes > self.total.saturating_sub(used.total) {
            return Err(OverBudget::Total {
                held: used.total,
                asked: bytes,
                limit: self.total,
            });
        }
        used.total += bytes;
        *used.clients.entry(client).or_insert(0) += bytes;
        Ok(Charge {
            budget: Arc::clone(self),
            client,
            bytes,
        })
    }

    /// Bytes that the process `client` could spend now.
    #[must_use]
    pub fn available(&self, client: i32) -> u64 {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let held = used.clients.get(&client).copied().unwrap_or(0);
        self.per_client
            .saturating_sub(held)
            .min(self.total.saturating_sub(used.total))
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
    budget: Arc<Budget>,
    client: i32,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut used = self.budget.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.total -= self.bytes;
        if let Some(held) = used.clients.get_mut(&self.client) {
            *held -= self.bytes;
            if *held == 0 {
                used.clients.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, OverBudget};

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
    fn a_huge_demand_does_not_wrap_around() {
        let budget = Budget::new(100, 60);
        let _held = budget.charge(1, 60).expect("within both");
        assert!(budget.charge(1, u64::MAX).is_err());
        assert!(budget.charge(2, u64::MAX).is_err());
    }
}
