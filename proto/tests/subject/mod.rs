//! The subject of the property test: our queue core, driven the way a session drives it, over a device that knows
//! no USERPTR. Synchronous, and otherwise as plain as the daemon's session ought to be.

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    PlanarBuffer, V4l2CreateBuffers, V4l2RemoveBuffers, V4l2RequestBuffers, buf_flag, memory,
};
use vidcompat_proto::queue::{Acquire, Backing, Claim, ClientKey, Delivery, Help, Next, Queue};

use crate::script::SLOT_SIZE;
use crate::vb2_model::{FileId, UserMemory, Vb2Model};

/// Our open file of the device.
pub const OURS: FileId = FileId(1);

pub struct Subject {
    pub core: Queue,
    pub device: Vb2Model,
    /// Memory of the device's queue: DMABUF or MMAP.
    backing: u32,
    /// Are imports of dma-bufs tried as soon as there are buffers?
    try_import: bool,
    /// Have there been buffers since the last REQBUFS? A stream may go on without any.
    served: bool,
    /// The memory that the device reads from or writes to by the last QBUF or PREPARE_BUF that succeeded.
    pub given: Vec<Claim>,
    /// The client's own dma-bufs that its pointers were found to lie in.
    imported: Vec<(Claim, i32)>,
    /// How often a plane was imported; the test makes sure that it happens.
    pub imports: u32,
}

/// Numbers of the client's own dma-bufs, above ours.
const IMPORTED: i32 = 1 << 20;

/// Stands a dma-buf behind this memory? Behind every other slot one does.
const fn is_dma_buf(claim: &Claim) -> bool {
    claim.client_addr / SLOT_SIZE % 2 == 1
}

impl Subject {
    pub fn new(device: Vb2Model, backing: u32, try_import: bool) -> Self {
        Self {
            core: Queue::new(),
            device,
            backing,
            try_import,
            served: false,
            given: Vec::new(),
            imported: Vec::new(),
            imports: 0,
        }
    }

    pub fn close(&mut self) {
        self.device.close(OURS);
        self.core = Queue::new();
        self.served = false;
    }

    /// Of a client's own dma-bufs the core knows nothing: the device serves them, and this one has USERPTR only.
    fn no_imports(wanted: u32) -> Result<(), Errno> {
        if wanted == memory::DMABUF {
            Err(Errno::EINVAL)
        } else {
            Ok(())
        }
    }

    pub fn reqbufs(&mut self, arg: &mut V4l2RequestBuffers) -> Result<(), Errno> {
        Self::no_imports(arg.memory)?;
        self.core.reqbufs(arg, Help::None)?;
        let mut request = V4l2RequestBuffers {
            memory: self.backing,
            flags: 0,
            ..*arg
        };
        if let Err(errno) = self.device.reqbufs(OURS, &mut request) {
            // Buffer 0 may have been removed alone.
            if !self.core.is_empty() && self.device.num_buffers() == 0 {
                self.core.freed();
                self.served = false;
            }
            return Err(errno);
        }
        self.core.freed();
        self.served = false;
        self.allocate(request.buf_type, 0, request.count);
        let capabilities = Queue::capabilities(request.capabilities, Help::None);
        *arg = V4l2RequestBuffers {
            memory: memory::USERPTR,
            capabilities,
            ..request
        };
        Ok(())
    }

    pub fn create_bufs(&mut self, arg: &mut V4l2CreateBuffers) -> Result<(), Errno> {
        Self::no_imports(arg.memory)?;
        self.core.create_bufs(arg, Help::None)?;
        let mut request = V4l2CreateBuffers {
            memory: self.backing,
            flags: 0,
            ..*arg
        };
        self.device.create_bufs(OURS, &mut request)?;
        if request.count > 0 {
            self.allocate(request.format.buf_type, request.index, request.count);
        }
        let capabilities = Queue::capabilities(request.capabilities, Help::None);
        *arg = V4l2CreateBuffers {
            memory: memory::USERPTR,
            capabilities,
            ..request
        };
        Ok(())
    }

