//! What is adopted. Fixed in size, behind a lock that no wait for the daemon is spent under.

use std::sync::atomic::{AtomicU32, Ordering};

use super::maps::Object;
use super::sys::{self, Guard, Guarded, Mapping, Stretch};
use crate::link::Link;

/// A stretch of the program's that is a dma-buf.
pub(super) struct Adopted {
    pub(super) stretch: Stretch,
    /// The same memory at another address, whatever becomes of the stretch.
    pub(super) alias: Mapping,
    /// The program's own mapping, without its pages.
    pub(super) kept: Mapping,
    /// What the stretch shows where it is still ours.
    pub(super) object: Object,
}

impl Adopted {
    /// Its first `bytes`, and the rest where there is one.
    pub(super) fn split(self, bytes: usize) -> (Self, Option<Self>) {
        let Self {
            stretch,
            alias,
            kept,
            object,
        } = self;
        let (alias, alias_rest) = alias.split(bytes);
        let (kept, kept_rest) = kept.split(bytes);
        let rest = alias_rest.zip(kept_rest).map(|(alias, kept)| Self {
            stretch: Stretch {
                start: stretch.start + bytes,
                len: stretch.len - bytes,
            },
            alias,
            kept,
            object: object.after(bytes),
        });
        let first = Self {
            stretch: Stretch {
                start: stretch.start,
                len: alias.stretch().len,
            },
            alias,
            kept,
            object,
        };
        (first, rest)
    }

    /// Both in one again.
    pub(super) fn join(self, rest: Self) -> Self {
        Self {
            stretch: Stretch {
                start: self.stretch.start,
                len: self.stretch.len + rest.stretch.len,
            },
            alias: self.alias.join(rest.alias),
            kept: self.kept.join(rest.kept),
            object: self.object,
        }
    }
}

/// An adopted stretch as the daemon knows it.
pub(super) struct Entry {
    pub(super) adopted: Adopted,
    /// As the move said: what the daemon is asked about, though the program may have unmapped a part.
    pub(super) asked: Stretch,
    pub(super) link: Link,
    /// Whom the link's token is for. To another user the daemon says that there is no such session.
    pub(super) user: u32,
    /// Tells it from a later one in the same place.
    pub(super) serial: u64,
}

const ENTRIES: usize = 256;

pub(super) struct Table {
    entries: [Option<Entry>; ENTRIES],
    serials: u64,
    /// Fork is watched.
    watched: bool,
}

static TABLE: Guarded<Table> = Guarded::new(Table {
    entries: [const { None }; ENTRIES],
    serials: 0,
    watched: false,
});

/// Entries in the table.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Whose memory the table is about. A child of vfork or of a bare clone has it, too, and must not touch it.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// Is there an entry? One load.
pub(super) fn is_used() -> bool {
    COUNT.load(Ordering::Acquire) != 0
}

fn this_process() -> u32 {
    rustix::process::getpid().as_raw_nonzero().get().unsigned_abs()
}

/// The table, if it is this process's or nobody's yet, and not in the middle of a fork of this very thread, where other
/// libraries' handlers may close files.
pub(super) fn lock() -> Option<Guard<Table>> {
    if TABLE.is_left_by_us() {
        return None;
    }
    let process = this_process();
    let nobodys = OWNER.compare_exchange(0, process, Ordering::Relaxed, Ordering::Relaxed);
    match nobodys {
        Err(owner) if owner != process => None,
        _ => Some(TABLE.lock()),
    }
}

/// The table after a fork, for the thread that has left it locked before.
pub(super) fn resume() -> Option<Guard<Table>> {
    TABLE.resume()
}

impl Table {
    pub(super) fn is_full(&self) -> bool {
        self.entries.iter().all(Option::is_some)
    }

    /// Registers what fork needs, once.
    pub(super) fn watch_forks(&mut self) -> bool {
        if !self.watched {
            self.watched = super::fork::watch();
        }
        self.watched
    }

    pub(super) fn add(&mut self, adopted: Adopted, link: Link) {
        self.serials += 1;
        let entry = Entry {
            asked: adopted.stretch,
            adopted,
            link,
            user: sys::user(),
            serial: self.serials,
        };
        COUNT.fetch_add(1, Ordering::Relaxed);
        self.restore(entry);
    }

    /// Puts it (back) into a free place, which there is.
    pub(super) fn restore(&mut self, entry: Entry) {
        if let Some(place) = self.entries.iter_mut().find(|place| place.is_none()) {
            *place = Some(entry);
        }
    }

    /// The entry with the lowest serial of `from` or more that was made as `user`.
    pub(super) fn next_of(&self, from: u64, user: u32) -> Option<&Entry> {
        let entries = self.entries.iter().flatten();
        entries
            .filter(|entry| entry.serial >= from && entry.user == user)
            .min_by_key(|entry| entry.serial)
    }

    /// Takes out the first entry of which `test` is true. It counts until it is restored or gone: who sees that nothing
    /// is adopted must not find memory that another thread is still giving back.
    pub(super) fn take(&mut self, test: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let place = self
            .entries
            .iter_mut()
            .find(|place| place.as_ref().is_some_and(&test))?;
        place.take()
    }

    /// An entry that was taken out is there no more.
    pub(super) fn is_gone(&mut self) {
        COUNT.fetch_sub(1, Ordering::Release);
    }

    /// All of them.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    /// The table of a child: nobody's until it adopts something itself.
    pub(super) fn is_nobodys(&mut self) {
        OWNER.store(0, Ordering::Relaxed);
    }

    /// Is memory of ours that the table needs in `stretch`?
    pub(super) fn lies_in(&self, stretch: Stretch) -> bool {
        stretch.overlaps(Stretch {
            start: std::ptr::from_ref(self).addr(),
            len: size_of::<Self>(),
        }) || sys::is_under_us(stretch)
    }
}
