//! QUERYBUF, QBUF, PREPARE_BUF, REMOVE_BUFS, STREAMON and STREAMOFF.

use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2Plane, V4l2RemoveBuffers, buf_type};
use vidcompat_proto::ioctl::QueueOp;
use vidcompat_proto::queue::{Acquire, Claim, Next, Queue};

use super::queues::{QueueState, Slot};
use super::{Requester, Session};
use crate::client::{BlockedThread, Client};
use crate::memory::BounceBuffer;

/// What was found in the client's memory, for what the core had asked: after so many good new planes, an errno. What
/// the device is to read is in `bounce` then, unless REQBUFS has made another buffer of that index meanwhile.
struct Seen {
    step: Acquire,
    bounce: Option<Arc<Vec<BounceBuffer>>>,
    outcome: Result<(), (usize, Errno)>,
}

impl Session {
    /// `VIDIOC_QUERYBUF`
    pub(super) fn querybuf(&self, asked: &PlanarBuffer) -> Result<PlanarBuffer, Errno> {
        let state = self.lock();
        let mut device = Queue::without_references(asked);
        self.node.buffer_ioctl(QueueOp::Querybuf, &mut device)?;
        let queue = state.queues.of(asked.head.buf_type);
        Ok(match &queue.imports {
            Some(imports) => imports.reply(&device, asked),
            None if queue.core.has(device.head.index) => queue.core.reply(&device, asked),
            None => strangers(&device, asked),
        })
    }

    /// `VIDIOC_QBUF` and `VIDIOC_PREPARE_BUF`: `op` says which.
    pub(super) fn give(
        &self,
        op: QueueOp,
        asked: &PlanarBuffer,
        who: Requester,
    ) -> Result<PlanarBuffer, Errno> {
        let caller = self.caller(who.tid)?;
        let (index, buf_type) = (asked.head.index, asked.head.buf_type);
        let mut seen: Option<Seen> = None;
        let mut state = loop {
            let mut state = self.lock();
            let queue = state.queues.of_mut(buf_type);
            if queue.imports.is_some() {
                drop(state);
                return self.give_import(op, asked, &caller);
            }
            let next = match op {
                QueueOp::PrepareBuf => queue.core.prepare_buf(asked, caller.client().key()),
                _ => queue.core.qbuf(asked, caller.client().key()),
            }?;
            let step = match next {
                Next::AskDevice => return Err(self.ask_why_not(op, asked)),
                // What the device fills is looked at once.
                Next::Ready(_) if !buf_type::is_output(buf_type) => break state,
                Next::Ready(all) => Acquire {
                    all,
                    new: Vec::new(),
                    then: Ok(()),
                },
                Next::Acquire(step) => step,
            };
            let bounce = queue.slots.get(&index).and_then(|slot| slot.planes.clone());
            let is_of = |seen: &Seen| {
                let address = |bounce: &Option<Arc<_>>| bounce.as_ref().map(Arc::as_ptr);
                seen.step == step && address(&seen.bounce) == address(&bounce)
            };
            match seen.take().filter(is_of) {
                Some(Seen { step, outcome, .. }) => {
                    if let Err((good, errno)) = outcome {
                        queue.core.acquire_failed(index, good);
                        return Err(errno);
                    }
                    if !step.new.is_empty() {
                        queue.core.acquired(index, &step.all);
                        if let Some(slot) = queue.slots.get_mut(&index) {
                            slot.client = Some(Arc::clone(caller.client()));
                        }
                    }
                    break state;
                }
                // Not under the lock: the memory may be slow on purpose. Then the core is asked again, for another
                // thread may have been faster.
                None => {
                    let owner = match step.new.is_empty() {
                        true => queue.slots.get(&index).and_then(|slot| slot.client.clone()),
                        false => None,
                    };
                    drop(state);
                    let outcome = self.look(&caller, owner.as_deref(), &step, buf_type, bounce.as_deref());
                    seen = Some(Seen {
                        step,
                        bounce,
                        outcome,
                    });
                }
            }
        };
        self.give_bounce(op, asked, state.queues.of_mut(buf_type))
    }

    fn give_bounce(
        &self,
        op: QueueOp,
        asked: &PlanarBuffer,
        queue: &mut QueueState,
    ) -> Result<PlanarBuffer, Errno> {
        let index = asked.head.index;
        let backing = queue.slots.get(&index).map(Slot::backing).unwrap_or_default();
        if backing.is_empty() {
            queue.core.acquire_failed(index, usize::MAX);
            return Err(Errno::ENOMEM);
        }
        let mut device = queue.core.for_device(asked, &backing);
        if let Err(errno) = self.node.buffer_ioctl(op, &mut device) {
            let mut now = PlanarBuffer::blank(asked.head.buf_type, index);
            // Where the device is gone it describes nothing, and nothing matters.
            let _ = self.node.buffer_ioctl(QueueOp::Querybuf, &mut now);
            queue.core.refused(index, &now);
            return Err(errno);
        }
        match op {
            QueueOp::PrepareBuf => queue.core.prepared(index),
            _ => queue.core.queued(index),
        }
        Ok(queue.core.reply(&device, asked))
    }

