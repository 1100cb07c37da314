//! The buffer-queue core: a USERPTR queue as the client sees it, over a DMABUF or MMAP queue as the device has it.
//!
//! The core does no I/O. The contract, which the session keeps and the property test plays:
//!
//! 1. A client's call is first shown to the core ([`Queue::qbuf`], [`Queue::dqbuf`], ...). An `Err` is the
//!    answer, the very errno that vb2 gives for these bits in this state. An `Ok` says what to do next.
//! 2. Then the world is asked (the client's memory, the real device), and what came of it is told to the core
//!    ([`Queue::acquired`], [`Queue::queued`], [`Queue::dequeued`], ...) *before* the next call is shown. vb2 holds
//!    the queue's lock for the same span.
//! 3. The struct that the client gets back is the device's, corrected by [`Queue::reply`].
//!
//! The one thing that happens outside the lock is the copy to the client after [`Queue::dequeued`]: by then the
//! buffer is the client's again, exactly as in vb2, where DQBUF is that point.
//!
//! Errnos and their order follow `drivers/media/common/videobuf2/videobuf2-{core,v4l2}.c` of Linux 6.12; what a
//! driver alone can know (a wrong buffer type, another owner, a fatal error) is left to the device.

mod buffer;

use std::collections::BTreeMap;

use crate::Errno;
use crate::abi::v4l2::{
    PlanarBuffer, V4l2Buffer, V4l2CreateBuffers, V4l2Plane, V4l2RemoveBuffers, V4l2RequestBuffers, buf_cap,
    buf_flag, memory,
};
use buffer::{Buffer, State};

/// Names the process whose memory a pointer is in. The core only compares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct ClientKey(pub u64);

/// A stretch of a client's memory: a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Claim {
    /// Whose memory.
    pub client: ClientKey,
    /// `m.userptr`
    pub client_addr: u64,
    /// `length`, in bytes, at least the size that the driver needs.
    pub length: u32,
}

/// What a client has beside its CUSE node, which can neither be mapped nor return an fd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    /// Nothing.
    None,
    /// The client shim, in this very call.
    Shim,
}

impl Help {
    fn offers(self, wanted: u32) -> Result<(), Errno> {
        match wanted {
            memory::USERPTR | memory::DMABUF => Ok(()),
            memory::MMAP if self == Self::Shim => Ok(()),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// What a QBUF or PREPARE_BUF needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This file has no buffers: the device knows why that is an error (another owner, file I/O, a wrong type).
    /// It gets the struct without pointer or fd.
    AskDevice,
    /// Look at the client's memory, then [`Queue::acquired`] or [`Queue::acquire_failed`].
    Acquire(Acquire),
    /// The memory, plane by plane, is known: give the buffer to the device.
    Ready(Vec<Claim>),
    /// The same of a buffer that is prepared: the device holds the memory that it was given then, and looks at none.
    Prepared(Vec<Claim>),
}

/// The memory that a QBUF or PREPARE_BUF brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquire {
    /// That of all planes.
    pub all: Vec<Claim>,
    /// What of it is new and must be looked at, in this order.
    pub new: Vec<Claim>,
    /// If all of that is good: what a later plane says.
    pub then: Result<(), Errno>,
}

/// Where the bytes of a plane of a dequeued buffer belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The memory that was queued.
    pub claim: Claim,
    /// How many bytes, from the start: never more than `claim.length`.
    pub bytes: u32,
}

/// The memory that stands behind a plane on the device's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// A dma-buf: its fd in this process, its size in bytes.
    DmaBuf {
        /// fd
        fd: i32,
        /// bytes
        length: u32,
    },
    /// The plane of the device's own buffer of the same index.
    Mmap,
}

impl Backing {
    /// `buffer` with our memory, plane by plane, in place of the client's: no pointer, fd or request of the client's is
    /// left.
    #[must_use]
    pub fn give(backing: &[Self], buffer: &PlanarBuffer) -> PlanarBuffer {
        let mut device = Queue::without_references(buffer);
        for (plane, backing) in device.planes.iter_mut().zip(backing) {
            (device.head.memory, plane.m, plane.length) = match backing {
                Backing::DmaBuf { fd, length } => (memory::DMABUF, u64::from(fd.cast_unsigned()), *length),
                Backing::Mmap => (memory::MMAP, 0, 0),
            };
        }
        device
    }
}

