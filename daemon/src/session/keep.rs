//! What of a session outlives us: the real node, the memory, and what is written down, all in the store.
//!
//! Written down is the session as a whole, with its lock held, after each change and before the change is answered; and
//! before the device is touched, where the device itself would not tell what was done ([`super::ledger::UnderWay`], and the
//! ways of a buffer whose memory is new). Everything here does nothing in a session that is not kept.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Serialize;

use super::ledger::UnderWay;
use super::queues::Slots;
use super::record::{Opening, UNWRITTEN, View};
use super::{Session, State};
use crate::memory::BounceBuffer;
use crate::survive::{Kept, Record, RecordError, Store};

/// Where the files of one node of ours are kept.
#[derive(Clone, Debug)]
pub struct Shelf {
    store: Arc<Store>,
    /// Name of our node, e.g. `video64`.
    node: String,
}

impl Shelf {
    /// For the files of `node`. `None`: nothing outlives us.
    #[must_use]
    pub fn of(store: &Arc<Store>, node: &str) -> Option<Self> {
        store.keeps().then(|| Self {
            store: Arc::clone(store),
            node: node.to_owned(),
        })
    }

    /// Of file `fh`.
    pub(super) fn name(&self, kind: &str, fh: u64) -> String {
        format!("{kind}.{}.{fh}", self.node)
    }

    /// The records of this node's files end so.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn kept(&self, name: &str) -> Kept {
        self.store.kept(name)
    }
}

/// The files of a session in the store.
#[derive(Debug)]
pub(super) struct Keeping {
    shelf: Shelf,
    fh: u64,
    /// Who has opened the file: in this user's account stand its files.
    uid: u32,
    record: Record,
    /// Without it the rest means nothing, so it goes first; and it comes last, when something stands in it.
    kept_record: OnceLock<Kept>,
    _kept_device: Kept,
    /// The next buffer's number.
    next_number: AtomicU64,
    /// We have said that something of it cannot be kept.
    said: AtomicBool,
}

impl Keeping {
    /// Of a file that is being opened.
    pub(super) fn begin(shelf: &Shelf, fh: u64, uid: u32, device: impl AsFd) -> Result<Self, RecordError> {
        let record = Record::create(&format!("vidcompat-{}", shelf.name("record", fh)))?;
        let kept_device = shelf
            .store
            .put_for(Some(uid), &shelf.name("device", fh), device)?;
        Ok(Self {
            shelf: shelf.clone(),
            fh,
            uid,
            record,
            kept_record: OnceLock::new(),
            _kept_device: kept_device,
            next_number: AtomicU64::new(1),
            said: AtomicBool::new(false),
        })
    }

    /// Of a file that a daemon before us has had.
    pub(super) fn again(shelf: &Shelf, fh: u64, uid: u32, record: Record, next_number: u64) -> Self {
        let kept = |name| shelf.store.kept_for(Some(uid), name);
        Self {
            shelf: shelf.clone(),
            fh,
            uid,
            record,
            kept_record: OnceLock::from(kept(&shelf.name("record", fh))),
            _kept_device: kept(&shelf.name("device", fh)),
            next_number: AtomicU64::new(next_number),
            said: AtomicBool::new(false),
        }
    }

    /// Something stands in the record: from now on a daemon after us finds the session. What is found without a record is
    /// nobody's.
    pub(super) fn publish(&self) -> io::Result<()> {
        let kept =
            self.shelf
                .store
                .put_for(Some(self.uid), &self.shelf.name("record", self.fh), &self.record)?;
        // Once: when the file is opened.
        drop(self.kept_record.set(kept));
        Ok(())
    }

    /// The name of what has `number`.
    pub(super) fn name_of(&self, number: u64) -> String {
        format!("{}.{number}", self.shelf.name("buffer", self.fh))
    }

    /// Puts `file` into the store, under a number of its own.
    ///
    /// # Errors
    /// `EDQUOT`: the user has a full share there. What [`Store::put`] says.
    pub(super) fn put(&self, file: impl AsFd) -> io::Result<(u64, Kept)> {
        self.is_within_share()?;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let name = self.name_of(number);
        Ok((number, self.shelf.store.put_for(Some(self.uid), &name, file)?))
    }

    /// The file itself and its record stand outside of this: who sleeps on it can be told then that it has ended.
    fn is_within_share(&self) -> io::Result<()> {
        match self.shelf.store.has_room_for(self.uid) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::EDQUOT)),
        }
    }

    /// The name of the frame that is read in pieces.
    pub(super) fn frame_name(&self) -> String {
        self.shelf.name("frame", self.fh)
    }

    /// The frame in the store.
    pub(super) fn frame_kept(&self) -> Kept {
        self.shelf.store.kept_for(Some(self.uid), &self.frame_name())
    }

    /// What is in the store under `number`.
    pub(super) fn kept(&self, number: u64) -> Kept {
        self.shelf.store.kept_for(Some(self.uid), &self.name_of(number))
    }

    /// Nobody finds the session any more.
    pub(super) fn end(self) {
        drop(self.kept_record);
    }
}

