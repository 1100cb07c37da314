//! A model of the kernel's videobuf2 for one single-planar capture queue, written from the source of Linux 6.12:
//! `drivers/media/common/videobuf2/videobuf2-{core,v4l2}.c`, the entry points of `v4l2-core/v4l2-ioctl.c`, the
//! vmalloc allocator, and vivid as the driver. It shares only the ABI structs with the crate under test.
//!
//! Each method is an ioctl on a struct in place: on an error the struct stays as the client passed it, because
//! nothing is copied out then. Methods and their helpers name the kernel function they model.
//!
//! Left out: requests, fatal errors of the queue (`vb2_queue_error`, `EIO`), file I/O, REMOVE_BUFS, EXPBUF, cache
//! coherency, running out of memory, multi-planar and output queues. Of a sleeping DQBUF there is only its flag
//! `waiting_in_dqbuf`.

mod buffer;
mod facts;

pub use buffer::{EOVERFLOW, Held, State};

use buffer::Buffer;
use std::collections::VecDeque;
use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    V4l2Buffer, V4l2CreateBuffers, V4l2RequestBuffers, buf_cap, buf_flag, buf_type, memory,
};

/// Which open file makes a call: `file->private_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId(pub u32);

/// Whose memory a pointer is in, and which of it may be written: (address, length in bytes).
pub struct UserMemory<'a> {
    pub mm: u64,
    pub is_writable: &'a dyn Fn(u64, u64) -> bool,
}

impl UserMemory<'_> {
    /// A caller that passes no pointers.
    pub const NONE: UserMemory<'static> = UserMemory {
        mm: 0,
        is_writable: &|_, _| false,
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
    pub sizeimage: u32,
    pub max_num_buffers: u32,
    pub min_reqbufs_allocation: u32,
    pub min_queued_buffers: u32,
    /// `q->timestamp_flags`
    pub timestamp_flags: u32,
    /// `q->allow_cache_hints`
    pub allow_cache_hints: bool,
    /// REQUESTS and REMOVE_BUFS: advertised, not modelled.
    pub advertised: u32,
    /// Does `buf_prepare` set the payload (vivid), or is it 0 until the buffer is done (uvcvideo)?
    pub payload_at_prepare: bool,
    /// Does `buf_finish` set a timecode (vivid's TV input)?
    pub timecodes: bool,
}

