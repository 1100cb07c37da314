//! Files that outlive this process, by systemd's protocol (sd_notify(3): FDSTORE, FDNAME, FDSTOREREMOVE, FDPOLL;
//! sd_listen_fds(3)). The keeper speaks the same, so the daemon knows one protocol.
//!
//! A name is `KIND.NODE`, or with a file `KIND.NODE.FH`, or with a buffer `KIND.NODE.FH.ID`: `channel.video64`,
//! `device.video64.7`, `buffer.video64.7.3`. Names are unique; NODE has no dot.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sd_notify::NotifyState;

use crate::sys;

/// Files that a store holds where it does not say how many: `FileDescriptorStoreMax` of the unit.
const MOST: usize = 4096;
/// The part of them that one user's may be: one in so many.
const SHARE: usize = 4;
/// All names, each with a colon, are one string of the next daemon's environment, and exec(2) takes none that is longer
/// (`MAX_ARG_STRLEN` in linux/binfmts.h): the next daemon would not start at all.
const LONGEST_NAMES: usize = 131_072 - 64;

/// Where files can be put so that they outlive us.
#[derive(Debug)]
pub struct Store {
    keeps: bool,
    most: usize,
    names: Mutex<Names>,
    /// Whoever kept our files has ended.
    is_lost: AtomicBool,
    /// What is there stays there.
    leaves: AtomicBool,
}

/// What is in the store, as far as we know.
#[derive(Debug, Default)]
struct Names {
    /// With the turn in which each was put there last, and whose it is.
    turns: HashMap<String, (u64, Owner)>,
    /// Files of each user's.
    shares: HashMap<u32, usize>,
    turn: u64,
    /// Bytes of all names, each with a colon.
    bytes: usize,
}

/// The user that a file is there for; `None`: nobody in particular.
type Owner = Option<u32>;

impl Names {
    /// Files of `owner`.
    fn share(&self, owner: Owner) -> usize {
        owner
            .and_then(|uid| self.shares.get(&uid).copied())
            .unwrap_or_default()
    }

    fn let_go(&mut self, owner: Owner) {
        if let Some(uid) = owner
            && let Some(share) = self.shares.get_mut(&uid)
        {
            *share -= 1;
            if *share == 0 {
                self.shares.remove(&uid);
            }
        }
    }

    /// `name` is there from now on.
    fn note(&mut self, name: &str, owner: Owner) -> u64 {
        self.turn += 1;
        match self.turns.insert(name.to_owned(), (self.turn, owner)) {
            Some((_, before)) => self.let_go(before),
            None => self.bytes += name.len() + 1,
        }
        if let Some(uid) = owner {
            *self.shares.entry(uid).or_default() += 1;
        }
        self.turn
    }

    /// `false`: something else has the name by now.
    fn forget(&mut self, name: &str, turn: u64) -> bool {
        let Some((_, owner)) = self.turns.get(name).copied().filter(|(last, _)| *last == turn) else {
            return false;
        };
        self.turns.remove(name);
        self.bytes -= name.len() + 1;
        self.let_go(owner);
        true
    }
}

impl Store {
    fn new(keeps: bool, most: usize) -> Arc<Self> {
        Arc::new(Self {
            keeps,
            most,
            names: Mutex::default(),
            is_lost: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
        })
    }

    /// Nobody keeps anything: what we open ends with us.
    #[must_use]
    pub fn none() -> Arc<Self> {
        Self::new(false, 0)
    }

    /// The store of whoever has started us, if it has one: systemd tells by `FDSTORE` (254 and later) how many files it takes,
    /// which 252 of Debian 12 does not, so the unit sets `VIDCOMPAT_FDSTORE`, to 1 or the number; so does the keeper.
    #[must_use]
    pub fn of_starter() -> Arc<Self> {
        let value = |name| {
            std::env::var(name)
                .ok()
                .filter(|value| !value.is_empty() && value != "0")
        };
        let told = value("VIDCOMPAT_FDSTORE").or_else(|| value("FDSTORE"));
        let most = told
            .as_deref()
            .and_then(|told| told.parse().ok())
            .filter(|most| *most > 1);
        Self::new(
            value("NOTIFY_SOCKET").is_some() && told.is_some(),
            most.unwrap_or(MOST),
        )
    }

