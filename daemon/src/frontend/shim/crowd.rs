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
    /// How long a connection may say nothing. The shim asks as soon as it is connected.
    pub(super) idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            of_user: 64,
            asking: 4,
            patience: Duration::from_secs(2),
            idle: Duration::from_secs(3),
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

    /// Of all users, also those that are being closed.
    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.state().all
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

    pub(super) fn may_be_idle(&self) -> Duration {
        self.counted.crowd.limits.idle
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

#[cfg(test)]
mod tests {
    use super::{Crowd, Limits, Place, Refused};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;
    use std::time::{Duration, Instant};

    const LIMITS: Limits = Limits {
        connections: 6,
        of_user: 4,
        asking: 2,
        patience: Duration::from_millis(200),
        idle: Duration::from_secs(1),
    };

    /// A connection of user `uid`, and the client's end of it.
    fn enter(crowd: &Arc<Crowd>, uid: u32) -> Result<(Place, OwnedFd), Refused> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        match crowd.enter(ours.into(), uid) {
            Ok(place) => Ok((place, theirs.into())),
            Err((_, why)) => Err(why),
        }
    }

    fn is_ended(theirs: &OwnedFd) -> bool {
        let mut wanted = [PollFd::new(theirs.as_fd(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::ZERO).expect("a socket") == 1
    }

    #[test]
    fn a_user_who_has_enough_is_refused_until_one_of_his_is_closed_and_others_are_not() {
        let crowd = Crowd::new(LIMITS);
        let mut his: Vec<_> = (0..4).map(|_| enter(&crowd, 1).expect("a place")).collect();
        assert_eq!(enter(&crowd, 1).expect_err("a fifth"), Refused::User);
        let other = enter(&crowd, 2).expect("another user");
        his.pop();
        let again = enter(&crowd, 1).expect("one was closed");
        assert!(his.iter().all(|(_, end)| !is_ended(end)), "nobody was pushed out");
        assert_eq!(crowd.connections(), 5);
        drop((his, other, again));
        assert_eq!(crowd.connections(), 0);
        assert!(crowd.state().users.is_empty() && crowd.state().open.is_empty());
    }

    #[test]
    fn where_all_is_full_the_one_that_is_idle_for_longest_goes_and_never_one_that_is_answered() {
        let crowd = Crowd::new(LIMITS);
        let mut all: Vec<_> = (0..6).map(|uid| enter(&crowd, uid).expect("a place")).collect();
        let idle = all.split_off(2);
        let asking: Vec<_> = all
            .iter()
            .map(|(place, _)| place.turn().expect("a turn"))
            .collect();
        let newcomers: Vec<_> = (10..14)
            .map(|uid| enter(&crowd, uid).expect("one goes"))
            .collect();
        assert!(all.iter().all(|(_, end)| !is_ended(end)) && idle.iter().all(|(_, end)| is_ended(end)));
        assert!(newcomers.iter().all(|(_, end)| !is_ended(end)));
        // Those pushed out count until they are closed: their threads may hang.
        let two: Vec<_> = (14..16)
            .map(|uid| enter(&crowd, uid).expect("one goes"))
            .collect();
        assert_eq!(enter(&crowd, 16).expect_err("twice as many"), Refused::Full);
        drop(idle);
        assert!(enter(&crowd, 16).is_ok());
        drop((newcomers, two, asking));
    }

    #[test]
    fn where_all_are_answered_nobody_can_be_pushed_out() {
        let crowd = Crowd::new(LIMITS);
        let all: Vec<_> = (0..6).map(|uid| enter(&crowd, uid).expect("a place")).collect();
        let _asking: Vec<_> = all
            .iter()
            .map(|(place, _)| place.turn().expect("a turn"))
            .collect();
        assert_eq!(enter(&crowd, 9).expect_err("all are busy"), Refused::Full);
        assert!(all.iter().all(|(_, end)| !is_ended(end)));
    }

    #[test]
    fn a_users_questions_wait_for_his_own_and_for_nobody_elses() {
        let crowd = Crowd::new(LIMITS);
        let his: Vec<_> = (0..4).map(|_| enter(&crowd, 1).expect("a place").0).collect();
        let (other, _end) = enter(&crowd, 2).expect("a place");
        let first = his[0].turn().expect("a turn");
        let _second = his[1].turn().expect("a turn");
        let begun = Instant::now();
        assert!(his[2].turn().is_none(), "no third one");
        assert!(begun.elapsed() >= LIMITS.patience);
        let begun = Instant::now();
        assert!(other.turn().is_some());
        assert!(begun.elapsed() < LIMITS.patience);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| his[3].turn().is_some());
            thread::sleep(LIMITS.patience / 4);
            drop(first);
            assert!(
                waiting.join().expect("no panic"),
                "it is its turn when another was answered"
            );
        });
    }
}
