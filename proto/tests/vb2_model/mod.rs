//! A model of the kernel's videobuf2 for one queue, written from the source of Linux 6.12:
//! `drivers/media/common/videobuf2/videobuf2-{core,v4l2}.c`, the entry points of `v4l2-core/v4l2-ioctl.c`, the
//! vmalloc allocator, and vivid or vim2m as the driver. It shares only the ABI structs with the crate under test.
//!
//! Each method is an ioctl on a struct in place: on an error the struct stays as the client passed it, because
//! nothing is copied out then. Methods and their helpers name the kernel function they model.
//!
//! Left out: requests, fatal errors of the queue (`vb2_queue_error`, `EIO`), file I/O, EXPBUF, cache coherency,
//! running out of memory, `buf_out_validate`, one dma-buf behind several planes. Of a sleeping DQBUF there is only its
//! flag `waiting_in_dqbuf`.

mod buffer;
mod facts;

pub use buffer::{EOVERFLOW, Held, Plane, State};

use buffer::{Buffer, World};
use std::collections::{BTreeMap, VecDeque};
use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    MAX_PLANES, PlanarBuffer, V4l2Buffer, V4l2CreateBuffers, V4l2RemoveBuffers, V4l2RequestBuffers, buf_cap,
    buf_flag, buf_type, memory,
};

/// Which open file makes a call: `file->private_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(pub u32);

/// Whose memory a pointer is in, and which of it may be accessed as the queue must: (address, length in bytes).
pub struct UserMemory<'a> {
    pub mm: u64,
    pub is_accessible: &'a dyn Fn(u64, u64) -> bool,
}

impl UserMemory<'_> {
    /// A caller that passes no pointers.
    pub const NONE: UserMemory<'static> = UserMemory {
        mm: 0,
        is_accessible: &|_, _| false,
    };
}

/// What a driver's callback may refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    QueueSetup,
    BufPrepare,
    StartStreaming,
}

/// What a driver fixes when it sets up its queue.
#[derive(Clone, Debug)]
pub struct Params {
    pub buf_type: u32,
    /// Other types that the node knows (`check_fmt`), with which this queue has nothing to do.
    pub other_types: Vec<u32>,
    /// `q->io_modes`, as bits of [`buf_cap`].
    pub io_modes: u32,
    /// `sizeimage` of each plane.
    pub sizes: Vec<u32>,
    pub max_num_buffers: u32,
    pub min_reqbufs_allocation: u32,
    pub min_queued_buffers: u32,
    /// `q->timestamp_flags`
    pub timestamp_flags: u32,
    /// `q->allow_cache_hints`
    pub allow_cache_hints: bool,
    /// REQUESTS, which is advertised and not modelled, and REMOVE_BUFS, which is modelled in any case.
    pub advertised: u32,
    /// `q->allow_zero_bytesused`
    pub allow_zero_bytesused: bool,
    /// `VB2_V4L2_FL_SUPPORTS_M2M_HOLD_CAPTURE_BUF`
    pub holds_capture: bool,
    /// Does `buf_prepare` set the payload (vivid), or is it 0 until the buffer is done (uvcvideo)?
    pub payload_at_prepare: bool,
    /// Does `buf_prepare` of an OUTPUT queue refuse less than a whole picture (vivid)?
    pub checks_payload: bool,
    /// Where a multi-planar capture driver puts the data.
    pub data_offset: u32,
    /// Does `buf_finish` set a timecode (vivid's TV input)?
    pub timecodes: bool,
}

impl Params {
    /// `q->copy_timestamp`
    fn copies_timestamp(&self) -> bool {
        self.timestamp_flags & buf_flag::TIMESTAMP_MASK == buf_flag::TIMESTAMP_COPY
    }
}