    /// Does anything that is put here outlive us?
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.keeps && !self.is_lost.load(Ordering::Relaxed)
    }

    /// The same, asked of whoever keeps it, which may have ended since it was told something last.
    #[must_use]
    pub fn still_keeps(&self) -> bool {
        if let Err(error) = self.tell(&[NotifyState::Stopping]) {
            tracing::debug!(%error, "nobody to notify");
        }
        self.keeps()
    }

    /// From now on nothing is taken out: this process ends, and the next daemon is to find everything (a restart, an upgrade).
    pub fn leave_everything(&self) {
        self.leaves.store(true, Ordering::Relaxed);
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts another descriptor of `fd` there under `name`, in the place of what had this name; it is taken out again when what
    /// is returned is dropped. When this returns the file outlives us: the message is in the socket of whoever keeps it, which
    /// reads it before it looks after our end.
    ///
    /// # Errors
    /// `ENOSPC`: there are too many already. Else: it could not be sent. Without a store nothing is done, and that is no error;
    /// nor is it one that whoever kept our files has ended: then nothing outlives us any more, and the log says so once.
    pub fn put(self: &Arc<Self>, name: &str, fd: impl AsFd) -> io::Result<Kept> {
        self.put_for(None, name, fd)
    }

    /// The same of a file that stands in user `owner`'s account.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_for(self: &Arc<Self>, owner: Owner, name: &str, fd: impl AsFd) -> io::Result<Kept> {
        if !self.keeps() {
            return Ok(self.kept_for(owner, name));
        }
        // Held while it is sent: what is removed at the same time has another name, or was there before.
        let mut names = self.names();
        let was_there = names.turns.contains_key(name);
        let is_full = names.turns.len() >= self.most || names.bytes + name.len() >= LONGEST_NAMES;
        if is_full && !was_there {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        if was_there {
            // systemd would keep both.
            self.tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])?;
        }
        // FDPOLL=0: systemd would drop a file that reports an error or a hang-up, as a device does that is gone.
        let state = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            NotifyState::Custom("FDPOLL=0"),
        ];
        let sent = sd_notify::notify_with_fds(&state, &[fd.as_fd()]);
        self.unless_lost(sent)?;
        let turn = names.note(name, owner);
        drop(names);
        Ok(self.kept_since(name, turn))
    }

    /// What was put there under `name` before, by a daemon before us.
    pub fn kept(self: &Arc<Self>, name: &str) -> Kept {
        self.kept_for(None, name)
    }

    /// The same of a file that stands in user `owner`'s account.
    pub fn kept_for(self: &Arc<Self>, owner: Owner, name: &str) -> Kept {
        let turn = self.names().note(name, owner);
        self.kept_since(name, turn)
    }

    /// Is there room for one more of user `uid`'s? Nobody may have more than a quarter, or others' files would find none.
    #[must_use]
    pub fn has_room_for(&self, uid: u32) -> bool {
        !self.keeps() || self.names().share(Some(uid)) < self.most / SHARE
    }

    fn kept_since(self: &Arc<Self>, name: &str, turn: u64) -> Kept {
        Kept {
            store: Arc::clone(self),
            name: name.to_owned(),
            turn,
        }
    }

    fn remove(&self, name: &str, turn: u64) {
        let mut names = self.names();
        if !names.forget(name, turn) || !self.keeps() || self.leaves.load(Ordering::Relaxed) {
            return;
        }
        let told = self.tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        drop(names);
        if let Err(error) = told {
            tracing::warn!(name, %error, "a file stays in the fd store although nobody needs it");
        }
    }

    fn tell(&self, state: &[NotifyState<'_>]) -> io::Result<()> {
        self.unless_lost(sd_notify::notify(state))
    }

    /// Nobody listens any more: the keeper was killed (systemd never is).
    fn unless_lost(&self, sent: io::Result<()>) -> io::Result<()> {
        match sent {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ECONNREFUSED | libc::ENOENT | libc::ENOTCONN | libc::ECONNRESET)
                ) =>
            {
                if !self.is_lost.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        %error,
                        "the keeper has ended: clients go on, but when this daemon is killed nothing of theirs survives; \
                         start `vidcompatd --keep` again when they can be interrupted"
                    );
                }
                Ok(())
            }
            sent => sent,
        }
    }
}

/// A file in the store. Dropped, it is taken out; a process that ends without dropping it leaves it there.
#[derive(Debug)]
#[must_use]
pub struct Kept {
    store: Arc<Store>,
    name: String,
    turn: u64,
}

impl Kept {
    /// Its name in the store.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stays in the store for the next daemon, whatever becomes of us.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.store.remove(&self.name, self.turn);
    }
}

/// What the daemon before us has left in the store.
#[derive(Debug, Default)]
pub struct Inheritance(BTreeMap<String, OwnedFd>);

impl Inheritance {
    /// Takes what the starter has handed us (`LISTEN_FDS`), once.
    #[must_use]
    pub fn take() -> Self {
        Self(sys::listen_fds().into_iter().collect())
    }

