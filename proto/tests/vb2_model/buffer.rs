//! One `struct vb2_v4l2_buffer` of the model: what vb2 keeps of a buffer, and how it goes in and out.

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::buf_type::is_output;
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2Buffer, buf_flag, buf_type, memory};

use super::{Fault, Params, UserMemory, Vb2Model};

const PAGE: u64 = 4096;
/// `V4L2_FIELD_ALTERNATE`
const FIELD_ALTERNATE: u32 = 7;
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
    pub data_offset: u32,
}

/// `vbuf->planes[]`: what the last accepted struct of the client said of a plane.
#[derive(Clone, Copy, Debug, Default)]
struct FromUser {
    m: u64,
    length: u32,
    bytesused: u32,
    data_offset: u32,
}

#[derive(Clone, Debug)]
pub struct Buffer {
    pub state: State,
    pub prepared: bool,
    pub synced: bool,
    /// `vb->planes[]`
    pub planes: Vec<Plane>,
    from_user: Vec<FromUser>,
    /// `vb->timestamp`, nanoseconds.
    pub timestamp: u64,
    pub flags: u32,
    pub field: u32,
    pub timecode: [u8; 16],
    pub sequence: u32,
}

/// What a buffer is prepared with: the world around it.
pub struct World<'a> {
    pub params: &'a Params,
    pub memory: u32,
    pub fault: Option<Fault>,
    pub dma_bufs: &'a [(i32, u32)],
    pub user: &'a UserMemory<'a>,
}

impl Buffer {
    /// `__vb2_queue_alloc` for one buffer, with `__vb2_buf_mem_alloc` and `__setup_offsets` for MMAP.
    pub fn alloc(memory_type: u32, index: u32, sizes: &[u32]) -> Self {
        let mmap = memory_type == memory::MMAP;
        let plane = |(at, size): (u64, &u32)| Plane {
            held: if mmap {
                Held::Own { mapped: false }
            } else {
                Held::Nothing
            },
            m: if mmap {
                u64::from(index) << 15 | at << 12
            } else {
                0
            },
            length: *size,
            min_length: *size,
            bytesused: 0,
            data_offset: 0,
        };
        Self {
            state: State::Dequeued,
            prepared: false,
            synced: false,
            planes: (0..).zip(sizes).map(plane).collect(),
            from_user: vec![FromUser::default(); sizes.len()],
            timestamp: 0,
            flags: 0,
            field: 0,
            timecode: [0; 16],
            sequence: 0,
        }
    }

    /// `__verify_planes_array`. An array without room has no pointer here.
    pub fn verify_planes_array(&self, b: &PlanarBuffer) -> Result<(), Errno> {
        if b.is_multi_planar() && b.planes.len() < self.planes.len() {
            Err(Errno::EINVAL)
        } else {
            Ok(())
        }
    }

    /// `__verify_length`.
    fn verify_length(&self, b: &PlanarBuffer) -> Result<(), Errno> {
        if !is_output(b.head.buf_type) {
            return Ok(());
        }
        for (plane, given) in self.planes.iter().zip(&b.planes) {
            let by_user = if b.is_multi_planar() {
                matches!(b.head.memory, memory::USERPTR | memory::DMABUF)
            } else {
                b.head.memory == memory::USERPTR
            };
            let length = if by_user { given.length } else { plane.length };
            if given.bytesused > length {
                return Err(Errno::EINVAL);
            }
            let bytesused = if given.bytesused == 0 {
                length
            } else {
                given.bytesused
            };
            if b.is_multi_planar() && given.data_offset > 0 && given.data_offset >= bytesused {
                return Err(Errno::EINVAL);
            }
        }
        Ok(())
    }

    /// `vb2_fill_vb2_v4l2_buffer`.
    pub fn fill_from_user(&mut self, b: &PlanarBuffer, params: &Params) -> Result<(), Errno> {
        let output = is_output(params.buf_type);
        self.from_user.fill(FromUser::default());
        self.verify_length(b)?;
        if output && b.head.field == FIELD_ALTERNATE {
            return Err(Errno::EINVAL);
        }
        self.sequence = 0;
        let planes = self.from_user.iter_mut().zip(&self.planes).zip(&b.planes);
        for ((kept, plane), given) in planes {
            (kept.m, kept.length) = match b.head.memory {
                memory::USERPTR => (given.m, given.length),
                memory::DMABUF => (given.m & 0xffff_ffff, given.length),
                _ => (plane.m, plane.length),
            };
            if output {
                let whole = given.bytesused == 0 && !params.allow_zero_bytesused;
                kept.bytesused = if whole { kept.length } else { given.bytesused };
                kept.data_offset = if b.is_multi_planar() { given.data_offset } else { 0 };
            }
        }
        self.flags = b.head.flags & !buf_flag::STATE_MASK;
        if !params.copies_timestamp() || !output {
            self.flags &= !buf_flag::TSTAMP_SRC_MASK;
        }
        if output {
            self.flags &= !buf_flag::TIMECODE;
            self.field = b.head.field;
            if !params.holds_capture {
                self.flags &= !buf_flag::M2M_HOLD_CAPTURE_BUF;
            }
        } else {
            self.flags &= !buf_flag::OUT_MASK;
            self.flags &= !buf_flag::LAST;
        }
        Ok(())
    }

