//! Who did what to which buffer: what a daemon after us needs to do again what was asked for and not answered, once.
//!
//! The core knows a queue as the client sees it; this is about requests. A request that the kernel sends again has the
//! number that it had before ([`CallId`]). What it has done by then is told from what is written down here and from what
//! the device says of its buffers (`session::reconcile`).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2RemoveBuffers};
use vidcompat_proto::ioctl::QueueOp;
use zerocopy::IntoBytes;

/// Names a request among all of its node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId {
    /// Its number when it was sent first; 0 is nobody's.
    pub unique: u64,
    /// A daemon before us has had it, and may have done it.
    pub is_resent: bool,
}

/// Where a buffer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// Dequeued.
    #[default]
    Client,
    /// Prepared, and not queued.
    Prepared,
    /// Queued, or done, or in a request.
    Device,
}

/// A buffer.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) place: Place,
    /// The QBUF or PREPARE_BUF that the device took it by; 0: none.
    pub(super) given_by: u64,
    /// The device has it by a call that nothing was written down of, and that nobody was answered.
    pub(super) unanswered: bool,
    /// The DQBUF that got it last, with its answer. Until it is queued again.
    pub(super) returned: Option<(u64, PlanarBuffer)>,
}

/// A call that changes more than one buffer, between its first and its last touch of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UnderWay {
    /// Every buffer comes back.
    Streamoff,
    /// All buffers are freed and made anew.
    Remaking,
    /// Buffers of the device's own become ones that it imports, or are made anew: none is in use.
    Exporting,
    /// Further buffers are made.
    Creating {
        /// Of this type.
        buf_type: u32,
    },
    /// These go.
    Removing {
        /// The request.
        by: u64,
        /// The first.
        first: u32,
        /// And how many.
        count: u32,
    },
}

/// The last call of its kind, and its answer: it cannot be done twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    /// The request.
    pub(super) by: u64,
    /// Its struct as it went back.
    pub(super) answer: Vec<u8>,
}

/// What is known of a queue's buffers and calls.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By index. Those that were never given to the device may be missing.
    entries: BTreeMap<u32, Entry>,
    /// Buffers that a DQBUF has got from the device which nobody was told of: the next one gets them.
    lost: VecDeque<u32>,
    pub(super) under_way: Option<UnderWay>,
    /// CREATE_BUFS or REMOVE_BUFS.
    pub(super) done: Option<Done>,
}

impl Ledger {
    /// As it was written down, and `lost` as the device says.
    pub(super) fn restored(entries: BTreeMap<u32, Entry>, done: Option<Done>) -> Self {
        Self {
            entries,
            done,
            ..Self::default()
        }
    }

    pub(super) fn entries(&self) -> &BTreeMap<u32, Entry> {
        &self.entries
    }

    pub(super) fn entry(&mut self, index: u32) -> &mut Entry {
        self.entries.entry(index).or_default()
    }

    /// The device has taken buffer `index`.
    pub(super) fn given(&mut self, op: QueueOp, index: u32, by: CallId) {
        let entry = self.entry(index);
        entry.place = match op {
            QueueOp::PrepareBuf => Place::Prepared,
            _ => Place::Device,
        };
        entry.given_by = by.unique;
        entry.unanswered = false;
        entry.returned = None;
    }

    /// Has request `call` given buffer `index` to the device already? Asked once.
    pub(super) fn was_given(&mut self, index: u32, call: CallId) -> bool {
        let Some(entry) = self.entries.get_mut(&index).filter(|_| call.is_resent) else {
            return false;
        };
        if std::mem::take(&mut entry.unanswered) {
            entry.given_by = call.unique;
        }
        entry.given_by == call.unique
    }

    /// The device has given buffer `reply.head.index` back, and `by` is told so.
    pub(super) fn returned(&mut self, reply: &PlanarBuffer, by: CallId) {
        let entry = self.entry(reply.head.index);
        entry.place = Place::Client;
        entry.returned = (by.unique != 0).then(|| (by.unique, reply.clone()));
    }

    /// What request `call` was to be told.
    pub(super) fn was_returned(&self, call: CallId) -> Option<&PlanarBuffer> {
        let mut returned = self.entries.values().filter_map(|entry| entry.returned.as_ref());
        let (_, reply) = returned.find(|(by, _)| *by == call.unique)?;
        call.is_resent.then_some(reply)
    }

    /// A buffer that is the client's, and that no DQBUF was answered with.
    pub(super) fn next_lost(&mut self) -> Option<u32> {
        self.lost.pop_front()
    }

    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    pub(super) fn set_lost(&mut self, indices: VecDeque<u32>) {
        self.lost = indices;
    }

    /// All buffers are the client's.
    pub(super) fn streamoff(&mut self) {
        self.lost.clear();
        for entry in self.entries.values_mut() {
            entry.place = Place::Client;
            entry.unanswered = false;
        }
    }

    pub(super) fn removed(&mut self, indices: &Range<u32>) {
        self.entries.retain(|index, _| !indices.contains(index));
        self.lost.retain(|index| !indices.contains(index));
    }

    /// Request `by` has removed these, and is answered so.
    pub(super) fn removed_by(&mut self, by: u64, removed: &V4l2RemoveBuffers) {
        self.done = Some(Done {
            by,
            answer: removed.as_bytes().to_vec(),
        });
    }

    /// There are no buffers any more. What is under way still is.
    pub(super) fn forget_buffers(&mut self) {
        self.entries.clear();
        self.lost.clear();
    }

    /// What request `call` was to be answered.
    pub(super) fn answer(&self, call: CallId) -> Option<&[u8]> {
        let done = self.done.as_ref().filter(|done| done.by == call.unique)?;
        call.is_resent.then_some(&done.answer)
    }
}

#[cfg(test)]
mod tests {
    use super::{CallId, Ledger, Place};
    use vidcompat_proto::abi::v4l2::{PlanarBuffer, buf_type};
    use vidcompat_proto::ioctl::QueueOp;

    const fn first(unique: u64) -> CallId {
        CallId {
            unique,
            is_resent: false,
        }
    }

    const fn again(unique: u64) -> CallId {
        CallId {
            unique,
            is_resent: true,
        }
    }

    #[test]
    fn only_the_request_that_is_sent_again_has_been_done() {
        let mut ledger = Ledger::default();
        ledger.given(QueueOp::Qbuf, 3, first(8));
        assert!(ledger.was_given(3, again(8)) && ledger.was_given(3, again(8)));
        assert!(!ledger.was_given(3, first(8)) && !ledger.was_given(3, again(10)));
        assert!(!ledger.was_given(4, again(8)));
        let reply = PlanarBuffer::blank(buf_type::VIDEO_CAPTURE, 3);
        ledger.returned(&reply, first(12));
        assert_eq!(ledger.was_returned(again(12)), Some(&reply));
        assert_eq!(ledger.was_returned(first(12)), None);
        assert_eq!(ledger.was_returned(again(14)), None);
        ledger.given(QueueOp::Qbuf, 3, first(16));
        assert_eq!(ledger.was_returned(again(12)), None, "it is the device's again");
    }

    #[test]
    fn what_nobody_has_written_down_is_the_first_that_is_sent_again() {
        let mut ledger = Ledger::default();
        ledger.entry(1).place = Place::Device;
        ledger.entry(1).unanswered = true;
        assert!(!ledger.was_given(1, first(20)), "a new one is another");
        assert!(ledger.was_given(1, again(22)));
        assert!(!ledger.was_given(1, again(24)) && ledger.was_given(1, again(22)));
    }
}