/// One queue of one open file: what it captures, or what it puts out.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
pub struct Queue {
    buf_type: u32,
    /// Sparse where REMOVE_BUFS has made holes.
    buffers: BTreeMap<u32, Buffer>,
    /// The device has the queue as the client sees it: then `buffers` is empty.
    passed: bool,
    /// Who waits in a daemon that ends asks the next one again.
    #[cfg_attr(feature = "record", serde(skip))]
    waiting: bool,
    streaming: bool,
    /// Counts what was queued.
    turns: u64,
}

impl Queue {
    /// A file that has asked for nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of USERPTR buffers.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.buffers.len()).unwrap_or(u32::MAX)
    }

    /// Has this file no USERPTR buffers?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Is there a USERPTR buffer with this index?
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        self.buffers.contains_key(&index)
    }

    /// Has STREAMON succeeded since the last STREAMOFF?
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.streaming
    }

    /// Are all buffers the client's, none prepared, none awaited?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let is_free = |buffer: &Buffer| buffer.state == State::Dequeued && !buffer.prepared;
        !self.streaming && !self.waiting && self.buffers.values().all(is_free)
    }

    /// Type of the buffers; meaningful while there are any.
    #[must_use]
    pub fn buf_type(&self) -> u32 {
        self.buf_type
    }

    /// Buffers that are with the device or wait in it, done.
    pub fn queued_buffers(&self) -> impl Iterator<Item = u32> + '_ {
        self.buffers
            .iter()
            .filter(|(_, buffer)| buffer.state == State::Queued)
            .map(|(index, _)| *index)
    }

    /// The clients' memory that buffers are bound to, one entry per plane.
    pub fn claims(&self) -> impl Iterator<Item = Claim> + '_ {
        self.buffers
            .values()
            .flat_map(|buffer| buffer.claims().unwrap_or_default())
    }

    /// `VIDIOC_REQBUFS`. `Ok`: ask the device, then [`Queue::freed`] and [`Queue::allocated`].
    ///
    /// # Errors
    /// `EINVAL` for memory that we do not offer; `EBUSY` while a thread waits in
    /// DQBUF (videobuf2-core.c:872).
    pub fn reqbufs(&self, request: &V4l2RequestBuffers, help: Help) -> Result<(), Errno> {
        help.offers(request.memory)?;
        if self.waiting && request.count > 0 && request.buf_type == self.buf_type {
            Err(Errno::EBUSY)
        } else {
            Ok(())
        }
    }

    /// `VIDIOC_CREATE_BUFS`. `Ok`: ask the device, then [`Queue::allocated`] for the new buffers.
    ///
    /// # Errors
    /// As [`Queue::reqbufs`]; `EBUSY` only for the first buffers of the queue (videobuf2-core.c:1065).
    pub fn create_bufs(&self, request: &V4l2CreateBuffers, help: Help) -> Result<(), Errno> {
        help.offers(request.memory)?;
        if self.waiting
            && self.is_empty()
            && !self.passed
            && request.count > 0
            && request.format.buf_type == self.buf_type
        {
            Err(Errno::EBUSY)
        } else {
            Ok(())
        }
    }

    /// The device has freed all buffers of this file.
    pub fn freed(&mut self) {
        self.buffers.clear();
        self.passed = false;
        self.streaming = false;
    }

    /// The device has removed what `request` names.
    pub fn removed(&mut self, request: &V4l2RemoveBuffers) {
        let end = request.index.saturating_add(request.count);
        self.buffers
            .retain(|index, _| !(request.index..end).contains(index));
    }

    /// The device has made buffer `index` of `buf_type`, whose planes need `min_lengths` bytes. `capabilities` of the
    /// queue (`V4L2_BUF_CAP_*`) say which flags it knows.
    pub fn allocated(&mut self, index: u32, buf_type: u32, min_lengths: &[u32], capabilities: u32) {
        self.buf_type = buf_type;
        let holds_capture = capabilities & buf_cap::M2M_HOLD_CAPTURE_BUF != 0;
        self.buffers
            .insert(index, Buffer::new(buf_type, min_lengths, holds_capture));
    }

    /// The device serves the client's own dma-bufs, or MMAP buffers, of which the core knows nothing but the type.
    pub fn passes(&mut self, buf_type: u32) {
        self.buf_type = buf_type;
        self.passed = true;
    }

    /// The last buffer of such a queue has been removed.
    pub fn passes_no_more(&mut self) {
        self.passed = false;
    }

    /// `VIDIOC_QBUF` by `client`.
    ///
    /// # Errors
    /// `EINVAL`: no such buffer, wrong type or memory, too few planes, not dequeued, too short, a payload beyond the
    /// plane. `EBADR`: a request, which we do not carry. `EOVERFLOW`: a range that wraps around.
    pub fn qbuf(&mut self, buffer: &PlanarBuffer, client: ClientKey) -> Result<Next, Errno> {
        if self.is_empty() {
            return Ok(Next::AskDevice);
        }
        let entry = self.checked(buffer)?;
        let wants_request = buffer.head.flags & buf_flag::REQUEST_FD != 0;
        if wants_request && entry.state != State::Dequeued {
            return Err(Errno::EINVAL);
        }
        entry.fill(buffer)?;
        if wants_request {
            return Err(Errno::EBADR);
        }
        match entry.state {
            State::Queued => Err(Errno::EINVAL),
            State::Dequeued if entry.prepared => Ok(Next::Prepared(entry.claims().unwrap_or_default())),
            State::Dequeued => entry.prepare(buffer, client),
        }
    }

    /// `VIDIOC_PREPARE_BUF` by `client`.
    ///
    /// # Errors
    /// As [`Queue::qbuf`], but a request is `EINVAL`, and so is a buffer that is prepared already.
    pub fn prepare_buf(&mut self, buffer: &PlanarBuffer, client: ClientKey) -> Result<Next, Errno> {
        if self.is_empty() {
            return Ok(Next::AskDevice);
        }
        if buffer.head.flags & buf_flag::REQUEST_FD != 0 {
            return Err(Errno::EINVAL);
        }
        let entry = self.checked(buffer)?;
        entry.fill(buffer)?;
        if entry.state != State::Dequeued || entry.prepared {
            return Err(Errno::EINVAL);
        }
        entry.prepare(buffer, client)
    }

    /// `vb2_get_buffer` and the checks of type, memory and planes, in vb2's order.
    fn checked(&mut self, buffer: &PlanarBuffer) -> Result<&mut Buffer, Errno> {
        let head = &buffer.head;
        let buf_type = self.buf_type;
        let entry = self.buffers.get_mut(&head.index).ok_or(Errno::EINVAL)?;
        if head.buf_type != buf_type || head.memory != memory::USERPTR {
            return Err(Errno::EINVAL);
        }
        entry.verify_planes(buffer)?;
        Ok(entry)
    }

    /// The client's memory is good: what [`Next::Acquire`] named now belongs to buffer `index`.
    pub fn acquired(&mut self, index: u32, claims: &[Claim]) {
        if let Some(entry) = self.buffers.get_mut(&index) {
            entry.acquired(claims);
        }
    }

    /// The client's memory is no good, after `good` new planes that were; the call is answered with the errno that
    /// says why.
    pub fn acquire_failed(&mut self, index: u32, good: usize) {
        // The memory of a prepared buffer is bound: it may be looked at again, but not let go.
        if let Some(entry) = self.buffers.get_mut(&index).filter(|entry| !entry.prepared) {
            entry.acquire_failed(good);
        }
    }

    /// The device has taken buffer `index` by QBUF.
    pub fn queued(&mut self, index: u32) {
        if let Some(entry) = self.buffers.get_mut(&index) {
            entry.state = State::Queued;
            entry.turn = self.turns;
            self.turns += 1;
            entry.prepared = true;
            entry.given();
        }
    }

    /// The device has taken buffer `index` by PREPARE_BUF.
    pub fn prepared(&mut self, index: u32) {
        if let Some(entry) = self.buffers.get_mut(&index) {
            entry.prepared = true;
            entry.given();
        }
    }

    /// The device has refused buffer `index`, which it describes `now`: a driver that refuses to start streaming
    /// leaves the buffer prepared (videobuf2-core.c:1884), one that refuses the buffer does not.
    pub fn refused(&mut self, index: u32, now: &PlanarBuffer) {
        if let Some(entry) = self.buffers.get_mut(&index) {
            if now.head.flags & buf_flag::PREPARED != 0 {
                entry.prepared = true;
                entry.given();
            } else {
                entry.refused(now);
            }
        }
    }

    /// `VIDIOC_DQBUF`. `Ok`: ask the device, without waiting.
    ///
    /// # Errors
    /// `EINVAL`: another type than the queue's. `EBUSY`: another thread waits already (videobuf2-core.c:2002).
    pub fn dqbuf(&self, buf_type: u32) -> Result<(), Errno> {
        if (self.waiting || !self.is_empty()) && buf_type != self.buf_type {
            Err(Errno::EINVAL)
        } else if self.waiting {
            Err(Errno::EBUSY)
        } else {
            Ok(())
        }
    }

    /// A DQBUF sleeps, or no longer does.
    pub fn set_waiting(&mut self, waiting: bool) {
        self.waiting = waiting;
    }

    /// The device has given back `buffer`. A vb2 driver gives what was with it; another (v4l2loopback) any buffer of
    /// its own: then `buffer` gets the index of the client's that has waited longest. `None`: the client waits with
    /// none.
    pub fn dequeued(&mut self, buffer: &mut PlanarBuffer) -> Option<Vec<Delivery>> {
        let queued = |buffer: &&Buffer| buffer.state == State::Queued;
        let index = match self.buffers.get(&buffer.head.index).filter(queued) {
            Some(_) => buffer.head.index,
            None => self.longest_queued()?,
        };
        let entry = self.buffers.get_mut(&index)?;
        let deliveries = entry.deliveries(buffer)?;
        entry.back();
        buffer.head.index = index;
        Some(deliveries)
    }

    /// Where the bytes of a buffer belong that was dequeued already, and is the client's: as [`Queue::dequeued`] said it.
    /// `None`: there is no such buffer, or it has no memory.
    #[must_use]
    pub fn deliveries(&self, buffer: &PlanarBuffer) -> Option<Vec<Delivery>> {
        self.buffers.get(&buffer.head.index)?.deliveries(buffer)
    }

    /// The buffers' indices.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.buffers.keys().copied()
    }

    fn longest_queued(&self) -> Option<u32> {
        let queued = self
            .buffers
            .iter()
            .filter(|(_, buffer)| buffer.state == State::Queued);
        queued
            .min_by_key(|(_, buffer)| buffer.turn)
            .map(|(index, _)| *index)
    }

    /// STREAMON has succeeded.
    pub fn streamon(&mut self) {
        self.streaming = true;
    }

    /// STREAMOFF has succeeded: every buffer is the client's again (videobuf2-core.c:2186).
    pub fn streamoff(&mut self) {
        self.streaming = false;
        for entry in self.buffers.values_mut() {
            entry.back();
        }
    }

    /// What the device gets for a client's QBUF or PREPARE_BUF of a buffer of this file: the client's struct, our
    /// memory plane by plane, nothing of the client's that the kernel would look up in this process.
    #[must_use]
    pub fn for_device(&mut self, buffer: &PlanarBuffer, backing: &[Backing]) -> PlanarBuffer {
        match self.buffers.get_mut(&buffer.head.index) {
            Some(entry) => entry.for_device(buffer, backing),
            None => Self::without_references(buffer),
        }
    }

    /// A client's struct without pointer, fd or request. A USERPTR queue has no cache hints either
    /// (`vb2_queue_allows_cache_hints`), whatever the device's MMAP queue would do with them.
    #[must_use]
    pub fn without_references(buffer: &PlanarBuffer) -> PlanarBuffer {
        let dropped = buf_flag::REQUEST_FD | buf_flag::NO_CACHE_CLEAN | buf_flag::NO_CACHE_INVALIDATE;
        PlanarBuffer {
            head: V4l2Buffer {
                m: 0,
                request_fd: 0,
                flags: buffer.head.flags & !dropped,
                ..buffer.head
            },
            planes: buffer
                .planes
                .iter()
                .map(|plane| V4l2Plane { m: 0, ..*plane })
                .collect(),
        }
    }

    /// The device's answer to `asked` about a buffer of this file as the client must see it: its own pointers and
    /// lengths, and nothing of how the device was served.
    #[must_use]
    pub fn reply(&self, device: &PlanarBuffer, asked: &PlanarBuffer) -> PlanarBuffer {
        let mut reply = PlanarBuffer {
            head: V4l2Buffer {
                memory: memory::USERPTR,
                m: asked.head.m,
                flags: device.head.flags & !buf_flag::MAPPED,
                request_fd: 0,
                ..device.head
            },
            planes: Self::planes_of(device, asked),
        };
        if let Some(entry) = self.buffers.get(&device.head.index) {
            entry.correct(&mut reply);
        }
        reply
    }

    /// The planes that the device has described; where the client's array is longer, its own rest.
    #[must_use]
    pub fn planes_of(device: &PlanarBuffer, asked: &PlanarBuffer) -> Vec<V4l2Plane> {
        let described = device.described();
        let rest = asked.planes.iter().skip(described.len());
        described.iter().chain(rest).copied().collect()
    }

    /// The capabilities of a queue as we serve it: USERPTR always, of the rest only what a client can use here.
    #[must_use]
    pub fn capabilities(device: u32, help: Help) -> u32 {
        let not_ours = match help {
            Help::None => buf_cap::MMAP | buf_cap::REQUESTS | buf_cap::MMAP_CACHE_HINTS,
            // Requests are for the device's own buffers only, but a queue has the same capabilities for every memory.
            Help::Shim => 0,
        };
        (device & !not_ours) | buf_cap::USERPTR
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientKey, Next, Queue};
    use crate::abi::v4l2::{PlanarBuffer, buf_type, memory};

    /// Queues buffer `index` with memory at `client_addr`.
    fn queue(core: &mut Queue, index: u32, client_addr: u64) {
        let mut buffer = PlanarBuffer::blank(buf_type::VIDEO_CAPTURE, index);
        buffer.head.memory = memory::USERPTR;
        (buffer.planes[0].m, buffer.planes[0].length) = (client_addr, 4096);
        let Ok(Next::Acquire(acquire)) = core.qbuf(&buffer, ClientKey(1)) else {
            panic!("new memory");
        };
        core.acquired(index, &acquire.all);
        core.queued(index);
    }

    /// The index that the client sees of a device's buffer `index`, and where its bytes go.
    fn dequeue(core: &mut Queue, index: u32) -> Option<(u32, u64)> {
        let mut device = PlanarBuffer::blank(buf_type::VIDEO_CAPTURE, index);
        device.planes[0].bytesused = 4096;
        let deliveries = core.dequeued(&mut device)?;
        Some((device.head.index, deliveries[0].claim.client_addr))
    }

    #[test]
    fn a_driver_that_gives_back_what_it_likes_fills_what_waits_longest() {
        let mut core = Queue::new();
        for index in 0..3 {
            core.allocated(index, buf_type::VIDEO_CAPTURE, &[4096], 0);
        }
        assert_eq!(dequeue(&mut core, 0), None);
        queue(&mut core, 2, 0x20_0000);
        queue(&mut core, 0, 0x10_0000);
        assert_eq!(dequeue(&mut core, 1), Some((2, 0x20_0000)));
        queue(&mut core, 1, 0x30_0000);
        // What it has it gives by its own name.
        assert_eq!(dequeue(&mut core, 1), Some((1, 0x30_0000)));
        assert_eq!(dequeue(&mut core, 7), Some((0, 0x10_0000)));
        assert_eq!(dequeue(&mut core, 0), None);
    }
}
