//! One `struct vb2_v4l2_buffer` of the model: what vb2 keeps of a buffer, and how it goes in and out.

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{V4l2Buffer, buf_flag, memory};

use super::{Fault, Params, UserMemory, Vb2Model};

const PAGE: u64 = 4096;
/// `EOVERFLOW` of `asm-generic/errno.h`.
pub const EOVERFLOW: Errno = Errno::from_raw(75);

/// `enum vb2_buffer_state`, without IN_REQUEST (no requests here) and PREPARING (never seen between two calls).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Dequeued,
    Queued,
    Active,
    Done,
    Error,
}

/// `vb2_plane.mem_priv`: what the allocator holds for the plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Nothing,
    /// vb2's own memory; `mapped` is `num_users > 1`.
    Own {
        mapped: bool,
    },
    /// Pinned pages of this address space.
    User {
        mm: u64,
    },
    /// An attached dma-buf. The model knows a dma-buf by its fd: nobody `dup`s here.
    DmaBuf {
        fd: i32,
    },
}

/// `struct vb2_plane`; `m` is the union of offset, pointer and fd.
#[derive(Clone, Copy, Debug)]
pub struct Plane {
    pub held: Held,
    pub m: u64,
    pub length: u32,
    pub min_length: u32,
    pub bytesused: u32,
}

#[derive(Clone, Debug)]
pub struct Buffer {
    pub state: State,
    pub prepared: bool,
    pub synced: bool,
    /// `vb->planes[0]`
    pub plane: Plane,
    /// `vbuf->planes[0]`, `m` and `length`: what the last accepted struct of the client said.
    from_user: (u64, u32),
    /// `vb->timestamp`, nanoseconds.
    pub timestamp: u64,
    pub flags: u32,
    pub field: u32,
    pub timecode: [u8; 16],
    pub sequence: u32,
}

impl Buffer {
    /// `__vb2_queue_alloc` for one buffer, with `__vb2_buf_mem_alloc` and `__setup_offsets` for MMAP.
    pub fn alloc(memory_type: u32, index: u32, size: u32) -> Self {
        let mmap = memory_type == memory::MMAP;
        let plane = Plane {
            held: if mmap {
                Held::Own { mapped: false }
            } else {
                Held::Nothing
            },
            m: if mmap { u64::from(index) << 15 } else { 0 },
            length: size,
            min_length: size,
            bytesused: 0,
        };
        Self {
            state: State::Dequeued,
            prepared: false,
            synced: false,
            plane,
            from_user: (0, 0),
            timestamp: 0,
            flags: 0,
            field: 0,
            timecode: [0; 16],
            sequence: 0,
        }
    }

    /// `vb2_fill_vb2_v4l2_buffer`, single-planar capture.
    pub fn fill_from_user(&mut self, b: &V4l2Buffer) {
        self.sequence = 0;
        self.from_user = match b.memory {
            memory::USERPTR => (b.m, b.length),
            memory::DMABUF => (b.m & 0xffff_ffff, b.length),
            _ => (self.plane.m, self.plane.length),
        };
        self.flags = b.flags & !buf_flag::STATE_MASK;
        self.flags &= !buf_flag::TSTAMP_SRC_MASK;
        self.flags &= !buf_flag::OUT_MASK;
        self.flags &= !buf_flag::LAST;
    }