    /// Looks at the memory that is new and, where the device is to read it, fetches the bytes of all planes. A driver
    /// sees the memory itself from QBUF on; what the client writes after QBUF is lost here, as the specification allows.
    fn look(
        &self,
        caller: &BlockedThread,
        owner: Option<&Client>,
        step: &Acquire,
        buf_type: u32,
        bounce: Option<&Vec<BounceBuffer>>,
    ) -> Result<(), (usize, Errno)> {
        for (good, claim) in step.new.iter().enumerate() {
            self.check(caller, claim, buf_type)
                .map_err(|errno| (good, errno))?;
        }
        let good = step.new.len();
        step.then.map_err(|errno| (good, errno))?;
        let Some(bounce) = bounce.filter(|_| buf_type::is_output(buf_type)) else {
            return Ok(());
        };
        let client = owner.unwrap_or(caller.client());
        for (claim, plane) in step.all.iter().zip(bounce) {
            let access = plane.access();
            let len = plane.size().min(claim.length as usize);
            client
                .read(access.mapping(), len, claim.client_addr, Some(caller))
                .map_err(|_| (good, Errno::EFAULT))?;
        }
        Ok(())
    }

    fn check(&self, caller: &BlockedThread, claim: &Claim, buf_type: u32) -> Result<(), Errno> {
        let checked = if buf_type::is_output(buf_type) {
            caller.check_readable(claim.client_addr, claim.length)
        } else {
            caller.check_writable(claim.client_addr, claim.length)
        };
        checked.map_err(|fault| {
            tracing::debug!(
                device = %self.device.path().display(), pid = %caller.client().process(),
                client_addr = format_args!("{:#x}", claim.client_addr), length = claim.length, %fault,
                "QBUF refused: the memory is out of reach"
            );
            Errno::EFAULT
        })
    }

    /// This file has no buffers: the device says why the call fails.
    fn ask_why_not(&self, op: QueueOp, asked: &PlanarBuffer) -> Errno {
        match self.node.buffer_ioctl(op, &mut Queue::without_references(asked)) {
            Err(errno) => errno,
            Ok(()) => {
                tracing::error!(
                    device = %self.device.path().display(), ?op,
                    "the driver took a buffer that was never allocated; the client is told EINVAL"
                );
                Errno::EINVAL
            }
        }
    }

    /// `VIDIOC_REMOVE_BUFS`
    pub(super) fn remove_bufs(&self, request: &mut V4l2RemoveBuffers) -> Result<(), Errno> {
        // These may be the last.
        self.stop_watching();
        let mut state = self.lock();
        let asked = *request;
        self.node.remove_bufs(request)?;
        let queue = state.queues.of_mut(asked.buf_type);
        queue.removed(&asked);
        if queue.imports.is_some() && !self.has_buffers(queue, asked.buf_type) {
            // The next CREATE_BUFS may be for another memory.
            queue.imports = None;
            queue.core.serves_no_imports();
        }
        Ok(())
    }

    /// `VIDIOC_STREAMON` and `VIDIOC_STREAMOFF`: `op` says which.
    pub(super) fn stream(&self, op: QueueOp, buf_type: u32) -> Result<(), Errno> {
        let mut state = self.lock();
        self.node.stream(op, buf_type)?;
        let queue = state.queues.of_mut(buf_type);
        if op == QueueOp::Streamon {
            queue.core.streamon();
            return Ok(());
        }
        queue.streamoff();
        // A DQBUF that sleeps ends with what the device says now: EINVAL, it does not stream.
        drop(state);
        self.advance_dequeuer(buf_type);
        Ok(())
    }
}

/// Another file's buffer: what its pointers say is about a process that is not the asking one.
fn strangers(device: &PlanarBuffer, asked: &PlanarBuffer) -> PlanarBuffer {
    let mut reply = PlanarBuffer {
        head: device.head,
        planes: Queue::planes_of(device, asked),
    };
    let described = device.described().len();
    for plane in reply.planes.iter_mut().take(described) {
        *plane = V4l2Plane { m: 0, ..*plane };
    }
    reply.head.m = if reply.is_multi_planar() { asked.head.m } else { 0 };
    reply
}
