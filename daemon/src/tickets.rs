//! Files that an ioctl has left for the client shim, which fetches each by the number that stood in the ioctl's answer.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

/// Files that wait to be fetched: each ioctl is followed by its fetch, one for each thread that calls.
const MOST_WAITING: usize = 32;

/// See the module.
#[derive(Debug, Default)]
pub struct Tickets(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u32,
    waiting: VecDeque<(u32, OwnedFd, bool)>,
}

impl Tickets {
    /// The next number is behind `last`.
    #[must_use]
    pub fn after(last: u32) -> Self {
        Self(Mutex::new(State {
            last,
            waiting: VecDeque::new(),
        }))
    }

    /// Keeps `fd`, and whether it is to be close-on-exec; the oldest goes where too many have not been fetched. The number is
    /// one that an fd could have.
    pub fn keep(&self, fd: OwnedFd, close_on_exec: bool) -> i32 {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.last = (tickets.last + 1) & 0x7fff_ffff;
        let ticket = tickets.last;
        tickets.waiting.push_back((ticket, fd, close_on_exec));
        if tickets.waiting.len() > MOST_WAITING {
            tickets.waiting.pop_front();
        }
        ticket.cast_signed()
    }

    /// The last number.
    pub fn last(&self) -> u32 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// What was kept under `ticket`, once.
    pub fn take(&self, ticket: u32) -> Option<(OwnedFd, bool)> {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = tickets.waiting.iter().position(|(known, ..)| *known == ticket)?;
        let (_, fd, close_on_exec) = tickets.waiting.remove(at)?;
        Some((fd, close_on_exec))
    }
}

#[cfg(test)]
mod tests {
    use super::Tickets;
    use std::fs::File;

    #[test]
    fn a_file_is_fetched_once_and_the_oldest_goes_first() {
        let tickets = Tickets::default();
        let null = || File::open("/dev/null").expect("a null device").into();
        let first = tickets.keep(null(), true).cast_unsigned();
        assert!(tickets.take(first + 1).is_none());
        assert!(
            tickets
                .take(first)
                .is_some_and(|(_, close_on_exec)| close_on_exec)
        );
        assert!(tickets.take(first).is_none());
        let all: Vec<_> = (0..40)
            .map(|_| tickets.keep(null(), false).cast_unsigned())
            .collect();
        let kept = all.iter().filter(|ticket| tickets.take(**ticket).is_some());
        assert_eq!(kept.count(), 32);
        assert!(tickets.0.lock().expect("no panic").waiting.is_empty());
    }
}
