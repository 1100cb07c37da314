//! How many may be connected, and ask, at a time: so many that no program notices, and so few that nobody can use up
//! our descriptors or threads, or keep others out.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

/// What is allowed at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections of all users. One more pushes out the one that has said nothing for longest. Each is a descriptor
    /// and a thread.
    pub(super) connections: usize,
    /// Connections of one user. One more is closed. Those count that are being closed, which may take long.
    pub(super) of_user: usize,
    /// Questions of one user that are being answered. More wait for them, and nobody else does.
    pub(super) asking: usize,
    /// How long a question waits so.
    pub(super) patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            of_user: 64,
            asking: 4,
            patience: Duration::from_secs(2),
        }
    }
}

/// Why somebody cannot be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The user has enough.
    User,
    /// There are too many of all users, and none of them is idle.
    Full,
}

/// All who are connected.
#[derive(Debug)]
pub(super) struct Crowd {
    limits: Limits,
    state: Mutex<State>,
    /// A question was answered.
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// Connections that are served.
    open: HashMap<u64, Open>,
    users: HashMap<u32, User>,
    /// Connections of all users, as they count for their users.
    all: usize,
}

#[derive(Debug)]
struct Open {
    socket: Arc<OwnedFd>,
    /// `None`: it is being answered.
    idle_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct User {
    connections: usize,
    asking: usize,
}

impl Crowd {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::default(),
            answered: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Held for calls that cannot panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection of user `uid`; else the socket comes back with the reason. Never waits.
    pub(super) fn enter(self: &Arc<Self>, socket: OwnedFd, uid: u32) -> Result<Place, (OwnedFd, Refused)> {
        let mut guard = self.state();
        let state = &mut *guard;
        if state
            .users
            .get(&uid)
            .is_some_and(|user| user.connections >= self.limits.of_user)
        {
            return Err((socket, Refused::User));
        }
        let full = state.open.len() >= self.limits.connections;
        // Those pushed out may be slow to go: they have an end, too.
        if state.all >= 2 * self.limits.connections || full && !state.push_one_out() {
            return Err((socket, Refused::Full));
        }
        state.users.entry(uid).or_default().connections += 1;
        state.all += 1;
        let (id, socket) = (state.next, Arc::new(socket));
        state.next += 1;
        let open = Open {
            socket: Arc::clone(&socket),
            idle_since: Some(Instant::now()),
        };
        state.open.insert(id, open);
        let counted = Counted {
            crowd: Arc::clone(self),
            uid,
        };
        Ok(Place { id, socket, counted })
    }

    /// Nobody is served any more: all connections end as soon as what is under way has ended.
    pub(super) fn end(&self) {
        for (_, open) in self.state().open.drain() {
            open.end();
        }
    }
}

impl State {
    /// Ends the connection that has said nothing for longest.
    fn push_one_out(&mut self) -> bool {
        let idle = self
            .open
            .iter()
            .filter_map(|(id, open)| Some((open.idle_since?, *id)));
        match idle.min().and_then(|(_, id)| self.open.remove(&id)) {
            Some(open) => {
                open.end();
                true
            }
            None => false,
        }
    }
}

impl Open {
    /// Its thread sees the end. It still holds the socket, so nothing is closed here.
    fn end(&self) {
        if let Err(error) = shutdown(self.socket.as_raw_fd(), Shutdown::Both) {
            tracing::trace!(%error, "the peer was faster");
        }
    }
}

/// A connection that counts. Dropped: it is closed, and then does not count any more.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    // In this order: what is closed counts until it is closed.
    socket: Arc<OwnedFd>,
    counted: Counted,
}

#[derive(Debug)]
struct Counted {
    crowd: Arc<Crowd>,
    uid: u32,
}

impl Place {
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The right to be answered, once it is the user's turn. `None`: that has taken too long.
    pub(super) fn turn(&self) -> Option<Turn<'_>> {
        let Counted { crowd, uid } = &self.counted;
        let (mut state, timeout) = crowd
            .answered
            .wait_timeout_while(crowd.state(), crowd.limits.patience, |state| {
                state
                    .users
                    .get(uid)
                    .is_some_and(|user| user.asking >= crowd.limits.asking)
            })
            .unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return None;
        }
        state.users.entry(*uid).or_default().asking += 1;
        if let Some(open) = state.open.get_mut(&self.id) {
            open.idle_since = None;
        }
        Some(Turn(self))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Not the last reference: nothing is closed under the lock.
        self.counted.crowd.state().open.remove(&self.id);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut guard = self.crowd.state();
        let state = &mut *guard;
        state.all -= 1;
        if let Some(user) = state.users.get_mut(&self.uid) {
            user.connections -= 1;
            if user.connections == 0 {
                state.users.remove(&self.uid);
            }
        }
    }
}

/// A question is being answered.
pub(super) struct Turn<'a>(&'a Place);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Counted { crowd, uid } = &self.0.counted;
        let mut state = crowd.state();
        if let Some(user) = state.users.get_mut(uid) {
            user.asking -= 1;
        }
        if let Some(open) = state.open.get_mut(&self.0.id) {
            open.idle_since = Some(Instant::now());
        }
        drop(state);
        crowd.answered.notify_all();
    }
}