/// How the driver hands a buffer back.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    pub bytesused: u32,
    pub field: u32,
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
    bufs: Vec<Buffer>,
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
            bufs: Vec::new(),
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

    pub fn owner(&self) -> Option<FileId> {
        self.owner
    }

    pub fn is_streaming(&self) -> bool {
        self.streaming
    }

    pub fn state(&self, index: u32) -> State {
        self.bufs[index as usize].state
    }

    /// Memory, `m` and length of the plane of a buffer.
    pub fn plane(&self, index: u32) -> (Held, u64, u32) {
        let plane = &self.bufs[index as usize].plane;
        (plane.held, plane.m, plane.length)
    }

    /// Length of the buffer that the driver fills next.
    pub fn oldest_active_length(&self) -> Option<u32> {
        self.active
            .front()
            .map(|index| self.bufs[*index as usize].plane.length)
    }

    /// Is every buffer in exactly the lists that go with its state?
    pub fn assert_consistent(&self) {
        for (index, buffer) in (0..).zip(&self.bufs) {
            let wanted = match buffer.state {
                State::Dequeued => (false, false, false),
                State::Queued => (true, false, false),
                State::Active => (true, true, false),
                State::Done | State::Error => (true, false, true),
            };
            let lists = (
                self.queued_list.contains(&index),
                self.active.contains(&index),
                self.done_list.contains(&index),
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
        if let Held::Own { mapped } = &mut self.bufs[index as usize].plane.held {
            *mapped = true;
        }
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
        let buffer = &mut self.bufs[index as usize];
        buffer.set_payload(done.bytesused);
        buffer.sequence = sequence;
        buffer.timestamp = self.clock_ns;
        buffer.field = done.field;
        if done.last {
            buffer.flags |= buf_flag::LAST;
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
            let size = match p.format.buf_type {
                buf_type::VIDEO_CAPTURE => p.format.pix_sizeimage(),
                other => panic!("CREATE_BUFS of type {other} is not modelled"),
            };
            if size == 0 {
                return Err(Errno::EINVAL);
            }
            self.core_create_bufs(p.memory, &mut p.count, size)?;
            self.owner = Some(file);
        }
        *arg = p;
        Ok(())
    }

    /// `video_usercopy` with `INFO_FL_CLEAR(v4l2_buffer, length)`, `v4l_querybuf`, `vb2_querybuf`.
    pub fn querybuf(&self, arg: &mut V4l2Buffer) -> Result<(), Errno> {
        let mut b = V4l2Buffer {
            reserved2: 0,
            request_fd: 0,
            padding1: 0,
            ..*arg
        };
        self.check_fmt(b.buf_type)?;
        if b.buf_type != self.params.buf_type {
            return Err(Errno::EINVAL);
        }
        self.get_buffer(b.index)?.fill_user_buffer(b.index, self, &mut b);
        *arg = b;
        Ok(())
    }

    /// `v4l_prepare_buf`, `vb2_ioctl_prepare_buf`, `vb2_prepare_buf`, `vb2_core_prepare_buf`.
    pub fn prepare_buf(
        &mut self,
        file: FileId,
        user: &UserMemory<'_>,
        arg: &mut V4l2Buffer,
    ) -> Result<(), Errno> {
        let mut b = *arg;
        self.check_fmt(b.buf_type)?;
        self.check_busy(file)?;
        if b.flags & buf_flag::REQUEST_FD != 0 {
            return Err(Errno::EINVAL);
        }
        self.get_buffer(b.index)?;
        self.queue_or_prepare_buf(&b, true)?;
        let buffer = self.get_buffer(b.index)?;
        if buffer.state != State::Dequeued || buffer.prepared {
            return Err(Errno::EINVAL);
        }
        self.buf_prepare(b.index, user)?;
        self.get_buffer(b.index)?.fill_user_buffer(b.index, self, &mut b);
        *arg = b;
        Ok(())
    }

    /// `v4l_qbuf`, `vb2_ioctl_qbuf`, `vb2_qbuf`, `vb2_core_qbuf`.
    pub fn qbuf(&mut self, file: FileId, user: &UserMemory<'_>, arg: &mut V4l2Buffer) -> Result<(), Errno> {
        let mut b = *arg;
        let index = b.index;
        self.check_fmt(b.buf_type)?;
        self.check_busy(file)?;
        self.get_buffer(index)?;
        self.queue_or_prepare_buf(&b, false)?;
        if self.get_buffer(index)?.state != State::Dequeued {
            return Err(Errno::EINVAL);
        }
        self.buf_prepare(index, user)?;
        self.queued_list.push(index);
        self.bufs[index as usize].state = State::Queued;
        if self.start_streaming_called {
            self.enqueue_in_driver(index);
        }
        self.get_buffer(index)?.fill_user_buffer(index, self, &mut b);
        if self.streaming && !self.start_streaming_called && self.enough_queued() {
            self.start_streaming().inspect_err(|_| {
                self.queued_list.retain(|queued| *queued != index);
                self.bufs[index as usize].state = State::Dequeued;
            })?;
        }
        *arg = b;
        Ok(())
    }

    /// `v4l_dqbuf`, `vb2_ioctl_dqbuf`, `vb2_dqbuf`, `vb2_core_dqbuf` of a file with `O_NONBLOCK`.
    pub fn dqbuf(&mut self, file: FileId, arg: &mut V4l2Buffer) -> Result<(), Errno> {
        let mut b = *arg;
        self.check_fmt(b.buf_type)?;
        self.check_busy(file)?;
        if b.buf_type != self.params.buf_type {
            return Err(Errno::EINVAL);
        }
        let result = self.core_dqbuf(&mut b);
        // Also after an error, when these are the client's own flags (videobuf2-v4l2.c:854).
        if b.flags & buf_flag::DONE != 0 && b.flags & buf_flag::LAST != 0 {
            self.last_buffer_dequeued = true;
        }
        b.flags &= !buf_flag::DONE;
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
        self.bufs.get(index as usize).ok_or(Errno::EINVAL)
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
    fn flags_and_caps(&self) -> u32 {
        let mmap = self.params.io_modes & buf_cap::MMAP != 0;
        let hints = if self.params.allow_cache_hints && mmap {
            buf_cap::MMAP_CACHE_HINTS
        } else {
            0
        };
        0x10 | self.params.io_modes | self.params.advertised | hints
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
        self.queue_alloc(memory_type, num_buffers, self.params.sizeimage);
        *count = num_buffers;
        Ok(())
    }

    /// `vb2_core_create_bufs`, with `vid_cap_queue_setup` of vivid, which refuses a size that is too small.
    fn core_create_bufs(&mut self, memory_type: u32, count: &mut u32, size: u32) -> Result<(), Errno> {
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
        if self.fault == Some(Fault::QueueSetup) || size < self.params.sizeimage {
            return Err(Errno::EINVAL);
        }
        *count = (*count).min(self.params.max_num_buffers - self.num_buffers());
        self.queue_alloc(memory_type, *count, size);
        Ok(())
    }

    /// `__vb2_queue_alloc`.
    fn queue_alloc(&mut self, memory_type: u32, count: u32, size: u32) {
        self.memory = memory_type;
        let first = self.num_buffers();
        self.bufs
            .extend((first..first + count).map(|index| Buffer::alloc(memory_type, index, size)));
    }

    /// `__vb2_queue_free` of all buffers.
    fn queue_free(&mut self) {
        self.bufs.clear();
        self.memory = 0;
    }

    /// `vb2_queue_or_prepare_buf`, of a queue without requests.
    fn queue_or_prepare_buf(&mut self, b: &V4l2Buffer, is_prepare: bool) -> Result<(), Errno> {
        if b.buf_type != self.params.buf_type || b.memory != self.memory {
            return Err(Errno::EINVAL);
        }
        let request = b.flags & buf_flag::REQUEST_FD != 0;
        let hints = self.params.allow_cache_hints && self.memory == memory::MMAP;
        let buffer = &mut self.bufs[b.index as usize];
        if !is_prepare && request && buffer.state != State::Dequeued {
            return Err(Errno::EINVAL);
        }
        if !buffer.prepared {
            let cleared = if hints {
                0
            } else {
                buf_flag::NO_CACHE_INVALIDATE | buf_flag::NO_CACHE_CLEAN
            };
            buffer.fill_from_user(&V4l2Buffer {
                flags: b.flags & !cleared,
                ..*b
            }); // set_buffer_cache_hints
        }
        if !is_prepare && request {
            Err(Errno::EBADR)
        } else {
            Ok(())
        }
    }

    /// `__buf_prepare`.
    fn buf_prepare(&mut self, index: u32, user: &UserMemory<'_>) -> Result<(), Errno> {
        let buffer = &mut self.bufs[index as usize];
        buffer.prepare(self.memory, &self.params, self.fault, &self.dma_bufs, user)
    }

    fn enough_queued(&self) -> bool {
        self.queued_list.len() >= self.params.min_queued_buffers as usize
    }

    /// `__enqueue_in_driver`.
    fn enqueue_in_driver(&mut self, index: u32) {
        self.bufs[index as usize].state = State::Active;
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
                self.bufs[index as usize].state = State::Queued; // vb2_buffer_done
            }
            self.start_streaming_called = false;
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// `vb2_core_dqbuf`, with `__vb2_wait_for_done_vb` and `__vb2_get_done_vb`.
    fn core_dqbuf(&mut self, b: &mut V4l2Buffer) -> Result<(), Errno> {
        if self.waiting_in_dqbuf {
            return Err(Errno::EBUSY);
        }
        if !self.streaming {
            return Err(Errno::EINVAL);
        }
        if self.last_buffer_dequeued {
            return Err(Errno::EPIPE);
        }
        let index = self.done_list.pop_front().ok_or(Errno::EAGAIN)?;
        let buffer = &mut self.bufs[index as usize];
        buffer.buf_finish(&self.params);
        buffer.prepared = false;
        self.get_buffer(index)?.fill_user_buffer(index, self, b);
        self.queued_list.retain(|queued| *queued != index);
        self.bufs[index as usize].state = State::Dequeued; // __vb2_dqbuf
        Ok(())
    }

    /// `__vb2_queue_cancel`. It does not touch `waiting_in_dqbuf`: the sleeper does, when it runs.
    fn queue_cancel(&mut self) {
        self.active.clear(); // stop_streaming
        self.streaming = false;
        self.start_streaming_called = false;
        self.queued_list.clear();
        self.done_list.clear();
        for buffer in &mut self.bufs {
            buffer.synced = false; // __vb2_buf_mem_finish
            if buffer.prepared {
                buffer.buf_finish(&self.params);
                buffer.prepared = false;
            }
            buffer.state = State::Dequeued; // __vb2_dqbuf
        }
    }
}
