//! REQBUFS and CREATE_BUFS: which memory the device's queue gets.
//!
//! A driver does not say what it can import, so the buffers are tried before the client hears of success: each heap
//! buffer is given to the device once (PREPARE_BUF, or QBUF where a driver has no PREPARE_BUF) and taken back by
//! STREAMOFF. A dma-contig queue without an IOMMU refuses scattered memory there (EFAULT), and the device's own MMAP
//! buffers serve instead. Nothing is streaming or queued at that time, so nobody can notice.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    PlanarBuffer, V4l2CreateBuffers, V4l2Plane, V4l2RequestBuffers, buf_cap, memory,
};
use vidcompat_proto::ioctl::QueueOp;
use vidcompat_proto::queue::Queue;
use zerocopy::{FromBytes, IntoBytes};

use super::ledger::{Done, UnderWay};
use super::passed::Passed;
use super::queues::{QueueState, Slot, cpu_use};
use super::{Requester, Session};
use crate::client::Client;
use crate::memory::{BounceBuffer, Charge, OverBudget, Provider};
use crate::resolve::Importer;

/// More buffers than any queue has unless its driver asks for more (VB2_MAX_FRAME is 32, vivid has 64).
const MOST_BUFFERS: u32 = 64;

/// Why the buffers of a queue could not all be made.
pub(super) enum Unserved {
    /// The device refused what the provider made: another provider may do.
    Refused(Errno),
    /// The budget or the memory ends after this many buffers.
    Short(u32),
}

/// Why a provider did not serve a request.
enum Failure {
    /// The device does not take its memory.
    TryNext(Errno),
    /// Another provider would fare no better.
    Final(Errno),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Final(errno)
    }
}

impl Provider {
    pub(super) const fn memory(self) -> u32 {
        match self {
            Provider::DmaHeap | Provider::Exported => memory::DMABUF,
            Provider::Exporter => memory::MMAP,
        }
    }
}

impl Session {
    /// `VIDIOC_REQBUFS`
    pub(super) fn reqbufs(&self, request: &mut V4l2RequestBuffers, who: Requester) -> Result<(), Errno> {
        self.stop_watching();
        let mut state = self.lock();
        let buf_type = request.buf_type;
        state.queues.of(buf_type).core.reqbufs(request, who.help)?;
        self.under_way(&mut state, buf_type, Some(UnderWay::Remaking));
        let outcome = self.reqbufs_now(state.queues.of_mut(buf_type), request, who);
        self.under_way(&mut state, buf_type, None);
        outcome
    }

    fn reqbufs_now(
        &self,
        queue: &mut QueueState,
        request: &mut V4l2RequestBuffers,
        who: Requester,
    ) -> Result<(), Errno> {
        let capabilities = self.device.queue_capabilities(&self.node, request.buf_type)?;
        let mut device = *request;
        if request.memory != memory::USERPTR {
            self.ask(queue, &mut device, capabilities)
                .map_err(Failure::errno)?;
            if device.count > 0 {
                queue.core.passes(request.buf_type);
                queue.passed = Some(Passed::new(request.memory, device.count));
            }
        } else {
            device.flags = 0;
            self.with_provider(queue, capabilities, |queue, provider| {
                self.reqbufs_from(queue, provider, request, &mut device, capabilities, who.tid)
            })?;
        }
        request.count = device.count;
        request.capabilities = Queue::capabilities(device.capabilities, who.help);
        request.flags = device.flags;
        request.reserved = [0; 3];
        Ok(())
    }

    /// REQBUFS(USERPTR) served by `provider`; `device` is what the device has answered.
    fn reqbufs_from(
        &self,
        queue: &mut QueueState,
        provider: Provider,
        request: &V4l2RequestBuffers,
        device: &mut V4l2RequestBuffers,
        capabilities: u32,
        tid: u32,
    ) -> Result<(), Failure> {
        *device = V4l2RequestBuffers {
            memory: provider.memory(),
            flags: 0,
            ..*request
        };
        // v4l2loopback has its buffers already, and asked for one it would have no more ever again.
        let allocates = capabilities != 0;
        if provider == Provider::Exporter && request.count > 1 && allocates {
            // The driver allocates without asking our budget: one buffer tells how many we may ask for.
            device.count = 1;
            self.ask(queue, device, capabilities)?;
            let first = self.query(request.buf_type, 0);
            let affordable = first.and_then(|first| self.affordable(total_length(&first), tid));
            device.count = request.count.min(affordable.unwrap_or(0));
            if device.count == 0 {
                self.ask(queue, device, capabilities)?;
                return Err(affordable.err().unwrap_or(Errno::ENOMEM).into());
            }
        }
        self.ask(queue, device, capabilities)?;
        let Err(enough) = self.fill(queue, request.buf_type, device.count, provider, capabilities, tid)?
        else {
            return Ok(());
        };
        // As vb2 does when memory is short: fewer buffers, if the driver agrees.
        device.count = enough;
        self.ask(queue, device, capabilities)?;
        self.fill(queue, request.buf_type, device.count, provider, capabilities, tid)?
            .map_err(|_| Errno::ENOMEM.into())
    }