    /// `__copy_timestamp`.
    pub fn copy_timestamp(&mut self, b: &V4l2Buffer, params: &Params) {
        if !is_output(params.buf_type) {
            return;
        }
        if params.copies_timestamp() {
            let [seconds, micros] = b.timestamp.map(i64::cast_unsigned);
            self.timestamp = seconds
                .wrapping_mul(1_000_000_000)
                .wrapping_add((micros & 0xffff_ffff) * 1000);
        }
        self.flags |= b.flags & buf_flag::TIMECODE;
        if b.flags & buf_flag::TIMECODE != 0 {
            self.timecode = b.timecode;
        }
    }

    /// `__fill_v4l2_buffer`. Padding is not written, nor the upper half of `m` for an offset or an fd, nor a plane
    /// that the buffer has not.
    pub fn fill_user_buffer(&self, index: u32, queue: &Vb2Model, b: &mut PlanarBuffer) {
        let head = &mut b.head;
        head.index = index;
        head.buf_type = queue.params.buf_type;
        head.memory = queue.memory;
        head.bytesused = 0;
        head.field = self.field;
        let micros = i64::try_from(self.timestamp / 1000).unwrap();
        head.timestamp = [micros / 1_000_000, micros % 1_000_000];
        head.timecode = self.timecode;
        head.sequence = self.sequence;
        head.reserved2 = 0;
        head.request_fd = 0;
        for (plane, to) in self.planes.iter().zip(&mut b.planes) {
            to.bytesused = plane.bytesused;
            to.length = plane.length;
            to.m = match queue.memory {
                memory::USERPTR => plane.m,
                _ => (to.m & !0xffff_ffff) | plane.m,
            };
            to.data_offset = plane.data_offset;
            to.reserved = [0; 11];
        }
        if buf_type::is_multi_planar(queue.params.buf_type) {
            head.length = u32::try_from(self.planes.len()).unwrap();
        }

        head.flags = self.flags & !buf_flag::STATE_MASK;
        head.flags |= queue.params.timestamp_flags & buf_flag::TIMESTAMP_MASK;
        if !queue.params.copies_timestamp() {
            head.flags &= !buf_flag::TSTAMP_SRC_MASK;
            head.flags |= queue.params.timestamp_flags & buf_flag::TSTAMP_SRC_MASK;
        }
        head.flags |= match self.state {
            State::Queued | State::Active => buf_flag::QUEUED,
            State::Error => buf_flag::ERROR | buf_flag::DONE,
            State::Done => buf_flag::DONE,
            State::Dequeued => 0,
        };
        if self.state == State::Dequeued && self.synced && self.prepared {
            head.flags |= buf_flag::PREPARED;
        }
        if self
            .planes
            .iter()
            .any(|plane| plane.held == Held::Own { mapped: true })
        {
            head.flags |= buf_flag::MAPPED;
        }
    }

    /// `__buf_prepare`, without a fatal error of the queue, and of a driver that has no `buf_out_validate`.
    pub fn prepare(&mut self, world: &World<'_>) -> Result<(), Errno> {
        if self.prepared {
            return Ok(());
        }
        match world.memory {
            memory::MMAP => self.prepare_mmap(world),
            memory::USERPTR => self.prepare_userptr(world),
            memory::DMABUF => self.prepare_dmabuf(world),
            other => panic!("queue with buffers of memory {other}"),
        }?;
        self.synced = true; // __vb2_buf_mem_prepare
        self.prepared = true;
        Ok(())
    }

    /// The driver's `buf_prepare`, as `vid_cap_buf_prepare` and `vid_out_buf_prepare` of vivid, or
    /// `vim2m_buf_prepare`.
    fn buf_prepare(&mut self, world: &World<'_>) -> Result<(), Errno> {
        let params = world.params;
        if world.fault == Some(Fault::BufPrepare) {
            return Err(Errno::EINVAL);
        }
        for (plane, size) in self.planes.iter_mut().zip(&params.sizes) {
            let wanted = size + plane.data_offset;
            let short = params.checks_payload && plane.bytesused < wanted;
            if plane.length < *size || (is_output(params.buf_type) && short) {
                return Err(Errno::EINVAL);
            }
            if params.payload_at_prepare {
                plane.set_payload(*size);
                if buf_type::is_multi_planar(params.buf_type) && !is_output(params.buf_type) {
                    plane.data_offset = params.data_offset;
                }
            }
        }
        Ok(())
    }

    /// `__fill_vb2_buffer`, but for the planes.
    fn fill_vb2_buffer(&mut self, params: &Params) {
        if !params.copies_timestamp() {
            self.timestamp = 0;
        }
    }