    /// The device has made buffers. Imports are tried only in a queue that had none: the STREAMOFF that undoes them
    /// would cancel what is queued.
    fn allocate(&mut self, buf_type: u32, first: u32, count: u32) {
        let fresh = first..first + count;
        for index in fresh.clone() {
            let mut described = PlanarBuffer::blank(buf_type, index);
            self.device
                .querybuf(&mut described)
                .expect("a buffer that was just made");
            let lengths = described.described().iter().map(|plane| plane.length);
            let lengths: Vec<u32> = lengths.collect();
            let capabilities = self.device.flags_and_caps();
            self.core.allocated(index, buf_type, &lengths, capabilities);
            match self.backing {
                memory::DMABUF => {
                    self.device.dma_bufs.retain(|(fd, _)| fd / 8 != number(index));
                    for (plane, length) in (0..).zip(lengths) {
                        let size = length.next_multiple_of(4096);
                        self.device.dma_bufs.push((number(index) * 8 + plane, size));
                    }
                }
                _ => self.device.map(index),
            }
        }
        if self.try_import && self.backing == memory::DMABUF && !self.served && count > 0 {
            for index in fresh {
                // A single-planar OUTPUT queue measures the payload by its own length, not by the dma-buf's.
                let mut tried = PlanarBuffer::blank(buf_type, index);
                self.device.querybuf(&mut tried).expect("a buffer");
                for plane in &mut tried.planes {
                    plane.bytesused = plane.length;
                }
                let mut tried = Backing::give(&self.backing_of(index), &tried);
                self.device
                    .prepare_buf(OURS, &UserMemory::NONE, &mut tried)
                    .expect("a good import");
            }
            self.device.streamoff(OURS, buf_type).expect("our own buffers");
        }
        self.served = true;
    }

    fn backing_of(&self, index: u32) -> Vec<Backing> {
        if self.backing == memory::MMAP {
            return vec![Backing::Mmap; self.device.planes(index).len()];
        }
        let ours = self.device.dma_bufs.iter();
        let ours = ours.filter(|(fd, _)| fd / 8 == number(index));
        ours.map(|(fd, length)| Backing::DmaBuf {
            fd: *fd,
            length: *length,
        })
        .collect()
    }

    pub fn remove_bufs(&mut self, arg: &V4l2RemoveBuffers) -> Result<(), Errno> {
        self.device.remove_bufs(OURS, arg)?;
        self.core.removed(arg);
        Ok(())
    }

    pub fn querybuf(&mut self, arg: &mut PlanarBuffer) -> Result<(), Errno> {
        let mut answer = arg.clone();
        self.device.querybuf(&mut answer)?;
        *arg = self.core.reply(&answer, arg);
        Ok(())
    }

    pub fn qbuf(&mut self, user: &UserMemory<'_>, arg: &mut PlanarBuffer) -> Result<(), Errno> {
        let next = self.core.qbuf(arg, ClientKey(user.mm))?;
        self.give(next, user, arg, false)
    }

    pub fn prepare_buf(&mut self, user: &UserMemory<'_>, arg: &mut PlanarBuffer) -> Result<(), Errno> {
        let next = self.core.prepare_buf(arg, ClientKey(user.mm))?;
        self.give(next, user, arg, true)
    }