    /// `VIDIOC_CREATE_BUFS`
    pub(super) fn create_bufs(&self, request: &mut V4l2CreateBuffers, who: Requester) -> Result<(), Errno> {
        self.stop_watching();
        let mut state = self.lock();
        let buf_type = request.format.buf_type;
        if let Some(answer) = state.queues.of(buf_type).ledger.answer(who.call) {
            *request = V4l2CreateBuffers::read_from_bytes(answer).map_err(|_| Errno::EIO)?;
            return Ok(());
        }
        state.queues.of(buf_type).core.create_bufs(request, who.help)?;
        self.under_way(&mut state, buf_type, Some(UnderWay::Creating { buf_type }));
        let outcome = self.create_now(state.queues.of_mut(buf_type), request, who);
        state.queues.of_mut(buf_type).ledger.done = outcome.is_ok().then(|| Done {
            by: who.call.unique,
            answer: request.as_bytes().to_vec(),
        });
        self.under_way(&mut state, buf_type, None);
        outcome
    }

    fn create_now(
        &self,
        queue: &mut QueueState,
        request: &mut V4l2CreateBuffers,
        who: Requester,
    ) -> Result<(), Errno> {
        let buf_type = request.format.buf_type;
        let asked = *request;
        let mut device = asked;
        if asked.memory != memory::USERPTR || queue.passed.is_some() {
            // Of another memory than the queue's the device says EINVAL. Under USERPTR buffers the device may have dma-bufs
            // or buffers of its own, which are not the client's.
            if asked.memory != memory::USERPTR && !queue.core.is_empty() && asked.count > 0 {
                return Err(Errno::EINVAL);
            }
            self.node.create_bufs(&mut device)?;
            if asked.count > 0 {
                queue.core.passes(buf_type);
                let passed = queue.passed.get_or_insert_with(|| Passed::new(asked.memory, 0));
                passed.created(device.index.saturating_add(device.count));
            }
        } else {
            self.create_userptr(queue, &asked, &mut device, who.tid)?;
        }
        *request = V4l2CreateBuffers {
            memory: asked.memory,
            capabilities: Queue::capabilities(device.capabilities, who.help),
            ..device
        };
        Ok(())
    }

    fn create_userptr(
        &self,
        queue: &mut QueueState,
        asked: &V4l2CreateBuffers,
        device: &mut V4l2CreateBuffers,
        tid: u32,
    ) -> Result<(), Errno> {
        let buf_type = asked.format.buf_type;
        self.check_room(asked, tid)?;
        let ask = |provider: Provider| V4l2CreateBuffers {
            memory: provider.memory(),
            flags: 0,
            ..*asked
        };
        let capabilities = self.device.queue_capabilities(&self.node, buf_type)?;
        let Some(provider) = queue.provider else {
            return self.with_provider(queue, capabilities, |queue, provider| {
                *device = ask(provider);
                self.node.create_bufs(device)?;
                if asked.count == 0 {
                    return Ok(());
                }
                self.fill(queue, buf_type, device.count, provider, capabilities, tid)?
                    .map_err(|_| Errno::ENOMEM.into())
            });
        };
        if provider == Provider::Exported && asked.count > 0 {
            return Err(Errno::ENOMEM);
        }
        // Before the device is asked: what it has then made it keeps.
        let client = self.caller(tid)?;
        *device = ask(provider);
        self.node.create_bufs(device)?;
        if asked.count > 0 {
            self.extend(queue, device, provider, capabilities, client.client())?;
        }
        Ok(())
    }

    /// How many buffers of `size` bytes the budget has room for.
    fn affordable(&self, size: u64, tid: u32) -> Result<u32, Errno> {
        let process = self.caller(tid)?.client().process().as_raw();
        let available = self.device.budget().available(process);
        Ok(u32::try_from(available / size.max(1).next_multiple_of(4096)).unwrap_or(u32::MAX))
    }