    /// `__fill_v4l2_buffer`. Padding is not written, nor the upper half of `m` for an offset or an fd.
    pub fn fill_user_buffer(&self, index: u32, queue: &Vb2Model, b: &mut V4l2Buffer) {
        b.index = index;
        b.buf_type = queue.params.buf_type;
        b.memory = queue.memory;
        b.field = self.field;
        let micros = i64::try_from(self.timestamp / 1000).unwrap();
        b.timestamp = [micros / 1_000_000, micros % 1_000_000];
        b.timecode = self.timecode;
        b.sequence = self.sequence;
        b.reserved2 = 0;
        b.request_fd = 0;
        b.length = self.plane.length;
        b.bytesused = self.plane.bytesused;
        b.m = match queue.memory {
            memory::USERPTR => self.plane.m,
            _ => (b.m & !0xffff_ffff) | self.plane.m,
        };

        b.flags = self.flags & !buf_flag::STATE_MASK;
        b.flags |= queue.params.timestamp_flags & buf_flag::TIMESTAMP_MASK;
        b.flags &= !buf_flag::TSTAMP_SRC_MASK;
        b.flags |= queue.params.timestamp_flags & buf_flag::TSTAMP_SRC_MASK;
        b.flags |= match self.state {
            State::Queued | State::Active => buf_flag::QUEUED,
            State::Error => buf_flag::ERROR | buf_flag::DONE,
            State::Done => buf_flag::DONE,
            State::Dequeued => 0,
        };
        if self.state == State::Dequeued && self.synced && self.prepared {
            b.flags |= buf_flag::PREPARED;
        }
        if self.plane.held == (Held::Own { mapped: true }) {
            b.flags |= buf_flag::MAPPED;
        }
    }

    /// `__buf_prepare`, without a fatal error of the queue.
    pub fn prepare(
        &mut self,
        queue_memory: u32,
        params: &Params,
        fault: Option<Fault>,
        dma_bufs: &[(i32, u32)],
        user: &UserMemory<'_>,
    ) -> Result<(), Errno> {
        if self.prepared {
            return Ok(());
        }
        match queue_memory {
            memory::MMAP => self.prepare_mmap(params, fault),
            memory::USERPTR => self.prepare_userptr(params, fault, user),
            memory::DMABUF => self.prepare_dmabuf(params, fault, dma_bufs),
            other => panic!("queue with buffers of memory {other}"),
        }?;
        self.synced = true; // __vb2_buf_mem_prepare
        self.prepared = true;
        Ok(())
    }

    /// The driver's `buf_prepare`, as `vid_cap_buf_prepare` of vivid.
    fn buf_prepare(&mut self, params: &Params, fault: Option<Fault>) -> Result<(), Errno> {
        if fault == Some(Fault::BufPrepare) || self.plane.length < params.sizeimage {
            return Err(Errno::EINVAL);
        }
        if params.payload_at_prepare {
            self.set_payload(params.sizeimage);
        }
        Ok(())
    }

    /// `__prepare_mmap`, with `__fill_vb2_buffer`, which leaves `m` and `length` of an MMAP plane alone.
    fn prepare_mmap(&mut self, params: &Params, fault: Option<Fault>) -> Result<(), Errno> {
        self.timestamp = 0;
        self.plane.bytesused = 0;
        self.buf_prepare(params, fault)
    }

    /// `__prepare_userptr`.
    ///
    /// Here, and only here, the model leaves vb2 on purpose: vb2 takes the same pointer and length for the memory
    /// it has pinned, whoever passes them. We serve several processes by one open file, so the same number in
    /// another address space counts as a changed pointer. Without the test of `mm` this would be vb2.
    fn prepare_userptr(
        &mut self,
        params: &Params,
        fault: Option<Fault>,
        user: &UserMemory<'_>,
    ) -> Result<(), Errno> {
        self.timestamp = 0; // __fill_vb2_buffer
        let (userptr, length) = self.from_user;
        let same = self.plane.m != 0 && self.plane.m == userptr && self.plane.length == length;
        let result = if same && self.plane.held == (Held::User { mm: user.mm }) {
            Ok(())
        } else if length < self.plane.min_length {
            Err(Errno::EINVAL)
        } else {
            self.plane.bytesused = 0;
            get_userptr(userptr, length, user)
        };
        let result = result.and_then(|()| {
            self.plane.held = Held::User { mm: user.mm };
            self.plane.bytesused = 0;
            self.plane.length = length;
            self.plane.m = userptr;
            self.buf_prepare(params, fault)
        });
        if result.is_err() {
            self.plane.held = Held::Nothing;
            self.plane.m = 0;
            self.plane.length = 0;
        }
        result
    }

