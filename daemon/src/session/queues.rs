//! The queues of one open file: what it captures and what it puts out. A memory-to-memory device has both, every other
//! node one of them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vidcompat_proto::abi::v4l2::{V4l2RemoveBuffers, buf_type};
use vidcompat_proto::ioctl::QueueOp;
use vidcompat_proto::queue::{Backing, Queue};

use super::adoption::Adoption;
use super::counters::{Counters, Served};
use super::dequeue::Dequeuer;
use super::ledger::Ledger;
use super::passed::Passed;
use super::proof::Proven;
use super::reconcile::free_all;
use super::serve::Way;
use crate::backend::v4l2::RealNode;
use crate::client::Client;
use crate::memory::{BounceBuffer, Provider};
use crate::resolve::{Access, Importer};
use crate::sys::CpuUse;

/// The memory that stands behind a client's buffer, plane by plane, and who queued it last.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// `None`: there was no memory for it.
    pub(super) planes: Option<Arc<Vec<BounceBuffer>>>,
    pub(super) client: Option<Arc<Client>>,
    /// How the client's memory is served, plane by plane; empty until it is queued or prepared.
    pub(super) ways: Arc<Vec<Arc<Way>>>,
}

impl Slot {
    /// Our memory, plane by plane.
    pub(super) fn bounce(&self) -> Vec<Backing> {
        let planes = self.planes.iter().flat_map(|planes| planes.iter());
        planes.map(BounceBuffer::backing).collect()
    }

    /// What the device gets: the client's own memory where it is imported, else ours. Empty where there is neither.
    pub(super) fn backing(&self) -> Vec<Backing> {
        let bounce = self.bounce();
        let of_plane = |(at, way): (usize, &Arc<Way>)| way.backing().or_else(|| bounce.get(at).copied());
        let backing: Option<Vec<_>> = self.ways.iter().enumerate().map(of_plane).collect();
        backing.unwrap_or_default()
    }
}

/// The slots of a queue, by index. Remembers whether anything in them may have changed since somebody asked: whoever writes a
/// session down, at each frame, has to look only then for memory that is not in the store yet.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: BTreeMap<u32, Slot>,
    may_be_new: AtomicBool,
}

impl Slots {
    /// May there be memory that was not there when this was asked last?
    pub(super) fn take_new(&self) -> bool {
        self.may_be_new.swap(false, Ordering::Relaxed)
    }

    /// It is to be asked for again.
    pub(super) fn still_new(&self) {
        self.may_be_new.store(true, Ordering::Relaxed);
    }
}

impl Deref for Slots {
    type Target = BTreeMap<u32, Slot>;

    fn deref(&self) -> &Self::Target {
        &self.slots
    }
}

impl DerefMut for Slots {
    fn deref_mut(&mut self) -> &mut Self::Target {
        *self.may_be_new.get_mut() = true;
        &mut self.slots
    }
}

/// One queue.
#[derive(Default)]
pub(super) struct QueueState {
    pub(super) core: Queue,
    pub(super) slots: Slots,
    /// There where the device has the queue as the client sees it.
    pub(super) passed: Option<Passed>,
    /// Who makes the memory: settled when the first buffers are made, until all are freed by REQBUFS. A queue may stream
    /// on with all its buffers removed, and then no other can be tried.
    pub(super) provider: Option<Provider>,
    /// How the device uses what it imports.
    pub(super) importer: Option<Importer>,
    /// Exporters whose dma-bufs the device has refused although the policy allows them.
    pub(super) refused: Vec<String>,
    pub(super) counters: Arc<Counters>,
    /// What the device counts, whatever becomes of this queue.
    pub(super) total: Option<Arc<Counters>>,
    /// What stands in clients' address spaces.
    pub(super) adoption: Adoption,
    /// The dma-bufs that frames were seen to arrive in, or not.
    pub(super) proven: Arc<Proven>,
    /// The imports that were given last, for a client that moves its pointers about: at most as many as there are
    /// buffers, for they keep its memory alive.
    pub(super) recent: VecDeque<Arc<Way>>,
    /// Which requests have done what.
    pub(super) ledger: Ledger,
    /// The one that sleeps in DQBUF; vb2 allows no second.
    pub(super) dequeuer: Option<Dequeuer>,
}

impl QueueState {
    /// Without buffers, counted for the device as well.
    pub(super) fn counted(total: &Arc<Counters>) -> Self {
        Self {
            counters: Counters::under(Some(total)),
            total: Some(Arc::clone(total)),
            ..Self::default()
        }
    }

    pub(super) fn forget_buffers(&mut self) {
        self.core.freed();
        self.ledger.forget_buffers();
        self.slots.clear();
        self.passed = None;
        self.provider = None;
        self.importer = None;
        self.refused.clear();
        self.counters = Counters::under(self.total.as_ref());
        self.proven = Arc::default();
        self.recent.clear();
        self.adoption = Adoption::default();
    }

