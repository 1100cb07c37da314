//! REQBUFS and CREATE_BUFS: which memory the device's queue gets.
//!
//! A driver does not say what it can import, so the buffers are tried before the client hears of success: each heap
//! buffer is given to the device once (PREPARE_BUF, or QBUF where a driver has no PREPARE_BUF) and taken back by
//! STREAMOFF. A dma-contig queue without an IOMMU refuses scattered memory there (EFAULT), and the device's own MMAP
//! buffers serve instead. Nothing is streaming or queued at that time, so nobody can notice.

use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    V4l2Buffer, V4l2CreateBuffers, V4l2RequestBuffers, buf_cap, buf_type, memory,
};
use vidcompat_proto::ioctl::{QueueOp, queue_row};
use vidcompat_proto::queue::Queue;

use super::{Session, Slot, State};
use crate::client::Client;
use crate::memory::{BounceBuffer, Charge, OverBudget, Provider};

/// More buffers than any queue has unless its driver asks for more (VB2_MAX_FRAME is 32, vivid has 64).
const MOST_BUFFERS: u32 = 64;

/// Why the buffers of a queue could not all be made.
enum Unserved {
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
    const fn memory(self) -> u32 {
        match self {
            Provider::DmaHeap => memory::DMABUF,
            Provider::Exporter => memory::MMAP,
        }
    }
}

impl Session {
    /// `VIDIOC_REQBUFS`
    pub(super) fn reqbufs(&self, request: &mut V4l2RequestBuffers, tid: u32) -> Result<(), Errno> {
        self.stop_watching();
        let mut state = self.lock();
        state.queue.reqbufs(request)?;
        let capabilities = self.device.queue_capabilities(&self.node, request.buf_type)?;
        let mut device = *request;
        self.with_provider(&mut state, capabilities, |state, provider| {
            device = V4l2RequestBuffers {
                memory: provider.memory(),
                flags: 0,
                ..*request
            };
            if provider == Provider::Exporter && request.count > 1 {
                // The driver allocates without asking our budget: one buffer tells how many we may ask for.
                device.count = 1;
                self.ask(state, &mut device, capabilities)?;
                let size = self.query(request.buf_type, 0)?.length;
                device = V4l2RequestBuffers {
                    count: request.count.min(self.affordable(size, tid)?),
                    ..device
                };
                if device.count == 0 {
                    self.ask(state, &mut device, capabilities)?;
                    return Err(Errno::ENOMEM.into());
                }
            }
            self.ask(state, &mut device, capabilities)?;
            let Err(enough) = self.fill(state, request.buf_type, device.count, provider, tid)? else {
                return Ok(());
            };
            // As vb2 does when memory is short: fewer buffers, if the driver agrees.
            device = V4l2RequestBuffers {
                count: enough,
                ..device
            };
            self.ask(state, &mut device, capabilities)?;
            self.fill(state, request.buf_type, device.count, provider, tid)?
                .map_err(|_| Errno::ENOMEM.into())
        })?;
        request.count = device.count;
        request.capabilities = Queue::capabilities(device.capabilities);
        request.flags = 0;
        request.reserved = [0; 3];
        Ok(())
    }

    /// `VIDIOC_CREATE_BUFS`
    pub(super) fn create_bufs(&self, request: &mut V4l2CreateBuffers, tid: u32) -> Result<(), Errno> {
        self.stop_watching();
        let mut state = self.lock();
        state.queue.create_bufs(request)?;
        let buf_type = request.format.buf_type;
        let asked = *request;
        let mut device = asked;
        self.check_room(&asked, tid)?;
        let ask = |provider: Provider| V4l2CreateBuffers {
            memory: provider.memory(),
            flags: 0,
            ..asked
        };
        match state.provider() {
            Some(provider) => {
                // Before the device is asked: what it has then made it keeps.
                let client = self.caller(tid)?;
                device = ask(provider);
                self.node.create_bufs(&mut device)?;
                if asked.count > 0 {
                    self.extend(&mut state, &device, provider, client.client())?;
                }
            }
            None => {
                let capabilities = self.device.queue_capabilities(&self.node, buf_type)?;
                self.with_provider(&mut state, capabilities, |state, provider| {
                    device = ask(provider);
                    self.node.create_bufs(&mut device)?;
                    if asked.count == 0 {
                        return Ok(());
                    }
                    self.fill(state, buf_type, device.count, provider, tid)?
                        .map_err(|_| Errno::ENOMEM.into())
                })?;
            }
        }
        *request = V4l2CreateBuffers {
            memory: memory::USERPTR,
            capabilities: Queue::capabilities(device.capabilities),
            ..device
        };
        Ok(())
    }

