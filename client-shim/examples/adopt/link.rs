//! The daemon's part, played by the test: what it wants moved, and what it says is lent.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vidcompat_proto::shim::{Answer, Ask, Hello, Move, Outcome};
use zerocopy::FromZeros;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) hello: Hello,
}

pub(crate) fn link() -> Link {
    Link {
        hello: Hello::new_zeroed(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkError {
    NoDaemon,
    #[allow(dead_code)]
    NoAnswer,
}

thread_local! {
    static WANTED: RefCell<Option<(Move, Option<OwnedFd>)>> = const { RefCell::new(None) };
    static OUTCOME: RefCell<Option<Outcome>> = const { RefCell::new(None) };
}

pub(crate) static DAEMON_IS_DEAD: AtomicBool = AtomicBool::new(false);
/// Addresses; 0 is a free place. No lock: signal handlers ask.
static LENT: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// From now on the daemon says of `client_addr` that it is lent, or not.
pub(crate) fn lend(client_addr: u64, lent: bool) {
    let (from, to) = if lent { (0, client_addr) } else { (client_addr, 0) };
    if lent && is_lent(client_addr) {
        return;
    }
    let exchange = |place: &AtomicU64| place.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
    assert!(LENT.iter().any(|place| exchange(place).is_ok()) || !lent);
}

fn is_lent(client_addr: u64) -> bool {
    LENT.iter()
        .any(|place| place.load(Ordering::SeqCst) == client_addr)
}

/// A QBUF that is told to move first; what came of it.
pub(crate) fn moved(wanted: Move, file: Option<OwnedFd>) -> Outcome {
    WANTED.set(Some((wanted, file)));
    crate::adopt::obey(&link());
    OUTCOME.take().expect("no outcome was told")
}

impl Link {
    pub(crate) fn ask(&self, ask: Ask) -> Result<(Answer, Option<OwnedFd>), LinkError> {
        if DAEMON_IS_DEAD.load(Ordering::Relaxed) {
            return Err(LinkError::NoDaemon);
        }
        Ok(match ask {
            Ask::NextMove => match WANTED.take() {
                Some((wanted, file)) => (Answer::Move(wanted), file),
                None => (Answer::Nothing, None),
            },
            Ask::Moved { outcome, .. } => {
                OUTCOME.set(Some(outcome));
                (Answer::Nothing, None)
            }
            Ask::IsLent { client_addr, .. } => {
                let lent = is_lent(client_addr);
                (if lent { Answer::Yes } else { Answer::Nothing }, None)
            }
            _ => (Answer::Nothing, None),
        })
    }
}