/// How the driver hands a buffer back.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// Of each plane of a capture buffer.
    pub bytesused: [u32; 3],
    pub field: u32,
    /// Flags and timecode of the OUTPUT buffer that a copying capture queue gets (`v4l2_m2m_buf_copy_metadata`).
    pub copied: u32,
    pub error: bool,
    /// `V4L2_BUF_FLAG_LAST`
    pub last: bool,
}

/// `struct vb2_queue`, its `struct video_device` and its driver.
#[derive(Clone, Debug)]
pub struct Vb2Model {
    params: Params,
    /// `q->memory`, 0 for `VB2_MEMORY_UNKNOWN`.
    memory: u32,
    bufs: BTreeMap<u32, Buffer>,
    owner: Option<FileId>,
    queued_list: Vec<u32>,
    done_list: VecDeque<u32>,
    streaming: bool,
    start_streaming_called: bool,
    last_buffer_dequeued: bool,
    waiting_in_dqbuf: bool,
    /// fd and size of every dma-buf there is.
    pub dma_bufs: Vec<(i32, u32)>,
    /// The driver refuses, as long as this is set.
    pub fault: Option<Fault>,
    /// The driver's list of buffers, oldest first.
    active: VecDeque<u32>,
    next_sequence: u32,
    clock_ns: u64,
}

impl Vb2Model {
    pub fn new(params: Params) -> Self {
        Self {
            params,
            memory: 0,
            bufs: BTreeMap::new(),
            owner: None,
            queued_list: Vec::new(),
            done_list: VecDeque::new(),
            streaming: false,
            start_streaming_called: false,
            last_buffer_dequeued: false,
            waiting_in_dqbuf: false,
            dma_bufs: Vec::new(),
            fault: None,
            active: VecDeque::new(),
            next_sequence: 0,
            clock_ns: 1_000_000_000,
        }
    }

    // What a test may see.

    pub fn num_buffers(&self) -> u32 {
        u32::try_from(self.bufs.len()).unwrap()
    }

    pub fn buf_type(&self) -> u32 {
        self.params.buf_type
    }

    pub fn owner(&self) -> Option<FileId> {
        self.owner
    }

    pub fn is_streaming(&self) -> bool {
        self.streaming
    }

    pub fn state(&self, index: u32) -> State {
        self.bufs[&index].state
    }