    /// How many buffers of `size` bytes the budget has room for.
    fn affordable(&self, size: u32, tid: u32) -> Result<u32, Errno> {
        let process = self.caller(tid)?.client().process().as_raw();
        let available = self.device.budget().available(process);
        Ok(u32::try_from(available / u64::from(size.max(1)).next_multiple_of(4096)).unwrap_or(u32::MAX))
    }

    /// The buffers that are asked for, if there is room for them: the driver allocates its own without asking us. Only
    /// a video format says how large they will be.
    fn check_room(&self, request: &V4l2CreateBuffers, tid: u32) -> Result<(), Errno> {
        let told = request.format.buf_type == buf_type::VIDEO_CAPTURE && request.count > 0;
        // The driver cuts larger numbers down itself.
        let count = request.count.min(MOST_BUFFERS);
        if told && count > self.affordable(request.format.pix_sizeimage(), tid)? {
            return Err(Errno::ENOMEM);
        }
        Ok(())
    }

    /// Tries the providers in the order of DESIGN.md until one serves.
    fn with_provider(
        &self,
        state: &mut State,
        capabilities: u32,
        mut serve: impl FnMut(&mut State, Provider) -> Result<(), Failure>,
    ) -> Result<(), Errno> {
        let may_have = |capability| capabilities == 0 || capabilities & capability != 0;
        let heap = self
            .device
            .heap()
            .filter(|_| may_have(buf_cap::DMABUF))
            .map(|_| Provider::DmaHeap);
        let own = Some(Provider::Exporter).filter(|_| may_have(buf_cap::MMAP));
        let mut outcome = Err(Errno::EINVAL);
        for provider in heap.into_iter().chain(own) {
            match serve(state, provider) {
                Ok(()) => return Ok(()),
                Err(Failure::Final(errno)) => return Err(errno),
                Err(Failure::TryNext(errno)) => outcome = Err(errno),
            }
        }
        outcome
    }