    /// What the close of the file would do at the device. One that is `no_vb2` may have buffers that are not only this file's.
    pub(super) fn let_go(&self, node: &RealNode, no_vb2: bool) {
        if self.core.is_empty() && self.passed.is_none() {
            return;
        }
        let buf_type = self.core.buf_type();
        // One that is gone has let go already.
        let _ = node.stream(QueueOp::Streamoff, buf_type);
        if !no_vb2 {
            free_all(node, buf_type);
        }
    }

    /// The device has taken a buffer that is served so.
    pub(super) fn given(&mut self, ways: &[Arc<Way>]) {
        for way in ways
            .iter()
            .filter(|way| way.backing().is_some() && !way.is_inherited())
        {
            self.recent.retain(|recent| recent.claim != way.claim);
            self.recent.push_back(Arc::clone(way));
        }
        let most = self.slots.len() * ways.len();
        while self.recent.len() > most {
            self.recent.pop_front();
        }
    }

    /// The device has given back a buffer that was served so.
    pub(super) fn count(&self, ways: &[Arc<Way>]) {
        let imported = ways.iter().filter(|way| way.backing().is_some()).count();
        let is_adopted = |way: &Arc<Way>| way.backing().is_some() && self.adoption.has(&way.claim);
        self.counters.frame(if imported != ways.len() || ways.is_empty() {
            Served::Copied
        } else if ways.iter().all(is_adopted) {
            Served::Adopted
        } else {
            Served::Imported
        });
        self.counters.add(|counters| &counters.imported, imported as u64);
        self.counters
            .add(|counters| &counters.copied, (ways.len() - imported) as u64);
    }

    /// The device has taken buffer `index` by copies, and not by import.
    pub(super) fn remember_refusal(&mut self, index: u32) {
        let ways = self.slots.get(&index).map(|slot| Arc::clone(&slot.ways));
        for way in ways.iter().flat_map(|ways| ways.iter()) {
            if let Some(exporter) = way.exporter()
                && !self.refused.iter().any(|refused| refused == exporter)
            {
                self.refused.push(exporter.to_owned());
            }
        }
    }

    pub(super) fn removed(&mut self, request: &V4l2RemoveBuffers) {
        let end = request.index.saturating_add(request.count);
        self.core.removed(request);
        self.ledger.removed(&(request.index..end));
        self.slots
            .retain(|index, _| !(request.index..end).contains(index));
        if let Some(passed) = &mut self.passed {
            passed.removed(request.index..end);
        }
    }

    pub(super) fn streamoff(&mut self) {
        self.core.streamoff();
        self.ledger.streamoff();
        let ways = self.slots.values().flat_map(|slot| slot.ways.iter());
        ways.for_each(|way| way.prove_no_more());
        if let Some(passed) = &mut self.passed {
            passed.streamoff();
        }
    }
}

/// Both.
#[derive(Default)]
pub(super) struct Queues {
    pub(super) capture: QueueState,
    pub(super) output: QueueState,
}

impl Queues {
    /// Without buffers; what goes through is also counted for the device: what it captures, and what it puts out.
    pub(super) fn counted(totals: &[Arc<Counters>; 2]) -> Self {
        Self {
            capture: QueueState::counted(&totals[0]),
            output: QueueState::counted(&totals[1]),
        }
    }

    /// The queue that buffers of `buf_type` belong to. For a type that the device has not, any will do: it has no
    /// buffers of that type.
    pub(super) fn of(&self, buf_type: u32) -> &QueueState {
        if buf_type::is_output(buf_type) {
            &self.output
        } else {
            &self.capture
        }
    }

    pub(super) fn of_mut(&mut self, buf_type: u32) -> &mut QueueState {
        if buf_type::is_output(buf_type) {
            &mut self.output
        } else {
            &mut self.capture
        }
    }

    pub(super) fn each(&self) -> [&QueueState; 2] {
        [&self.capture, &self.output]
    }

    pub(super) fn each_mut(&mut self) -> [&mut QueueState; 2] {
        [&mut self.capture, &mut self.output]
    }
}

/// What the device does with the buffers of a queue.
pub(super) const fn access(buf_type: u32) -> Access {
    if buf_type::is_output(buf_type) {
        Access::Read
    } else {
        Access::Write
    }
}

/// What we do with the bounce buffers of a queue.
pub(super) const fn cpu_use(buf_type: u32) -> CpuUse {
    if buf_type::is_output(buf_type) {
        CpuUse::Write
    } else {
        CpuUse::Read
    }
}

#[cfg(test)]
mod tests {
    use super::{Slot, Slots};

    #[test]
    fn slots_that_were_touched_are_looked_at_once_more() {
        let mut slots = Slots::default();
        assert!(!slots.take_new());
        slots.insert(3, Slot::default());
        assert!(slots.take_new() && !slots.take_new());
        assert!(slots.get(&3).is_some() && slots.values().count() == 1);
        assert!(!slots.take_new(), "who looks changes nothing");
        assert!(slots.get_mut(&3).is_some() && slots.take_new());
        slots.still_new();
        assert!(slots.take_new());
    }
}
