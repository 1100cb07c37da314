//! What strangers do at the socket, told to the operator: seldom, however often it happens.

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Peer;

/// Between two lines in the log.
const INTERVAL: Duration = Duration::from_secs(60);

/// One for all connections: who complains about everybody tells no more by it, and fills the log.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<(Option<Instant>, u64)>);

impl Complaints {
    /// `peer` has done `what`.
    pub(super) fn about(&self, peer: Peer, what: impl Display) {
        if let Some(unsaid) = self.due() {
            let Peer { pid, uid } = peer;
            let pid = pid.unwrap_or(0);
            tracing::warn!(
                pid,
                uid,
                unsaid,
                "at the shim's socket: {what}; the connection ends"
            );
        }
    }

    /// May something be said now? Then how much was not said since the last time.
    fn due(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unsaid) = &mut *state;
        if last.is_some_and(|last| last.elapsed() < INTERVAL) {
            *unsaid = unsaid.saturating_add(1);
            return None;
        }
        *last = Some(Instant::now());
        Some(std::mem::take(unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::Complaints;

    #[test]
    fn what_happens_a_thousand_times_is_said_once() {
        let complaints = Complaints::default();
        let said = (0..1000).filter_map(|_| complaints.due());
        assert_eq!(said.collect::<Vec<_>>(), [0]);
        assert_eq!(complaints.0.lock().expect("a lock").1, 999, "and counted");
    }
}