    /// Names of a kind, such as `channel`.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0
            .keys()
            .map(String::as_str)
            .filter(move |name| name.split('.').next() == Some(kind))
    }

    /// Names that begin with `prefix`.
    pub fn beginning<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.0
            .keys()
            .map(String::as_str)
            .filter(move |name| name.starts_with(prefix))
    }

    /// Looks at a file.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.0.get(name).map(AsFd::as_fd)
    }

    /// Takes a file, to be kept on: see [`Store::kept`].
    pub fn remove(&mut self, name: &str) -> Option<OwnedFd> {
        self.0.remove(name)
    }

    /// What belongs to the node of ours that is called `node`, apart: its files are nobody else's.
    #[must_use]
    pub fn split_off(&mut self, node: &str) -> Self {
        let files = std::mem::take(&mut self.0);
        let is_of_node = |(name, _): &(String, OwnedFd)| name.split('.').nth(1) == Some(node);
        let (own, others): (Vec<_>, Vec<_>) = files.into_iter().partition(is_of_node);
        self.0 = others.into_iter().collect();
        own.into_iter().collect()
    }

    /// What nobody has taken is needed no more: it is closed, and taken out of `store`. Before anything new is put there
    /// that may have the same name.
    pub fn give_up(self, store: &Arc<Store>) {
        for (name, fd) in self.0 {
            tracing::debug!(name, "a file of the daemon before is not needed");
            drop(store.kept(&name));
            drop(fd);
        }
    }
}

impl FromIterator<(String, OwnedFd)> for Inheritance {
    fn from_iter<I: IntoIterator<Item = (String, OwnedFd)>>(files: I) -> Self {
        Self(files.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::{Inheritance, LONGEST_NAMES, Names, Store};
    use std::fs::File;

    #[test]
    fn a_name_that_was_taken_again_is_not_forgotten_with_what_had_it_before() {
        let mut names = Names::default();
        let first = names.note("record.video64.7", Some(7));
        let second = names.note("record.video64.7", Some(8));
        assert_eq!((names.share(Some(7)), names.share(Some(8))), (0, 1));
        assert!(!names.forget("record.video64.7", first));
        assert_eq!((names.turns.len(), names.bytes), (1, 17));
        assert!(names.forget("record.video64.7", second));
        assert!(!names.forget("record.video64.7", second));
        assert_eq!((names.turns.len(), names.bytes), (0, 0));
        assert!(names.shares.is_empty());
    }

    #[test]
    fn nobody_has_more_than_a_share() {
        let null = File::open("/dev/null").expect("a null device");
        let store = Store::new(true, 8);
        let first = store.put_for(Some(7), "a", &null).expect("room");
        let second = store.kept_for(Some(7), "b");
        assert!(!store.has_room_for(7) && store.has_room_for(8));
        drop(first);
        assert!(store.has_room_for(7));
        drop(second);
    }

    #[test]
    fn the_files_of_one_node_are_split_off() {
        let names = [
            "channel.video6",
            "buffer.video64.1.2",
            "record.video64.1",
            "shim-socket",
        ];
        let mut all: Inheritance = names
            .iter()
            .map(|name| {
                (
                    (*name).to_owned(),
                    File::open("/dev/null").expect("a null device").into(),
                )
            })
            .collect();
        let own = all.split_off("video64");
        assert_eq!(
            own.beginning("").collect::<Vec<_>>(),
            ["buffer.video64.1.2", "record.video64.1"]
        );
        assert_eq!(
            all.beginning("").collect::<Vec<_>>(),
            ["channel.video6", "shim-socket"]
        );
    }

    #[test]
    fn more_than_the_next_daemon_can_be_handed_is_refused() {
        // Nobody listens, as this test has no NOTIFY_SOCKET: what is sent goes nowhere, and is no error.
        let null = File::open("/dev/null").expect("a null device");
        let store = Store::new(true, 2);
        let mut kept: Vec<_> = ["a", "b"].iter().map(|name| store.put(name, &null)).collect();
        let full = store.put("c", &null).expect_err("full");
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        assert!(store.put("b", &null).is_ok(), "in the place of the first");
        drop(kept.remove(0));
        assert!(store.put("c", &null).is_ok());

        let store = Store::new(true, usize::MAX);
        let long = |number: u32| format!("{number:0>255}");
        let kept: Vec<_> = (0..)
            .map_while(|number| store.put(&long(number), &null).ok())
            .collect();
        assert_eq!(kept.len(), LONGEST_NAMES / 256);
    }
}
