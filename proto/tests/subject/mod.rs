//! The subject of the property test: our queue core, driven the way a session drives it, over a device that knows
//! no USERPTR. Synchronous, and otherwise as plain as the daemon's session ought to be.

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{
    PlanarBuffer, V4l2Buffer, V4l2CreateBuffers, V4l2RequestBuffers, buf_flag, memory,
};
use vidcompat_proto::queue::{Acquire, Backing, Claim, ClientKey, Delivery, Next, Queue};

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
}

impl Subject {
    pub fn new(device: Vb2Model, backing: u32, try_import: bool) -> Self {
        Self {
            core: Queue::new(),
            device,
            backing,
            try_import,
        }
    }

    pub fn close(&mut self) {
        self.device.close(OURS);
        self.core = Queue::new();
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
        self.core.reqbufs(arg)?;
        let mut request = V4l2RequestBuffers {
            memory: self.backing,
            flags: 0,
            ..*arg
        };
        if let Err(errno) = self.device.reqbufs(OURS, &mut request) {
            if !self.core.is_empty() && self.query_device(0).is_none() {
                self.core.freed();
            }
            return Err(errno);
        }
        self.core.freed();
        self.allocate(request.buf_type, 0, request.count);
        let capabilities = Queue::capabilities(request.capabilities);
        *arg = V4l2RequestBuffers {
            memory: memory::USERPTR,
            capabilities,
            ..request
        };
        Ok(())
    }

    pub fn create_bufs(&mut self, arg: &mut V4l2CreateBuffers) -> Result<(), Errno> {
        Self::no_imports(arg.memory)?;
        self.core.create_bufs(arg)?;
        let mut request = V4l2CreateBuffers {
            memory: self.backing,
            flags: 0,
            ..*arg
        };
        self.device.create_bufs(OURS, &mut request)?;
        if request.count > 0 {
            self.allocate(request.format.buf_type, request.index, request.count);
        }
        let capabilities = Queue::capabilities(request.capabilities);
        *arg = V4l2CreateBuffers {
            memory: memory::USERPTR,
            capabilities,
            ..request
        };
        Ok(())
    }

    /// The device has made buffers. Imports are tried only in a queue that was empty: the STREAMOFF that undoes
    /// them would cancel what is queued.
    fn allocate(&mut self, buf_type: u32, first: u32, count: u32) {
        self.device.dma_bufs.truncate(first as usize);
        for index in first..first + count {
            let mut fresh = V4l2Buffer {
                index,
                buf_type,
                ..V4l2Buffer::default()
            };
            self.device
                .querybuf(&mut fresh)
                .expect("a buffer that was just made");
            self.core.allocated(index, buf_type, &[fresh.length], 0);
            match self.backing {
                memory::DMABUF => {
                    let fd = i32::try_from(100 + index).expect("a small index");
                    self.device
                        .dma_bufs
                        .push((fd, fresh.length.next_multiple_of(4096)));
                }
                _ => self.device.map(index),
            }
        }
        if self.try_import && self.backing == memory::DMABUF && first == 0 && count > 0 {
            for index in 0..count {
                let fresh = V4l2Buffer {
                    index,
                    buf_type,
                    ..V4l2Buffer::default()
                };
                let mut tried =
                    Backing::give(&[self.backing_of(index)], &PlanarBuffer::single(fresh)).to_head();
                self.device
                    .prepare_buf(OURS, &UserMemory::NONE, &mut tried)
                    .expect("a good import");
            }
            self.device.streamoff(OURS, buf_type).expect("our own buffers");
        }
    }

    fn backing_of(&self, index: u32) -> Backing {
        if self.backing == memory::MMAP {
            return Backing::Mmap;
        }
        let (fd, length) = self.device.dma_bufs[index as usize];
        Backing::DmaBuf { fd, length }
    }

    fn reply(&self, device: &V4l2Buffer, asked: &V4l2Buffer) -> V4l2Buffer {
        let (device, asked) = (PlanarBuffer::single(*device), PlanarBuffer::single(*asked));
        self.core.reply(&device, &asked).to_head()
    }

    /// QUERYBUF of our own buffer `index`, if it exists.
    fn query_device(&self, index: u32) -> Option<V4l2Buffer> {
        let mut buffer = V4l2Buffer {
            index,
            buf_type: self.core.buf_type(),
            ..V4l2Buffer::default()
        };
        self.device.querybuf(&mut buffer).ok().map(|()| buffer)
    }

