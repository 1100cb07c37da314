//! From a queue of the device's own MMAP buffers to one that imports: the same memory is exported, the queue freed, and
//! what was exported imported again, after which other dma-bufs can be imported too.
//!
//! Not done before a client brings a dma-buf: a queue that imports cannot be given more of the device's own memory, which
//! CREATE_BUFS may want.

use std::sync::{Arc, MutexGuard};

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{V4l2ExportBuffer, V4l2RequestBuffers, buf_cap, memory};

use super::ledger::UnderWay;
use super::queues::{QueueState, Slot};
use super::{Session, State};
use crate::memory::{BounceBuffer, Provider};

/// Why a dma-buf is copied in a queue that does not import.
const IN_USE: &str = "the queue has buffers of the device's own, which are in use";
const NO_IMPORT: &str = "the device cannot import";

impl Session {
    /// Makes the queue of `buf_type` one that imports, if nothing is queued in it; else says why not.
    pub(super) fn make_importing(
        &self,
        state: MutexGuard<'_, State>,
        buf_type: u32,
        tid: u32,
    ) -> Option<&'static str> {
        drop(state);
        self.stop_watching();
        let mut state = self.lock();
        let queue = state.queues.of_mut(buf_type);
        // A copy that is under way holds the memory.
        let unused = |slot: &Slot| {
            slot.planes
                .as_ref()
                .is_none_or(|planes| Arc::strong_count(planes) == 1)
        };
        let whole = queue.slots.keys().copied().eq(0..queue.core.len());
        if queue.provider != Some(Provider::Exporter) {
            return None;
        }
        if !queue.core.is_idle() || !whole || !queue.slots.values().all(unused) {
            return Some(IN_USE);
        }
        self.under_way(&mut state, buf_type, Some(UnderWay::Exporting));
        let exported = self.export_queue(state.queues.of_mut(buf_type), buf_type, tid);
        self.under_way(&mut state, buf_type, None);
        match exported {
            Ok(()) => None,
            Err(errno) => {
                tracing::debug!(
                    device = %self.device.path().display(), %errno,
                    "the device's own buffers cannot be exported and imported again"
                );
                Some(NO_IMPORT)
            }
        }
    }

    /// `queue` has buffers 0 to n, and nothing uses them.
    fn export_queue(&self, queue: &mut QueueState, buf_type: u32, tid: u32) -> Result<(), Errno> {
        let capabilities = self.device.queue_capabilities(&self.node, buf_type)?;
        if capabilities & buf_cap::DMABUF == 0 {
            return Err(Errno::EINVAL);
        }
        let mut exported = Vec::new();
        for (index, slot) in queue.slots.iter() {
            let planes = slot.planes.iter().flat_map(|planes| planes.iter());
            let export = |(plane, _)| {
                self.node.export(&V4l2ExportBuffer {
                    buf_type,
                    index: *index,
                    plane,
                    flags: libc::O_RDWR.cast_unsigned(),
                    ..V4l2ExportBuffer::default()
                })
            };
            let fds: Vec<_> = (0..).zip(planes).map(export).collect::<Result<_, _>>()?;
            exported.push(fds);
        }
        let count = queue.core.len();
        let slots = std::mem::take(&mut *queue.slots);
        let importer = queue.importer;
        let ask = |count, memory| {
            let mut request = V4l2RequestBuffers {
                count,
                buf_type,
                memory,
                ..Default::default()
            };
            self.node.reqbufs(&mut request).map(|()| request.count)
        };
        let asked = ask(0, memory::MMAP).and_then(|_| ask(count, memory::DMABUF));
        queue.forget_buffers();
        if asked == Ok(count) {
            for ((index, slot), fds) in slots.into_iter().zip(exported) {
                let planes = slot.planes.and_then(Arc::into_inner).unwrap_or_default();
                let planes: Vec<_> = planes
                    .into_iter()
                    .zip(fds)
                    .map(|(plane, fd)| BounceBuffer::exported(plane, fd))
                    .collect();
                for dma_buf in planes.iter().filter_map(BounceBuffer::dma_buf) {
                    self.know_again(dma_buf);
                }
                let slot = Slot {
                    planes: Some(Arc::new(planes)),
                    ..slot
                };
                queue.slots.insert(index, slot);
            }
            if self.adopt_exported(queue, buf_type, capabilities).is_ok() {
                (queue.provider, queue.importer) = (Some(Provider::Exported), importer);
                return Ok(());
            }
        }
        // Back to what it was; the memory is made anew.
        queue.forget_buffers();
        let outcome = ask(0, memory::DMABUF).and_then(|_| self.own_again(queue, buf_type, count, tid));
        queue.importer = importer;
        outcome.and(Err(Errno::EINVAL))
    }
}