    /// The buffers that there are.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.bufs.keys().copied()
    }

    pub fn planes(&self, index: u32) -> &[Plane] {
        &self.bufs[&index].planes
    }

    /// Lengths of the planes of the buffer that the driver fills next.
    pub fn oldest_active_lengths(&self) -> Option<Vec<u32>> {
        let index = self.active.front()?;
        Some(self.planes(*index).iter().map(|plane| plane.length).collect())
    }

    /// Is every buffer in exactly the lists that go with its state?
    pub fn assert_consistent(&self) {
        for (index, buffer) in &self.bufs {
            let wanted = match buffer.state {
                State::Dequeued => (false, false, false),
                State::Queued => (true, false, false),
                State::Active => (true, true, false),
                State::Done | State::Error => (true, false, true),
            };
            let lists = (
                self.queued_list.contains(index),
                self.active.contains(index),
                self.done_list.contains(index),
            );
            assert_eq!(lists, wanted, "model: buffer {index} is {:?}", buffer.state);
        }
        assert!(
            self.queued_list.len() <= self.bufs.len(),
            "model: a buffer is queued twice"
        );
    }

    // What happens beside ioctls.

    /// A thread sleeps in DQBUF (`__vb2_wait_for_done_vb`), or no longer does.
    pub fn set_waiting(&mut self, waiting: bool) {
        self.waiting_in_dqbuf = waiting;
    }

    /// `vb2_mmap` of a buffer: `num_users` becomes 2.
    pub fn map(&mut self, index: u32) {
        for plane in &mut self.buf(index).planes {
            if let Held::Own { mapped } = &mut plane.held {
                *mapped = true;
            }
        }
    }

    fn buf(&mut self, index: u32) -> &mut Buffer {
        self.bufs.get_mut(&index).unwrap()
    }

    /// The driver has a frame: its oldest buffer is filled and `vb2_buffer_done`. Without a buffer the frame is
    /// lost, but counted.
    pub fn complete_oldest(&mut self, done: Completion) {
        self.clock_ns += 40_000_123;
        if !self.start_streaming_called {
            return;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let Some(index) = self.active.pop_front() else {
            return;
        };
        let (output, copies) = (
            buf_type::is_output(self.params.buf_type),
            self.params.copies_timestamp(),
        );
        let clock_ns = self.clock_ns;
        let buffer = self.buf(index);
        buffer.sequence = sequence;
        if !(output && copies) {
            buffer.timestamp = clock_ns;
        }
        if !output {
            for (plane, bytesused) in buffer.planes.iter_mut().zip(done.bytesused) {
                plane.set_payload(bytesused);
            }
            buffer.field = done.field;
            if done.last {
                buffer.flags |= buf_flag::LAST;
            }
        }
        if !output && copies {
            let mask = buf_flag::TIMECODE | buf_flag::TSTAMP_SRC_MASK | buf_flag::KEYFRAME;
            buffer.flags = (buffer.flags & !mask) | (done.copied & mask);
            if done.copied & buf_flag::TIMECODE != 0 {
                buffer.timecode = [done.copied.to_le_bytes()[3]; 16];
            }
        }
        buffer.synced = false; // __vb2_buf_mem_finish
        buffer.state = if done.error { State::Error } else { State::Done };
        self.done_list.push_back(index);
    }

    /// `close`: `_vb2_fop_release`, `vb2_core_queue_release`.
    pub fn close(&mut self, file: FileId) {
        if self.owner.is_none_or(|owner| owner == file) {
            self.queue_cancel();
            self.queue_free();
            self.owner = None;
        }
    }

    // ioctls

    /// `v4l_reqbufs`, `vb2_ioctl_reqbufs`.
    pub fn reqbufs(&mut self, file: FileId, arg: &mut V4l2RequestBuffers) -> Result<(), Errno> {
        let mut p = *arg;
        self.check_fmt(p.buf_type)?;
        p.reserved = [0; 3];
        p.capabilities = self.flags_and_caps();
        if !(self.params.allow_cache_hints && p.memory == memory::MMAP) {
            p.flags = 0;
        }
        self.verify_memory_type(p.memory, p.buf_type)?;
        self.check_busy(file)?;
        self.core_reqbufs(p.memory, &mut p.count)?;
        self.owner = (p.count != 0).then_some(file);
        *arg = p;
        Ok(())
    }

    /// `v4l_create_bufs`, `vb2_ioctl_create_bufs`, `vb2_create_bufs`. The format is handed back as it came.
    pub fn create_bufs(&mut self, file: FileId, arg: &mut V4l2CreateBuffers) -> Result<(), Errno> {
        let mut p = *arg;
        self.check_fmt(p.format.buf_type)?;
        p.reserved = [0; 5];
        p.index = self.num_buffers();
        p.capabilities = self.flags_and_caps() | 0x80; // V4L2_BUF_CAP_SUPPORTS_MAX_NUM_BUFFERS
        p.max_num_buffers = self.params.max_num_buffers;
        if !(self.params.allow_cache_hints && p.memory == memory::MMAP) {
            p.flags = 0;
        }
        self.verify_memory_type(p.memory, p.format.buf_type)?;
        if p.count != 0 {
            self.check_busy(file)?;
            let sizes = requested_sizes(&p)?;
            p.index = self.core_create_bufs(p.memory, &mut p.count, &sizes)?;
            self.owner = Some(file);
        }
        *arg = p;
        Ok(())
    }

    /// `video_usercopy` with `INFO_FL_CLEAR(v4l2_buffer, length)`, `v4l_querybuf`, `vb2_querybuf`.
    pub fn querybuf(&self, arg: &mut PlanarBuffer) -> Result<(), Errno> {
        let mut b = arg.clone();
        b.head = V4l2Buffer {
            reserved2: 0,
            request_fd: 0,
            padding1: 0,
            ..b.head
        };
        self.check_fmt(b.head.buf_type)?;
        if b.head.buf_type != self.params.buf_type {
            return Err(Errno::EINVAL);
        }
        let buffer = self.get_buffer(b.head.index)?;
        buffer.verify_planes_array(&b)?;
        buffer.fill_user_buffer(b.head.index, self, &mut b);
        *arg = b;
        Ok(())
    }

    /// `v4l_remove_bufs`, `vb2_ioctl_remove_bufs`, `vb2_core_remove_bufs`. Nothing is copied out.
    pub fn remove_bufs(&mut self, file: FileId, arg: &V4l2RemoveBuffers) -> Result<(), Errno> {
        let V4l2RemoveBuffers { index, count, .. } = *arg;
        if arg.buf_type != self.params.buf_type {
            return Err(Errno::EINVAL);
        }
        if count == 0 {
            return Ok(());
        }
        self.check_busy(file)?;
        if count > self.num_buffers() || index > self.params.max_num_buffers - count {
            return Err(Errno::EINVAL);
        }
        for at in index..index + count {
            if self.get_buffer(at)?.state != State::Dequeued {
                return Err(Errno::EBUSY);
            }
        }
        self.bufs.retain(|at, _| !(index..index + count).contains(at));
        if self.bufs.is_empty() {
            self.memory = 0;
        }
        Ok(())
    }

    /// `v4l_prepare_buf`, `vb2_ioctl_prepare_buf`, `vb2_prepare_buf`, `vb2_core_prepare_buf`.
    pub fn prepare_buf(
        &mut self,
        file: FileId,
        user: &UserMemory<'_>,
        arg: &mut PlanarBuffer,
    ) -> Result<(), Errno> {
        let mut b = arg.clone();
        let index = b.head.index;
        self.check_fmt(b.head.buf_type)?;
        self.check_busy(file)?;
        if b.head.flags & buf_flag::REQUEST_FD != 0 {
            return Err(Errno::EINVAL);
        }
        self.get_buffer(index)?;
        self.queue_or_prepare_buf(&b, true)?;
        let buffer = self.get_buffer(index)?;
        if buffer.state != State::Dequeued || buffer.prepared {
            return Err(Errno::EINVAL);
        }
        self.buf_prepare(index, user)?;
        self.get_buffer(index)?.fill_user_buffer(index, self, &mut b);
        *arg = b;
        Ok(())
    }

    /// `v4l_qbuf`, `vb2_ioctl_qbuf`, `vb2_qbuf`, `vb2_core_qbuf`.
    pub fn qbuf(&mut self, file: FileId, user: &UserMemory<'_>, arg: &mut PlanarBuffer) -> Result<(), Errno> {
        let mut b = arg.clone();
        let index = b.head.index;
        self.check_fmt(b.head.buf_type)?;
        self.check_busy(file)?;
        self.get_buffer(index)?;
        self.queue_or_prepare_buf(&b, false)?;
        if self.get_buffer(index)?.state != State::Dequeued {
            return Err(Errno::EINVAL);
        }
        self.buf_prepare(index, user)?;
        self.queued_list.push(index);
        let buffer = self.bufs.get_mut(&index).unwrap();
        buffer.state = State::Queued;
        buffer.copy_timestamp(&b.head, &self.params);
        if self.start_streaming_called {
            self.enqueue_in_driver(index);
        }
        self.get_buffer(index)?.fill_user_buffer(index, self, &mut b);
        if self.streaming && !self.start_streaming_called && self.enough_queued() {
            self.start_streaming().inspect_err(|_| {
                self.queued_list.retain(|queued| *queued != index);
                self.buf(index).state = State::Dequeued;
            })?;
        }
        *arg = b;
        Ok(())
    }

    /// `v4l_dqbuf`, `vb2_ioctl_dqbuf`, `vb2_dqbuf`, `vb2_core_dqbuf` of a file with `O_NONBLOCK`.
    pub fn dqbuf(&mut self, file: FileId, arg: &mut PlanarBuffer) -> Result<(), Errno> {
        let mut b = arg.clone();
        self.check_fmt(b.head.buf_type)?;
        self.check_busy(file)?;
        if b.head.buf_type != self.params.buf_type {
            return Err(Errno::EINVAL);
        }
        let result = self.core_dqbuf(&mut b);
        // Also after an error, when these are the client's own flags (videobuf2-v4l2.c:854).
        let end = buf_flag::DONE | buf_flag::LAST;
        if !buf_type::is_output(self.params.buf_type) && b.head.flags & end == end {
            self.last_buffer_dequeued = true;
        }
        b.head.flags &= !buf_flag::DONE;
        result.inspect(|()| *arg = b)
    }

    /// `v4l_streamon`, `vb2_ioctl_streamon`, `vb2_core_streamon`.
    pub fn streamon(&mut self, file: FileId, buf_type: u32) -> Result<(), Errno> {
        self.check_busy(file)?;
        if buf_type != self.params.buf_type {
            return Err(Errno::EINVAL);
        }
        if self.streaming {
            return Ok(());
        }
        if self.bufs.is_empty() || self.num_buffers() < self.params.min_queued_buffers {
            return Err(Errno::EINVAL);
        }
        if self.enough_queued() {
            self.start_streaming()?;
        }
        self.streaming = true;
        Ok(())
    }

    /// `v4l_streamoff`, `vb2_ioctl_streamoff`, `vb2_core_streamoff`.
    pub fn streamoff(&mut self, file: FileId, buf_type: u32) -> Result<(), Errno> {
        self.check_busy(file)?;
        if buf_type != self.params.buf_type {
            return Err(Errno::EINVAL);
        }
        self.queue_cancel();
        self.last_buffer_dequeued = false;
        Ok(())
    }

    // vb2's own functions

    /// `check_fmt`.
    fn check_fmt(&self, buf_type: u32) -> Result<(), Errno> {
        let known = buf_type == self.params.buf_type || self.params.other_types.contains(&buf_type);
        if known { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// `vb2_queue_is_busy`.
    fn check_busy(&self, file: FileId) -> Result<(), Errno> {
        if self.owner.is_none_or(|owner| owner == file) {
            Ok(())
        } else {
            Err(Errno::EBUSY)
        }
    }

    /// `vb2_get_buffer`.
    fn get_buffer(&self, index: u32) -> Result<&Buffer, Errno> {
        self.bufs.get(&index).ok_or(Errno::EINVAL)
    }

    /// `vb2_verify_memory_type`.
    fn verify_memory_type(&self, wanted: u32, buf_type: u32) -> Result<(), Errno> {
        let mode = match wanted {
            memory::MMAP => buf_cap::MMAP,
            memory::USERPTR => buf_cap::USERPTR,
            memory::DMABUF => buf_cap::DMABUF,
            _ => return Err(Errno::EINVAL),
        };
        if buf_type == self.params.buf_type && self.params.io_modes & mode != 0 {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// The capabilities of `vb2_set_flags_and_caps`; 0x10 is ORPHANED_BUFS.
    pub fn flags_and_caps(&self) -> u32 {
        let mmap = self.params.io_modes & buf_cap::MMAP != 0;
        let hints = if self.params.allow_cache_hints && mmap {
            buf_cap::MMAP_CACHE_HINTS
        } else {
            0
        };
        let hold = if self.params.holds_capture {
            buf_cap::M2M_HOLD_CAPTURE_BUF
        } else {
            0
        };
        0x10 | self.params.io_modes | self.params.advertised | hints | hold
    }

    /// `vb2_core_reqbufs`.
    fn core_reqbufs(&mut self, memory_type: u32, count: &mut u32) -> Result<(), Errno> {
        if self.streaming || (self.waiting_in_dqbuf && *count != 0) {
            return Err(Errno::EBUSY);
        }
        if *count == 0 || !self.bufs.is_empty() {
            self.queue_cancel();
            self.queue_free();
            if *count == 0 {
                return Ok(());
            }
        }
        let num_buffers = (*count)
            .max(self.params.min_reqbufs_allocation)
            .min(self.params.max_num_buffers);
        if self.fault == Some(Fault::QueueSetup) {
            self.memory = 0;
            return Err(Errno::EINVAL);
        }
        let sizes = self.params.sizes.clone();
        (_, *count) = self.queue_alloc(memory_type, num_buffers, &sizes);
        Ok(())
    }

    /// `vb2_core_create_bufs`, with `vid_cap_queue_setup` of vivid, which refuses other planes than it has and a size
    /// that is too small.
    fn core_create_bufs(&mut self, memory_type: u32, count: &mut u32, sizes: &[u32]) -> Result<u32, Errno> {
        if self.num_buffers() == self.params.max_num_buffers {
            return Err(Errno::ENOBUFS);
        }
        if self.bufs.is_empty() {
            if self.waiting_in_dqbuf {
                return Err(Errno::EBUSY);
            }
        } else if self.memory != memory_type {
            return Err(Errno::EINVAL);
        }
        let short = sizes
            .iter()
            .zip(&self.params.sizes)
            .any(|(size, needed)| size < needed);
        if self.fault == Some(Fault::QueueSetup) || sizes.len() != self.params.sizes.len() || short {
            return Err(Errno::EINVAL);
        }
        let first;
        (first, *count) = self.queue_alloc(memory_type, *count, sizes);
        Ok(first)
    }

    /// `__vb2_queue_alloc`: the first index, and how many.
    fn queue_alloc(&mut self, memory_type: u32, count: u32, sizes: &[u32]) -> (u32, u32) {
        self.memory = memory_type;
        let mut count = count.min(self.params.max_num_buffers - self.num_buffers());
        let first = loop {
            // bitmap_find_next_zero_area
            let fits = |first: &u32| (*first..first + count).all(|index| !self.bufs.contains_key(&index));
            match (0..=self.params.max_num_buffers - count).find(fits) {
                Some(first) => break first,
                None => count -= 1,
            }
        };
        for index in first..first + count {
            self.bufs.insert(index, Buffer::alloc(memory_type, index, sizes));
        }
        (first, count)
    }

    /// `__vb2_queue_free` of all buffers.
    fn queue_free(&mut self) {
        self.bufs.clear();
        self.memory = 0;
    }

    /// `vb2_queue_or_prepare_buf`, of a queue without requests.
    fn queue_or_prepare_buf(&mut self, b: &PlanarBuffer, is_prepare: bool) -> Result<(), Errno> {
        let head = &b.head;
        if head.buf_type != self.params.buf_type || head.memory != self.memory {
            return Err(Errno::EINVAL);
        }
        let request = head.flags & buf_flag::REQUEST_FD != 0;
        let hints = self.params.allow_cache_hints && self.memory == memory::MMAP;
        let buffer = self.bufs.get_mut(&head.index).unwrap();
        buffer.verify_planes_array(b)?;
        if !is_prepare && request && buffer.state != State::Dequeued {
            return Err(Errno::EINVAL);
        }
        if !buffer.prepared {
            let mut b = b.clone();
            if !hints {
                b.head.flags &= !(buf_flag::NO_CACHE_INVALIDATE | buf_flag::NO_CACHE_CLEAN);
            } // set_buffer_cache_hints
            buffer.fill_from_user(&b, &self.params)?;
        }
        if !is_prepare && request {
            Err(Errno::EBADR)
        } else {
            Ok(())
        }
    }

    /// `__buf_prepare`.
    fn buf_prepare(&mut self, index: u32, user: &UserMemory<'_>) -> Result<(), Errno> {
        let world = World {
            params: &self.params,
            memory: self.memory,
            fault: self.fault,
            dma_bufs: &self.dma_bufs,
            user,
        };
        self.bufs.get_mut(&index).unwrap().prepare(&world)
    }

    fn enough_queued(&self) -> bool {
        self.queued_list.len() >= self.params.min_queued_buffers as usize
    }

    /// `__enqueue_in_driver`.
    fn enqueue_in_driver(&mut self, index: u32) {
        self.buf(index).state = State::Active;
        self.active.push_back(index);
    }

    /// `vb2_start_streaming`, with `vid_cap_start_streaming` of vivid.
    fn start_streaming(&mut self) -> Result<(), Errno> {
        for index in self.queued_list.clone() {
            self.enqueue_in_driver(index);
        }
        self.start_streaming_called = true;
        self.next_sequence = 0;
        if self.fault == Some(Fault::StartStreaming) {
            for index in std::mem::take(&mut self.active) {
                self.buf(index).state = State::Queued; // vb2_buffer_done
            }
            self.start_streaming_called = false;
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// `vb2_core_dqbuf`, with `__vb2_wait_for_done_vb` and `__vb2_get_done_vb`.
    fn core_dqbuf(&mut self, b: &mut PlanarBuffer) -> Result<(), Errno> {
        if self.waiting_in_dqbuf {
            return Err(Errno::EBUSY);
        }
        if !self.streaming {
            return Err(Errno::EINVAL);
        }
        if self.last_buffer_dequeued {
            return Err(Errno::EPIPE);
        }
        let index = *self.done_list.front().ok_or(Errno::EAGAIN)?;
        self.get_buffer(index)?.verify_planes_array(b)?;
        self.done_list.pop_front();
        let buffer = self.bufs.get_mut(&index).unwrap();
        buffer.buf_finish(&self.params);
        buffer.prepared = false;
        self.get_buffer(index)?.fill_user_buffer(index, self, b);
        self.queued_list.retain(|queued| *queued != index);
        self.buf(index).state = State::Dequeued; // __vb2_dqbuf
        Ok(())
    }

    /// `__vb2_queue_cancel`. It does not touch `waiting_in_dqbuf`: the sleeper does, when it runs.
    fn queue_cancel(&mut self) {
        self.active.clear(); // stop_streaming
        self.streaming = false;
        self.start_streaming_called = false;
        self.queued_list.clear();
        self.done_list.clear();
        for buffer in self.bufs.values_mut() {
            buffer.synced = false; // __vb2_buf_mem_finish
            if buffer.prepared {
                buffer.buf_finish(&self.params);
                buffer.prepared = false;
            }
            buffer.state = State::Dequeued; // __vb2_dqbuf
        }
    }
}

/// The sizes that CREATE_BUFS asks for, one per plane (`vb2_create_bufs`).
fn requested_sizes(request: &V4l2CreateBuffers) -> Result<Vec<u32>, Errno> {
    let format = &request.format;
    let sizes = match format.buf_type {
        buf_type::VIDEO_CAPTURE | buf_type::VIDEO_OUTPUT => vec![format.pix_sizeimage()],
        buf_type::VIDEO_CAPTURE_MPLANE | buf_type::VIDEO_OUTPUT_MPLANE => {
            // struct v4l2_pix_format_mplane
            let planes = usize::from(format.fmt[180]);
            if planes > MAX_PLANES as usize {
                return Err(Errno::EINVAL);
            }
            let size = |plane: &[u8]| u32::from_ne_bytes(plane[..4].try_into().unwrap());
            format.fmt[20..180]
                .chunks_exact(20)
                .take(planes)
                .map(size)
                .collect()
        }
        other => panic!("CREATE_BUFS of type {other} is not modelled"),
    };
    if sizes.is_empty() || sizes.contains(&0) {
        return Err(Errno::EINVAL);
    }
    Ok(sizes)
}