fn fill(what: &impl Serialize, bytes: Vec<u8>) -> Vec<u8> {
    postcard::to_extend(what, bytes).unwrap_or_else(|error| {
        tracing::debug!(%error, "a session is not written down");
        Vec::new()
    })
}

impl Session {
    /// From now on a daemon after us goes on from `state`.
    pub(super) fn commit(&self, state: &State) {
        let Some(keeping) = &self.keeping else { return };
        let all_kept = self.put_buffers(state, keeping);
        let clients = self
            .clients
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let capabilities = self.device.known_capabilities();
        let view = View {
            opening: self.opening,
            poll_handle: state.poll_handle,
            tokens: &state.tokens,
            clients: &clients,
            next_number: keeping.next_number.load(Ordering::Relaxed),
            capture: &state.queues.capture,
            output: &state.queues.output,
            event: state.last_event.as_ref(),
            reader: state.frames.image(),
            writer: state.writer.image(),
            capabilities: &capabilities,
            refuses_heap: self.device.refuses_heap(),
            tickets: &state.tickets,
            exports: &state.exports,
            last_ticket: self.exported.last(),
            once: state.once,
        };
        // Without one of its buffers the rest means nothing.
        let committed = match all_kept {
            true => keeping.record.commit(|bytes| fill(&view, bytes)),
            false => keeping
                .record
                .commit(|bytes| fill(&(UNWRITTEN, state.poll_handle), bytes)),
        };
        if let Err(error) = committed {
            if self.device.may_complain() {
                tracing::error!(
                    device = %self.device.path().display(), %error,
                    "a session cannot be written down: it would not outlive this daemon"
                );
            }
            // Who sleeps is told then all the same.
            let told = keeping
                .record
                .commit(|bytes| fill(&(UNWRITTEN, state.poll_handle), bytes));
            if let Err(error) = told {
                tracing::debug!(%error, "not even whom to tell");
            }
        }
    }

    /// The same of a session that nobody has locked.
    pub(super) fn commit_now(&self) {
        if self.is_kept() {
            self.commit(&self.lock());
        }
    }

    /// Memory for frames that are read in pieces; `None` where it does not outlive us.
    pub(super) fn keep_frames(&self) -> Option<(File, Kept)> {
        let keeping = self.keeping.as_ref()?;
        let made = memfd_create(c"vidcompat-frame", MFdFlags::MFD_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(|file| {
                keeping.is_within_share()?;
                let name = keeping.frame_name();
                let kept = keeping.shelf.store.put_for(Some(keeping.uid), &name, &file)?;
                Ok((File::from(file), kept))
            });
        made.inspect_err(|error| {
            if !keeping.said.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "a frame that is read in pieces would not outlive this daemon");
            }
        })
        .ok()
    }

    /// Does it outlive us?
    pub(super) fn is_kept(&self) -> bool {
        self.keeping.is_some()
    }

    /// Writes down that `what` is done to the queue of `buf_type`, before it is; or that nothing is any more.
    pub(super) fn under_way(&self, state: &mut State, buf_type: u32, what: Option<UnderWay>) {
        if self.is_kept() {
            state.queues.of_mut(buf_type).ledger.under_way = what;
            self.commit(state);
        }
    }

    /// Every dma-buf of ours is in the store before it stands in a record. `false`: one is not.
    fn put_buffers(&self, state: &State, keeping: &Keeping) -> bool {
        let put = |plane: &BounceBuffer| plane.keep(|dma_buf| keeping.put(dma_buf));
        let put_all = |slots: &Slots| {
            let planes = slots.values().filter_map(|slot| slot.planes.as_ref());
            let outcome = planes.flat_map(|planes| planes.iter()).try_for_each(put);
            outcome.inspect_err(|_| slots.still_new())
        };
        let new = state
            .queues
            .each()
            .map(|queue| &queue.slots)
            .into_iter()
            .filter(|slots| slots.take_new());
        let outcome = new.map(put_all).fold(Ok(()), io::Result::and);
        if let Err(error) = &outcome
            && !keeping.said.swap(true, Ordering::Relaxed)
        {
            let why = match error.raw_os_error() {
                Some(libc::EDQUOT) => "its user has as many files there as one user may have".to_owned(),
                _ => error.to_string(),
            };
            tracing::error!(
                device = %self.device.path().display(), uid = keeping.uid,
                "a buffer cannot be put into the fd store ({why}): its file would not outlive this daemon; \
                 FileDescriptorStoreMax= says how many there may be"
            );
        }
        outcome.is_ok()
    }

    /// A token of the shim's that user `uid` was given stays valid.
    pub fn remember_token(&self, uid: u32, token: [u8; 16]) {
        let mut state = self.lock();
        if !state.tokens.contains(&(uid, token)) {
            state.tokens.push((uid, token));
            self.commit(&state);
        }
    }

    /// How it was opened.
    pub fn opening(&self) -> Opening {
        self.opening
    }

    /// The tokens of the shim's, by user.
    pub fn tokens(&self) -> Vec<(u32, [u8; 16])> {
        self.lock().tokens.clone()
    }

    /// Whom to tell of readiness, if anybody has ever polled.
    pub fn poll_handle(&self) -> Option<u64> {
        Some(self.lock().poll_handle).filter(|handle| *handle != 0)
    }
}
