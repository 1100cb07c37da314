//! The queues of one open file: what it captures and what it puts out. A memory-to-memory device has both, every other
//! node one of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use vidcompat_proto::abi::v4l2::{V4l2RemoveBuffers, buf_type};
use vidcompat_proto::queue::{Backing, Queue};

use super::dequeue::Dequeuer;
use super::imports::Imports;
use crate::client::Client;
use crate::memory::{BounceBuffer, Provider};
use crate::sys::CpuUse;

/// The memory that stands behind a client's buffer, plane by plane, and who queued it last.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// `None`: there was no memory for it.
    pub(super) planes: Option<Arc<Vec<BounceBuffer>>>,
    pub(super) client: Option<Arc<Client>>,
}

impl Slot {
    pub(super) fn backing(&self) -> Vec<Backing> {
        let planes = self.planes.iter().flat_map(|planes| planes.iter());
        planes.map(BounceBuffer::backing).collect()
    }
}

/// One queue.
#[derive(Default)]
pub(super) struct QueueState {
    pub(super) core: Queue,
    /// By index.
    pub(super) slots: BTreeMap<u32, Slot>,
    /// There where the client brings dma-bufs of its own.
    pub(super) imports: Option<Imports>,
    /// Who makes the memory: settled when the first buffers are made, until all are freed by REQBUFS. A queue may stream
    /// on with all its buffers removed, and then no other can be tried.
    pub(super) provider: Option<Provider>,
    /// The one that sleeps in DQBUF; vb2 allows no second.
    pub(super) dequeuer: Option<Dequeuer>,
}

impl QueueState {
    pub(super) fn forget_buffers(&mut self) {
        self.core.freed();
        self.slots.clear();
        self.imports = None;
        self.provider = None;
    }

    pub(super) fn removed(&mut self, request: &V4l2RemoveBuffers) {
        let end = request.index.saturating_add(request.count);
        self.core.removed(request);
        self.slots
            .retain(|index, _| !(request.index..end).contains(index));
        if let Some(imports) = &mut self.imports {
            imports.removed(request.index..end);
        }
    }

    pub(super) fn streamoff(&mut self) {
        self.core.streamoff();
        if let Some(imports) = &mut self.imports {
            imports.streamoff();
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

    pub(super) fn each_mut(&mut self) -> [&mut QueueState; 2] {
        [&mut self.capture, &mut self.output]
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
