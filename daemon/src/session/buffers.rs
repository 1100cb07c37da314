//! QUERYBUF, QBUF, PREPARE_BUF, STREAMON and STREAMOFF.

use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::V4l2Buffer;
use vidcompat_proto::ioctl::QueueOp;
use vidcompat_proto::queue::{Claim, Next, Queue};

use super::{Session, State};
use crate::client::BlockedThread;

impl Session {
    /// `VIDIOC_QUERYBUF`
    pub(super) fn querybuf(&self, buffer: &mut V4l2Buffer) -> Result<(), Errno> {
        let state = self.lock();
        let mut device = Queue::without_references(buffer);
        self.node.buffer_ioctl(QueueOp::Querybuf, &mut device)?;
        *buffer = if state.queue.is_empty() {
            // Another file's buffer. What its `m` says is about a process that is not the asking one.
            V4l2Buffer { m: 0, ..device }
        } else {
            state.queue.reply(&device)
        };
        Ok(())
    }

    /// `VIDIOC_QBUF` and `VIDIOC_PREPARE_BUF`: `op` says which.
    pub(super) fn give(&self, op: QueueOp, buffer: &mut V4l2Buffer, tid: u32) -> Result<(), Errno> {
        let caller = self.caller(tid)?;
        let mut checked = None;
        let mut state = loop {
            let mut state = self.lock();
            let next = match op {
                QueueOp::PrepareBuf => state.queue.prepare_buf(buffer, caller.client().key()),
                _ => state.queue.qbuf(buffer, caller.client().key()),
            }?;
            match (next, checked) {
                (Next::AskDevice, _) => return self.ask_why_not(op, buffer),
                (Next::Ready, _) => break state,
                (Next::Acquire(claim), Some((same, outcome))) if same == claim => {
                    if let Err(errno) = outcome {
                        state.queue.acquire_failed(buffer.index);
                        return Err(errno);
                    }
                    state.queue.acquired(buffer.index, claim);
                    if let Some(slot) = state.slots.get_mut(buffer.index as usize) {
                        slot.client = Some(Arc::clone(caller.client()));
                    }
                    break state;
                }
                // Not under the lock: the memory may be slow on purpose. Then the core is asked again, for another
                // thread may have been faster.
                (Next::Acquire(claim), _) => {
                    drop(state);
                    checked = Some((claim, self.check(&caller, claim)));
                }
            }
        };
        let bounce = state
            .slots
            .get(buffer.index as usize)
            .and_then(|slot| slot.buffer.clone());
        let Some(bounce) = bounce else {
            state.queue.acquire_failed(buffer.index);
            return Err(Errno::ENOMEM);
        };
        let mut device = Queue::for_device(buffer, bounce.backing());
        if let Err(errno) = self.node.buffer_ioctl(op, &mut device) {
            self.refused(&mut state, buffer);
            return Err(errno);
        }
        match op {
            QueueOp::PrepareBuf => state.queue.prepared(buffer.index),
            _ => state.queue.queued(buffer.index),
        }
        *buffer = state.queue.reply(&device);
        Ok(())
    }

    fn check(&self, caller: &BlockedThread, claim: Claim) -> Result<(), Errno> {
        caller
            .check_writable(claim.client_addr, claim.length)
            .map_err(|fault| {
                tracing::debug!(
                    device = %self.device.path().display(), pid = %caller.client().process(),
                    client_addr = format_args!("{:#x}", claim.client_addr), length = claim.length, %fault,
                    "QBUF refused: the frame could not be written there"
                );
                Errno::EFAULT
            })
    }

    /// This file has no buffers: the device says why the call fails.
    fn ask_why_not(&self, op: QueueOp, buffer: &V4l2Buffer) -> Result<(), Errno> {
        match self.node.buffer_ioctl(op, &mut Queue::without_references(buffer)) {
            Err(errno) => Err(errno),
            Ok(()) => {
                tracing::error!(
                    device = %self.device.path().display(), ?op,
                    "the driver took a buffer that was never allocated; the client is told EINVAL"
                );
                Err(Errno::EINVAL)
            }
        }
    }

    fn refused(&self, state: &mut State, buffer: &V4l2Buffer) {
        let mut now = V4l2Buffer {
            index: buffer.index,
            buf_type: buffer.buf_type,
            ..V4l2Buffer::default()
        };
        let flags = self
            .node
            .buffer_ioctl(QueueOp::Querybuf, &mut now)
            .map_or(0, |()| now.flags);
        state.queue.refused(buffer.index, flags);
    }

    /// `VIDIOC_STREAMON` and `VIDIOC_STREAMOFF`: `op` says which.
    pub(super) fn stream(&self, op: QueueOp, buf_type: u32) -> Result<(), Errno> {
        let mut state = self.lock();
        self.node.stream(op, buf_type)?;
        if op == QueueOp::Streamon {
            state.queue.streamon();
            return Ok(());
        }
        state.queue.streamoff();
        // A DQBUF that sleeps ends with what the device says now: EINVAL, it does not stream.
        drop(state);
        self.advance_dequeuer();
        Ok(())
    }
}