    /// REQBUFS on the device; afterwards the state knows what the device still holds.
    fn ask(
        &self,
        state: &mut State,
        request: &mut V4l2RequestBuffers,
        capabilities: u32,
    ) -> Result<(), Failure> {
        match self.node.reqbufs(request) {
            Ok(()) => {
                state.forget_buffers();
                Ok(())
            }
            Err(errno) => {
                // EBUSY changes nothing; a driver that fails later has freed the old buffers first
                // (videobuf2-core.c:880-900).
                let mut first = V4l2Buffer {
                    buf_type: request.buf_type,
                    ..V4l2Buffer::default()
                };
                if self.node.buffer_ioctl(QueueOp::Querybuf, &mut first).is_err() {
                    state.forget_buffers();
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

    /// Makes the memory behind the device's first `count` buffers and tries it. On every failure the device's buffers
    /// are freed again. The inner `Err` is the number of buffers that there is memory for.
    fn fill(
        &self,
        state: &mut State,
        buf_type: u32,
        count: u32,
        provider: Provider,
        tid: u32,
    ) -> Result<Result<(), u32>, Failure> {
        if count == 0 {
            return Ok(Ok(()));
        }
        let made = self.caller(tid).map(|caller| {
            let client = caller.client();
            let made = self.make(state, buf_type, 0..count, provider, client);
            made.and_then(|()| self.try_import(state, buf_type))
        });
        let outcome = match made {
            Ok(Ok(())) => {
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
        state.forget_buffers();
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

    /// Further buffers for a queue that has some: no trial, others may be queued. Those that cannot be served exist in
    /// the device, which cannot take them back; their QBUF says ENOMEM.
    fn extend(
        &self,
        state: &mut State,
        created: &V4l2CreateBuffers,
        provider: Provider,
        client: &Client,
    ) -> Result<(), Errno> {
        let end = created.index.saturating_add(created.count);
        let buf_type = created.format.buf_type;
        let errno = match self.make(state, buf_type, created.index..end, provider, client) {
            Ok(()) => return Ok(()),
            Err(Unserved::Refused(errno)) => errno,
            Err(Unserved::Short(_)) => Errno::ENOMEM,
        };
        for index in state.queue.len()..end {
            let length = self
                .query(buf_type, index)
                .map_or(u32::MAX, |described| described.length);
            state.queue.allocated(buf_type, length);
            state.slots.push(Slot::default());
        }
        Err(errno)
    }

    fn query(&self, buf_type: u32, index: u32) -> Result<V4l2Buffer, Errno> {
        let mut buffer = V4l2Buffer {
            index,
            buf_type,
            ..V4l2Buffer::default()
        };
        self.node.buffer_ioctl(QueueOp::Querybuf, &mut buffer)?;
        Ok(buffer)
    }

    fn make(
        &self,
        state: &mut State,
        buf_type: u32,
        indices: std::ops::Range<u32>,
        provider: Provider,
        client: &Client,
    ) -> Result<(), Unserved> {
        for index in indices {
            let described = self.query(buf_type, index).map_err(Unserved::Refused)?;
            let short = Unserved::Short(index);
            let charge = match self.charge(client, described.length) {
                Ok(charge) => charge,
                Err(over) => {
                    if self.device.may_complain() {
                        tracing::warn!(device = %self.device.path().display(), pid = %client.process(), "{over}");
                    }
                    return Err(short);
                }
            };
            let made = match (provider, self.device.heap()) {
                (Provider::DmaHeap, Some(heap)) => heap.allocate(described.length, charge).map_err(|error| {
                    tracing::warn!(device = %self.device.path().display(), %error, "no memory for a buffer");
                    short
                }),
                (Provider::DmaHeap, None) => Err(Unserved::Refused(Errno::EINVAL)),
                (Provider::Exporter, _) => {
                    let offset = u32::try_from(described.m & 0xffff_ffff).unwrap_or_default();
                    let mapped = self.node.map(offset, described.length);
                    mapped.map(|mapping| BounceBuffer::from_device(mapping, charge)).map_err(|error| {
                        tracing::warn!(device = %self.device.path().display(), %error, "a buffer cannot be mapped");
                        Unserved::Refused(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
                    })
                }
            }?;
            state.queue.allocated(buf_type, described.length);
            state.slots.push(Slot {
                buffer: Some(Arc::new(made)),
                client: None,
            });
        }
        Ok(())
    }

    fn charge(&self, client: &Client, length: u32) -> Result<Charge, OverBudget> {
        let bytes = u64::from(length).next_multiple_of(4096);
        self.device.budget().charge(client.process().as_raw(), bytes)
    }

    /// Gives each imported buffer to the device once and takes all back.
    fn try_import(&self, state: &State, buf_type: u32) -> Result<(), Unserved> {
        let prepare = if self.device.knows(&self.node, queue_row(QueueOp::PrepareBuf)) {
            QueueOp::PrepareBuf
        } else {
            QueueOp::Qbuf
        };
        let mut tried = false;
        for (index, slot) in (0..).zip(&state.slots) {
            let imported = slot.buffer.as_ref().filter(|buffer| buffer.dma_buf().is_some());
            let Some(buffer) = imported else { continue };
            let blank = V4l2Buffer {
                index,
                buf_type,
                ..V4l2Buffer::default()
            };
            let mut given = Queue::for_device(&blank, buffer.backing());
            self.node
                .buffer_ioctl(prepare, &mut given)
                .map_err(Unserved::Refused)?;
            tried = true;
        }
        if tried {
            self.node
                .stream(QueueOp::Streamoff, buf_type)
                .map_err(Unserved::Refused)?;
        }
        Ok(())
    }
}

impl State {
    fn forget_buffers(&mut self) {
        self.queue.freed();
        self.slots.clear();
    }

    /// Who made the buffers that there are.
    fn provider(&self) -> Option<Provider> {
        let buffer = self.slots.iter().find_map(|slot| slot.buffer.as_ref())?;
        Some(if buffer.dma_buf().is_some() {
            Provider::DmaHeap
        } else {
            Provider::Exporter
        })
    }
}