    /// What follows the core's check of a QBUF or PREPARE_BUF.
    fn give(
        &mut self,
        next: Next,
        user: &UserMemory<'_>,
        arg: &mut PlanarBuffer,
        is_prepare: bool,
    ) -> Result<(), Errno> {
        let index = arg.head.index;
        let given = match next {
            Next::AskDevice => {
                self.ask(&mut Queue::without_references(arg), is_prepare)?;
                panic!("the device took a buffer of a file that has none");
            }
            Next::Acquire(Acquire { all, new, then }) => {
                for (good, claim) in new.iter().enumerate() {
                    assert_eq!(claim.client, ClientKey(user.mm), "claim of another client");
                    assert!(all.contains(claim), "new memory that is none of the buffer's");
                    if !(user.is_accessible)(claim.client_addr, u64::from(claim.length)) {
                        self.core.acquire_failed(index, good);
                        return Err(Errno::EFAULT);
                    }
                }
                if let Err(errno) = then {
                    self.core.acquire_failed(index, new.len());
                    return Err(errno);
                }
                self.core.acquired(index, &all);
                all
            }
            Next::Ready(all) | Next::Prepared(all) => all,
        };
        let mut backing = self.backing_of(index);
        for (claim, backing) in given.iter().zip(&mut backing) {
            if self.backing == memory::DMABUF && is_dma_buf(claim) {
                *backing = self.import(*claim);
            }
        }
        let mut buffer = self.core.for_device(arg, &backing);
        if let Err(errno) = self.ask(&mut buffer, is_prepare) {
            let mut now = PlanarBuffer::blank(arg.head.buf_type, index);
            self.device.querybuf(&mut now).expect("our own buffer");
            self.core.refused(index, &now);
            return Err(errno);
        }
        if is_prepare {
            self.core.prepared(index);
        } else {
            self.core.queued(index);
        }
        self.given = given;
        *arg = self.core.reply(&buffer, arg);
        Ok(())
    }

    /// The dma-buf behind `claim`: whole pages, of which the device is given what the client has given.
    fn import(&mut self, claim: Claim) -> Backing {
        self.imports += 1;
        let known = self.imported.iter().find(|(known, _)| *known == claim);
        let fd = known.map(|(_, fd)| *fd).unwrap_or_else(|| {
            let fd = IMPORTED + i32::try_from(self.imported.len()).expect("few");
            self.imported.push((claim, fd));
            let size = claim.length.next_multiple_of(4096);
            self.device.dma_bufs.push((fd, size));
            fd
        });
        Backing::DmaBuf {
            fd,
            length: claim.length,
        }
    }

    /// QBUF or PREPARE_BUF of the device. No number of the client's may reach it that means something else here.
    fn ask(&mut self, buffer: &mut PlanarBuffer, is_prepare: bool) -> Result<(), Errno> {
        let head = &buffer.head;
        assert_eq!(
            (head.flags & buf_flag::REQUEST_FD, head.request_fd, head.m),
            (0, 0, 0),
            "the client's request or pointer to planes"
        );
        for plane in &buffer.planes {
            let ours = |(fd, _): &(i32, u32)| u64::from(fd.cast_unsigned()) == plane.m;
            let ours = head.memory == memory::DMABUF && self.device.dma_bufs.iter().any(ours);
            assert!(
                ours || plane.m == 0,
                "the client's pointer, offset or fd {}",
                plane.m
            );
        }
        if is_prepare {
            self.device.prepare_buf(OURS, &UserMemory::NONE, buffer)
        } else {
            self.device.qbuf(OURS, &UserMemory::NONE, buffer)
        }
    }

    pub fn dqbuf(&mut self, arg: &mut PlanarBuffer) -> Result<Vec<Delivery>, Errno> {
        self.core.dqbuf(arg.head.buf_type)?;
        let mut buffer = Queue::without_references(arg);
        buffer.head.flags = 0;
        self.device.dqbuf(OURS, &mut buffer)?;
        let index = buffer.head.index;
        let deliveries = self
            .core
            .dequeued(&mut buffer)
            .expect("the device dequeued a buffer that it did not have");
        assert_eq!(buffer.head.index, index, "another buffer than the device's");
        *arg = self.core.reply(&buffer, arg);
        Ok(deliveries)
    }

    pub fn streamon(&mut self, buf_type: u32) -> Result<(), Errno> {
        self.device
            .streamon(OURS, buf_type)
            .inspect(|()| self.core.streamon())
    }

    pub fn streamoff(&mut self, buf_type: u32) -> Result<(), Errno> {
        self.device
            .streamoff(OURS, buf_type)
            .inspect(|()| self.core.streamoff())
    }

    /// The memory that waits for the bytes of buffer `index`, as far as the core tells.
    pub fn claims(&self) -> Vec<Claim> {
        self.core.claims().collect()
    }
}

/// The part of an fd that says whose it is.
fn number(index: u32) -> i32 {
    i32::try_from(100 + index).expect("a small index")
}