    /// `__prepare_dmabuf`, with vb2-vmalloc's attach.
    fn prepare_dmabuf(
        &mut self,
        params: &Params,
        fault: Option<Fault>,
        dma_bufs: &[(i32, u32)],
    ) -> Result<(), Errno> {
        self.timestamp = 0; // __fill_vb2_buffer
        let result = self
            .attach(dma_bufs)
            .and_then(|()| self.buf_prepare(params, fault));
        if result.is_err() && self.plane.held != Held::Nothing {
            self.dmabuf_put();
        }
        result
    }

    /// The part of `__prepare_dmabuf` that looks up and attaches.
    fn attach(&mut self, dma_bufs: &[(i32, u32)]) -> Result<(), Errno> {
        let (m, mut length) = self.from_user;
        let fd = u32::try_from(m).unwrap().cast_signed();
        let size = dma_bufs
            .iter()
            .find(|(known, _)| *known == fd)
            .ok_or(Errno::EINVAL)?
            .1;
        if length == 0 {
            length = size;
        }
        if length < self.plane.min_length {
            return Err(Errno::EINVAL);
        }
        if self.plane.held != (Held::DmaBuf { fd }) || self.plane.length != length {
            if self.plane.held != Held::Nothing {
                self.dmabuf_put();
            }
            if size < length {
                return Err(Errno::EFAULT); // vb2_vmalloc_attach_dmabuf
            }
            self.plane.held = Held::DmaBuf { fd };
        }
        self.plane.bytesused = 0;
        self.plane.length = length;
        self.plane.m = m;
        Ok(())
    }

    /// `__vb2_plane_dmabuf_put`.
    fn dmabuf_put(&mut self) {
        let min_length = self.plane.min_length;
        self.plane = Plane {
            held: Held::Nothing,
            m: 0,
            length: 0,
            min_length,
            bytesused: 0,
        };
    }

    /// `vb2_set_plane_payload`.
    pub fn set_payload(&mut self, size: u32) {
        self.plane.bytesused = size.min(self.plane.length);
    }

    /// The driver's `buf_finish`, as `vid_cap_buf_finish` of vivid: nothing, but for an analogue TV input.
    pub fn buf_finish(&mut self, params: &Params) {
        if !params.timecodes {
            return;
        }
        let sequence = self.sequence;
        let byte = |value: u32| u8::try_from(value).unwrap();
        self.flags |= buf_flag::TIMECODE;
        self.timecode[..4].copy_from_slice(&2_u32.to_ne_bytes()); // V4L2_TC_TYPE_25FPS
        self.timecode[4..8].copy_from_slice(&0_u32.to_ne_bytes());
        self.timecode[8] = byte(sequence % 25);
        self.timecode[9] = byte((sequence / 25) % 60);
        self.timecode[10] = byte((sequence / (60 * 25)) % 60);
        self.timecode[11] = byte((sequence / (60 * 60 * 25)) % 24);
    }
}

/// `vb2_vmalloc_get_userptr`: `vb2_create_framevec`, `get_vaddr_frames`, `gup_fast_fallback` (mm/gup.c:3459).
///
/// A range that wraps has a page count that wraps too, but `frame_vector_create` takes it as 32 bits, and the 52
/// bits that overflowed are not among those: the vector is made, and pinning fails.
fn get_userptr(start: u64, length: u32, user: &UserMemory<'_>) -> Result<(), Errno> {
    let first = start / PAGE;
    let last = start.wrapping_add(u64::from(length)).wrapping_sub(1) / PAGE;
    let pages = last.wrapping_sub(first).wrapping_add(1) & 0xffff_ffff;
    if (first * PAGE).checked_add(pages * PAGE).is_none() {
        Err(EOVERFLOW)
    } else if (user.is_writable)(start, u64::from(length)) {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}
