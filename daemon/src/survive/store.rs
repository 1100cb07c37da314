//! Files that outlive this process, by systemd's protocol (sd_notify(3): FDSTORE, FDNAME, FDSTOREREMOVE, FDPOLL;
//! sd_listen_fds(3)). The keeper speaks the same, so the daemon knows one protocol.
//!
//! A name is `KIND.NODE`, or with a file `KIND.NODE.FH`, or with a buffer `KIND.NODE.FH.ID`: `channel.video64`,
//! `device.video64.7`, `buffer.video64.7.3`. Names are unique; NODE has no dot.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use sd_notify::NotifyState;

use crate::sys;

/// Where files can be put so that they outlive us.
#[derive(Debug)]
pub struct Store {
    keeps: bool,
}

impl Store {
    /// Nobody keeps anything: what we open ends with us.
    #[must_use]
    pub fn none() -> Arc<Self> {
        Arc::new(Self { keeps: false })
    }

    /// The store of whoever has started us, if it has one: systemd tells by `FDSTORE` (254 and later), which 252 of Debian
    /// 12 does not, so the unit sets `VIDCOMPAT_FDSTORE=1`; so does the keeper.
    #[must_use]
    pub fn of_starter() -> Arc<Self> {
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        Arc::new(Self {
            keeps: is_set("NOTIFY_SOCKET") && (is_set("FDSTORE") || is_set("VIDCOMPAT_FDSTORE")),
        })
    }

    /// Does anything that is put here outlive us?
    #[must_use]
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// Puts another descriptor of `fd` there under `name`; it is taken out again when what is returned is dropped. When
    /// this returns the file outlives us: the message is in the socket of whoever keeps it, which reads it before it looks
    /// after our end.
    ///
    /// # Errors
    /// Nobody takes it. Without a store nothing is done, and that is no error.
    pub fn put(self: &Arc<Self>, name: &str, fd: impl AsFd) -> io::Result<Kept> {
        if self.keeps {
            // FDPOLL=0: systemd would drop a file that reports an error or a hang-up, as a device does that is gone.
            sd_notify::notify_with_fds(
                &[
                    NotifyState::FdStore,
                    NotifyState::FdName(name),
                    NotifyState::Custom("FDPOLL=0"),
                ],
                &[fd.as_fd()],
            )?;
        }
        Ok(self.kept(name))
    }

    /// What was put there under `name` before, by us or by a daemon before us.
    pub fn kept(self: &Arc<Self>, name: &str) -> Kept {
        Kept {
            store: Arc::clone(self),
            name: name.to_owned(),
        }
    }

    fn remove(&self, name: &str) {
        if !self.keeps {
            return;
        }
        if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
            tracing::warn!(name, %error, "a file stays in the fd store although nobody needs it");
        }
    }
}

/// A file in the store. Dropped, it is taken out; a process that ends without dropping it leaves it there.
#[derive(Debug)]
#[must_use]
pub struct Kept {
    store: Arc<Store>,
    name: String,
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
        self.store.remove(&self.name);
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

    /// What nobody has taken is needed no more: it is closed, and taken out of `store`.
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