    /// `__prepare_mmap`, with `__fill_vb2_buffer`, which leaves `m` and `length` of an MMAP plane alone.
    fn prepare_mmap(&mut self, world: &World<'_>) -> Result<(), Errno> {
        self.fill_vb2_buffer(world.params);
        for (plane, from) in self.planes.iter_mut().zip(&self.from_user) {
            plane.bytesused = from.bytesused;
            plane.data_offset = from.data_offset;
        }
        self.buf_prepare(world)
    }

    /// What `__prepare_userptr` and `__prepare_dmabuf` do when everything is in order.
    fn copy_from_user(&mut self) {
        for (plane, from) in self.planes.iter_mut().zip(&self.from_user) {
            plane.bytesused = from.bytesused;
            plane.length = from.length;
            plane.m = from.m;
            plane.data_offset = from.data_offset;
        }
    }

    /// `__prepare_userptr`.
    ///
    /// Here, and only here, the model leaves vb2 on purpose: vb2 takes the same pointer and length for the memory
    /// it has pinned, whoever passes them. We serve several processes by one open file, so the same number in
    /// another address space counts as a changed pointer. Without the test of `mm` this would be vb2.
    fn prepare_userptr(&mut self, world: &World<'_>) -> Result<(), Errno> {
        self.fill_vb2_buffer(world.params);
        let result = self.acquire_userptr(world.user).and_then(|()| {
            self.copy_from_user();
            self.buf_prepare(world)
        });
        if result.is_err() {
            for plane in &mut self.planes {
                plane.held = Held::Nothing;
                plane.m = 0;
                plane.length = 0;
            }
        }
        result
    }

    /// The loop of `__prepare_userptr`.
    fn acquire_userptr(&mut self, user: &UserMemory<'_>) -> Result<(), Errno> {
        for (plane, from) in self.planes.iter_mut().zip(&self.from_user) {
            let same = plane.m != 0 && plane.m == from.m && plane.length == from.length;
            if same && plane.held == (Held::User { mm: user.mm }) {
                continue;
            }
            if from.length < plane.min_length {
                return Err(Errno::EINVAL);
            }
            *plane = Plane {
                min_length: plane.min_length,
                ..NO_PLANE
            };
            get_userptr(from.m, from.length, user)?;
            plane.held = Held::User { mm: user.mm };
        }
        Ok(())
    }

    /// `__prepare_dmabuf`, with vb2-vmalloc's attach.
    fn prepare_dmabuf(&mut self, world: &World<'_>) -> Result<(), Errno> {
        self.fill_vb2_buffer(world.params);
        let result = self.attach(world.dma_bufs).and_then(|()| {
            self.copy_from_user();
            self.buf_prepare(world)
        });
        if result.is_err() {
            self.dmabuf_put();
        }
        result
    }

    /// The part of `__prepare_dmabuf` that looks up and attaches. No dma-buf stands behind two planes here.
    fn attach(&mut self, dma_bufs: &[(i32, u32)]) -> Result<(), Errno> {
        let mut reacquired = self.planes[0].held == Held::Nothing;
        let mut found = Vec::new();
        for (plane, from) in self.planes.iter().zip(&mut self.from_user) {
            let fd = u32::try_from(from.m).unwrap().cast_signed();
            let known = dma_bufs.iter().find(|(known, _)| *known == fd);
            let size = known.ok_or(Errno::EINVAL)?.1;
            let length = if from.length == 0 { size } else { from.length };
            if length < plane.min_length {
                return Err(Errno::EINVAL);
            }
            reacquired |= plane.held != (Held::DmaBuf { fd }) || plane.length != length;
            found.push((fd, length, size));
        }
        if reacquired {
            self.dmabuf_put();
            for (plane, (fd, length, size)) in self.planes.iter_mut().zip(&found) {
                if size < length {
                    return Err(Errno::EFAULT); // vb2_vmalloc_attach_dmabuf
                }
                plane.held = Held::DmaBuf { fd: *fd };
            }
        }
        for (from, (_, length, _)) in self.from_user.iter_mut().zip(&found) {
            from.length = *length;
        }
        Ok(())
    }

    /// `__vb2_buf_dmabuf_put`.
    fn dmabuf_put(&mut self) {
        for plane in &mut self.planes {
            if plane.held != Held::Nothing {
                *plane = Plane {
                    min_length: plane.min_length,
                    ..NO_PLANE
                };
            }
        }
    }

    /// The driver's `buf_finish`, as `vid_cap_buf_finish` of vivid: nothing, but for an analogue TV input.
    pub fn buf_finish(&mut self, params: &Params) {
        if !params.timecodes || is_output(params.buf_type) {
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

impl Plane {
    /// `vb2_set_plane_payload`.
    pub fn set_payload(&mut self, size: u32) {
        self.bytesused = size.min(self.length);
    }
}

const NO_PLANE: Plane = Plane {
    held: Held::Nothing,
    m: 0,
    length: 0,
    min_length: 0,
    bytesused: 0,
    data_offset: 0,
};

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
    } else if (user.is_accessible)(start, u64::from(length)) {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}