    pub fn querybuf(&mut self, arg: &mut V4l2Buffer) -> Result<(), Errno> {
        let mut answer = *arg;
        self.device.querybuf(&mut answer)?;
        *arg = self.reply(&answer, arg);
        Ok(())
    }

    pub fn qbuf(&mut self, user: &UserMemory<'_>, arg: &mut V4l2Buffer) -> Result<(), Errno> {
        let next = self.core.qbuf(&PlanarBuffer::single(*arg), ClientKey(user.mm))?;
        self.give(next, user, arg, false)
    }

    pub fn prepare_buf(&mut self, user: &UserMemory<'_>, arg: &mut V4l2Buffer) -> Result<(), Errno> {
        let next = self
            .core
            .prepare_buf(&PlanarBuffer::single(*arg), ClientKey(user.mm))?;
        self.give(next, user, arg, true)
    }

    /// What follows the core's check of a QBUF or PREPARE_BUF.
    fn give(
        &mut self,
        next: Next,
        user: &UserMemory<'_>,
        arg: &mut V4l2Buffer,
        is_prepare: bool,
    ) -> Result<(), Errno> {
        let index = arg.index;
        match next {
            Next::AskDevice => {
                let mut bare = Queue::without_references(&PlanarBuffer::single(*arg)).to_head();
                self.ask(&mut bare, is_prepare)?;
                panic!("the device took a buffer of a file that has none");
            }
            Next::Acquire(Acquire { all, new, then }) => {
                for (good, claim) in new.iter().enumerate() {
                    assert_eq!(claim.client, ClientKey(user.mm), "claim of another client");
                    if !(user.is_writable)(claim.client_addr, u64::from(claim.length)) {
                        self.core.acquire_failed(index, good);
                        return Err(Errno::EFAULT);
                    }
                }
                if let Err(errno) = then {
                    self.core.acquire_failed(index, new.len());
                    return Err(errno);
                }
                self.core.acquired(index, &all);
            }
            Next::Ready(claims) => assert_eq!(claims.len(), 1, "memory of a prepared buffer"),
        }
        let backing = [self.backing_of(index)];
        let mut buffer = self
            .core
            .for_device(&PlanarBuffer::single(*arg), &backing)
            .to_head();
        if let Err(errno) = self.ask(&mut buffer, is_prepare) {
            let flags = self.query_device(index).expect("our own buffer").flags;
            self.core.refused(index, flags);
            return Err(errno);
        }
        if is_prepare {
            self.core.prepared(index);
        } else {
            self.core.queued(index);
        }
        *arg = self.reply(&buffer, arg);
        Ok(())
    }

    /// QBUF or PREPARE_BUF of the device. No number of the client's may reach it that means something else here.
    fn ask(&mut self, buffer: &mut V4l2Buffer, is_prepare: bool) -> Result<(), Errno> {
        assert_eq!(
            (buffer.flags & buf_flag::REQUEST_FD, buffer.request_fd),
            (0, 0),
            "the client's request"
        );
        if buffer.memory == memory::DMABUF {
            let ours = self
                .device
                .dma_bufs
                .iter()
                .any(|(fd, _)| u64::from(fd.cast_unsigned()) == buffer.m);
            assert!(ours || buffer.m == 0, "the client's fd {}", buffer.m);
        } else {
            assert_eq!(buffer.m, 0, "the client's pointer or offset");
        }
        if is_prepare {
            self.device.prepare_buf(OURS, &UserMemory::NONE, buffer)
        } else {
            self.device.qbuf(OURS, &UserMemory::NONE, buffer)
        }
    }

    pub fn dqbuf(&mut self, arg: &mut V4l2Buffer) -> Result<Delivery, Errno> {
        self.core.dqbuf(arg.buf_type)?;
        let mut buffer = *arg;
        self.device.dqbuf(OURS, &mut buffer)?;
        let deliveries = self
            .core
            .dequeued(&PlanarBuffer::single(buffer))
            .expect("the device dequeued a buffer that it did not have");
        let [delivery] = deliveries[..] else {
            panic!("{deliveries:?} of one plane");
        };
        *arg = self.reply(&buffer, arg);
        Ok(delivery)
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