    /// The buffers that are asked for, if there is room for them: the driver allocates its own without asking us, as
    /// large as the client wants them.
    fn check_room(&self, request: &V4l2CreateBuffers, tid: u32) -> Result<(), Errno> {
        // The driver cuts larger numbers down itself.
        let count = request.count.min(MOST_BUFFERS);
        let size = request.format.frame_size().unwrap_or_default();
        if count > 0 && count > self.affordable(size, tid)? {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// Tries the providers in the order of DESIGN.md until one serves.
    fn with_provider(
        &self,
        queue: &mut QueueState,
        capabilities: u32,
        mut serve: impl FnMut(&mut QueueState, Provider) -> Result<(), Failure>,
    ) -> Result<(), Errno> {
        let may_have = |capability| capabilities == 0 || capabilities & capability != 0;
        let heap = self
            .device
            .heap()
            .filter(|_| may_have(buf_cap::DMABUF))
            .map(|_| Provider::DmaHeap);
        let own = Some(Provider::Exporter).filter(|_| may_have(buf_cap::MMAP));
        let mut outcome = Err(Errno::EINVAL);
        let mut refused_heap = self.device.refuses_heap();
        for provider in heap.filter(|_| !refused_heap).into_iter().chain(own) {
            match serve(queue, provider) {
                Ok(()) => {
                    queue.importer = Some(self.importer(provider, refused_heap));
                    return Ok(());
                }
                Err(Failure::Final(errno)) => return Err(errno),
                Err(Failure::TryNext(errno)) => {
                    if provider == Provider::DmaHeap {
                        refused_heap = true;
                        self.device.heap_was_refused(errno);
                    }
                    outcome = Err(errno);
                }
            }
        }
        outcome
    }

    /// What the trial has shown of how the device imports, and its module.
    fn importer(&self, provider: Provider, refused_heap: bool) -> Importer {
        let of_module = self.device.module_importer();
        match provider {
            _ if refused_heap => Importer::Contiguous,
            // Scattered memory has been taken: behind an IOMMU nothing need be contiguous.
            Provider::DmaHeap if of_module == Some(Importer::Contiguous) => Importer::Scattered,
            _ => of_module.unwrap_or(Importer::Unknown),
        }
    }

    /// REQBUFS on the device; afterwards the state knows what the device still holds.
    fn ask(
        &self,
        queue: &mut QueueState,
        request: &mut V4l2RequestBuffers,
        capabilities: u32,
    ) -> Result<(), Failure> {
        match self.node.reqbufs(request) {
            Ok(()) => {
                queue.forget_buffers();
                Ok(())
            }
            Err(errno) => {
                // EBUSY changes nothing; a driver that fails later has freed the old buffers first
                // (videobuf2-core.c:880-900).
                let serves = !queue.core.is_empty() || queue.passed.is_some();
                if serves && !self.has_buffers(queue, request.buf_type) {
                    queue.forget_buffers();
                }
                // A driver that does not tell what it has says so here.
                if errno == Errno::EINVAL && capabilities == 0 {
                    Err(Failure::TryNext(errno))
                } else {
                    Err(errno.into())
                }
            }
        }
    }

    /// Has the device any buffer? The first may have been removed alone.
    pub(super) fn has_buffers(&self, queue: &QueueState, buf_type: u32) -> bool {
        let known = queue.slots.keys().copied();
        known
            .chain(0..MOST_BUFFERS)
            .any(|index| self.query(buf_type, index).is_ok())
    }

    /// Makes the memory behind the device's first `count` buffers and tries it. On every failure the device's buffers
    /// are freed again. The inner `Err` is the number of buffers that there is memory for.
    fn fill(
        &self,
        queue: &mut QueueState,
        buf_type: u32,
        count: u32,
        provider: Provider,
        capabilities: u32,
        tid: u32,
    ) -> Result<Result<(), u32>, Failure> {
        if count == 0 {
            return Ok(Ok(()));
        }
        let made = self.caller(tid).map(|caller| {
            let client = caller.client();
            let made = self.make(queue, buf_type, 0..count, provider, capabilities, client);
            made.and_then(|()| self.try_import(queue, buf_type))
        });
        let outcome = match made {
            Ok(Ok(())) => {
                queue.provider = Some(provider);
                tracing::debug!(device = %self.device.path().display(), count, ?provider, "buffers allocated");
                return Ok(Ok(()));
            }
            Ok(Err(Unserved::Refused(errno))) => {
                tracing::debug!(
                    device = %self.device.path().display(), %errno, ?provider,
                    "the device does not take this memory; trying the next provider"
                );
                Err(Failure::TryNext(errno))
            }
            Ok(Err(Unserved::Short(0))) => Err(Failure::Final(Errno::ENOMEM)),
            Ok(Err(Unserved::Short(enough))) => Ok(Err(enough)),
            Err(errno) => Err(Failure::Final(errno)),
        };
        queue.forget_buffers();
        let mut nothing = V4l2RequestBuffers {
            count: 0,
            buf_type,
            memory: provider.memory(),
            ..Default::default()
        };
        if let Err(errno) = self.node.reqbufs(&mut nothing) {
            tracing::warn!(device = %self.device.path().display(), %errno, "buffers could not be freed");
        }
        outcome
    }

    /// The device's own memory, which stands in the slots of `queue`, in a queue of the device that imports it.
    pub(super) fn adopt_exported(
        &self,
        queue: &mut QueueState,
        buf_type: u32,
        capabilities: u32,
    ) -> Result<(), Errno> {
        for index in queue.slots.keys() {
            let described = self.query(buf_type, *index)?;
            queue
                .core
                .allocated(*index, buf_type, &lengths(&described), capabilities);
        }
        self.try_import(queue, buf_type)
            .map_err(|unserved| match unserved {
                Unserved::Refused(errno) => errno,
                Unserved::Short(_) => Errno::ENOMEM,
            })
    }

    /// `count` buffers of the device's own, as REQBUFS would make them.
    pub(super) fn own_again(
        &self,
        queue: &mut QueueState,
        buf_type: u32,
        count: u32,
        tid: u32,
    ) -> Result<(), Errno> {
        let request = V4l2RequestBuffers {
            count,
            buf_type,
            memory: memory::USERPTR,
            ..Default::default()
        };
        let capabilities = self.device.queue_capabilities(&self.node, buf_type)?;
        let mut device = request;
        self.reqbufs_from(
            queue,
            Provider::Exporter,
            &request,
            &mut device,
            capabilities,
            tid,
        )
        .map_err(Failure::errno)
    }

    /// Further buffers for a queue that has some: no trial, others may be queued. Those that cannot be served exist in
    /// the device, which cannot take them back; their QBUF says ENOMEM.
    fn extend(
        &self,
        queue: &mut QueueState,
        created: &V4l2CreateBuffers,
        provider: Provider,
        capabilities: u32,
        client: &Client,
    ) -> Result<(), Errno> {
        let end = created.index.saturating_add(created.count);
        let buf_type = created.format.buf_type;
        let made = self.make(
            queue,
            buf_type,
            created.index..end,
            provider,
            capabilities,
            client,
        );
        let errno = match made {
            Ok(()) => return Ok(()),
            Err(Unserved::Refused(errno)) => errno,
            Err(Unserved::Short(_)) => Errno::ENOMEM,
        };
        for index in created.index..end {
            if !queue.core.has(index) {
                let described = self.query(buf_type, index);
                let lengths = described.map_or_else(|_| vec![u32::MAX], |described| lengths(&described));
                queue.core.allocated(index, buf_type, &lengths, capabilities);
                queue.slots.insert(index, Slot::default());
            }
        }
        Err(errno)
    }

    pub(super) fn query(&self, buf_type: u32, index: u32) -> Result<PlanarBuffer, Errno> {
        let mut buffer = PlanarBuffer::blank(buf_type, index);
        self.node.buffer_ioctl(QueueOp::Querybuf, &mut buffer)?;
        Ok(buffer)
    }

    fn make(
        &self,
        queue: &mut QueueState,
        buf_type: u32,
        indices: std::ops::Range<u32>,
        provider: Provider,
        capabilities: u32,
        client: &Client,
    ) -> Result<(), Unserved> {
        for index in indices {
            let described = self.query(buf_type, index).map_err(Unserved::Refused)?;
            let mut planes = Vec::new();
            for plane in described.described() {
                let charge = self.charge(client, plane.length).map_err(|over| {
                    if self.device.may_complain() {
                        tracing::warn!(device = %self.device.path().display(), client_pid = %client.process(), "{over}");
                    }
                    Unserved::Short(index)
                })?;
                planes.push(self.make_plane(plane, buf_type, provider, charge, index)?);
            }
            let lengths = match provider {
                Provider::DmaHeap | Provider::Exported => lengths(&described),
                Provider::Exporter => least_lengths(&described, self.node.frame_size(buf_type)),
            };
            queue.core.allocated(index, buf_type, &lengths, capabilities);
            let slot = Slot {
                planes: Some(Arc::new(planes)),
                ..Slot::default()
            };
            queue.slots.insert(index, slot);
        }
        Ok(())
    }

    fn make_plane(
        &self,
        plane: &V4l2Plane,
        buf_type: u32,
        provider: Provider,
        charge: Charge,
        index: u32,
    ) -> Result<BounceBuffer, Unserved> {
        let cpu = cpu_use(buf_type);
        match (provider, self.device.heap()) {
            (Provider::DmaHeap, Some(heap)) => {
                let made = heap.allocate(plane.length, cpu, charge).map_err(|error| {
                    tracing::warn!(device = %self.device.path().display(), %error, "no memory for a buffer");
                    Unserved::Short(index)
                })?;
                if let Some(dma_buf) = made.dma_buf() {
                    self.know_again(dma_buf);
                }
                Ok(made)
            }
            (Provider::DmaHeap, None) => Err(Unserved::Refused(Errno::EINVAL)),
            // What the device can use it makes only in a queue of its own buffers, which this no longer is.
            (Provider::Exported, _) => Err(Unserved::Refused(Errno::ENOMEM)),
            (Provider::Exporter, _) => {
                let offset = u32::try_from(plane.m & 0xffff_ffff).unwrap_or_default();
                let mapped = self.node.map(offset, plane.length, cpu);
                mapped
                    .map(|mapping| BounceBuffer::from_device(mapping, charge))
                    .map_err(|error| {
                        tracing::warn!(device = %self.device.path().display(), %error, "a buffer cannot be mapped");
                        Unserved::Refused(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
                    })
            }
        }
    }

    /// Behind a client's pointer this dma-buf will be found to be ours.
    pub(super) fn know_again(&self, dma_buf: &Arc<OwnedFd>) {
        if let Err(error) = self.device.own().add(dma_buf) {
            tracing::debug!(%error, "a buffer of ours will not be known again");
        }
    }

    /// Other memory for buffer `index`, whose own is lent.
    pub(super) fn another_slot(
        &self,
        queue: &mut QueueState,
        buf_type: u32,
        index: u32,
        client: &Client,
    ) -> Result<(), Errno> {
        let provider = queue.provider.ok_or(Errno::ENOMEM)?;
        let described = self.query(buf_type, index)?;
        let there = queue.slots.get(&index).and_then(|slot| slot.planes.clone());
        let there = there.ok_or(Errno::ENOMEM)?;
        let mut planes = Vec::new();
        for (plane, there) in described.described().iter().zip(there.iter()) {
            // The device forgets how long a plane is when it refuses a dma-buf (videobuf2-core.c, `__prepare_dmabuf`).
            let length = u32::try_from(there.size()).map_err(|_| Errno::ENOMEM)?;
            let plane = V4l2Plane { length, ..*plane };
            let charge = self.charge(client, length).map_err(|_| Errno::ENOMEM)?;
            let made = self.make_plane(&plane, buf_type, provider, charge, index);
            planes.push(made.map_err(|_| Errno::ENOMEM)?);
        }
        if let Some(slot) = queue.slots.get_mut(&index) {
            slot.planes = Some(Arc::new(planes));
        }
        Ok(())
    }

    fn charge(&self, client: &Client, length: u32) -> Result<Charge, OverBudget> {
        let bytes = u64::from(length).next_multiple_of(4096);
        self.device.budget().charge(client.process().as_raw(), bytes)
    }
}

/// What the planes of a buffer need.
fn lengths(described: &PlanarBuffer) -> Vec<u32> {
    described.described().iter().map(|plane| plane.length).collect()
}

/// What the client's memory must have room for. A vb2 driver tells the length that it needs; another (v4l2loopback) that
/// of the whole pages of its MMAP buffer, where programs allocate the bytes of a frame.
fn least_lengths(described: &PlanarBuffer, frame: Option<u64>) -> Vec<u32> {
    let mut lengths = lengths(described);
    if let ([length], Some(frame)) = (&mut lengths[..], frame)
        && frame.checked_next_multiple_of(4096) == Some(u64::from(*length))
        && let Ok(frame) = u32::try_from(frame)
    {
        *length = frame;
    }
    lengths
}

fn total_length(described: &PlanarBuffer) -> u64 {
    lengths(described).into_iter().map(u64::from).sum()
}

impl Failure {
    fn errno(self) -> Errno {
        match self {
            Failure::TryNext(errno) | Failure::Final(errno) => errno,
        }
    }
}
