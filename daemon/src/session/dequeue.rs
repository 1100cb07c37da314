//! DQBUF: waiting for a buffer, and bringing its bytes to the client that queued it.

use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{V4l2Buffer, buf_flag};
use vidcompat_proto::ioctl::{QueueOp, queue_row};
use vidcompat_proto::queue::Delivery;
use zerocopy::IntoBytes;

use super::{Blocking, BoxedWaiter, Dequeuer, Session, State};
use crate::client::{BlockedThread, Client};
use crate::memory::BounceBuffer;

/// A buffer that the device has given back, its bytes not yet with the client.
struct Dequeued {
    reply: V4l2Buffer,
    /// `None`: the driver gave a buffer that it did not have.
    bytes: Option<(Delivery, Arc<BounceBuffer>, Arc<Client>)>,
}

impl Session {
    /// `VIDIOC_DQBUF`: `waiter` is answered now or later.
    pub fn dequeue(self: &Arc<Self>, argument: &V4l2Buffer, who: Blocking, mut waiter: BoxedWaiter) {
        if !self.device.knows(&self.node, queue_row(QueueOp::Dqbuf)) {
            return waiter.answer(Err(Errno::ENOTTY));
        }
        // Only for the way that the bytes take: whose they are was settled when they were queued.
        let caller = self.caller(who.tid).ok();
        let first = self.try_dequeue(&mut self.lock(), argument);
        if !matches!(first, Err(Errno::EAGAIN)) || self.is_nonblocking(who) {
            return self.finish(waiter, caller.as_ref(), first);
        }
        let mut state = self.lock();
        // Another thread may have gone to sleep meanwhile.
        let may_sleep = if state.ending {
            Err(Errno::ENODEV)
        } else {
            state.queue.dqbuf(argument)
        };
        if let Err(errno) = may_sleep {
            drop(state);
            return waiter.answer(Err(errno));
        }
        if !self.sleep(&mut waiter, Session::interrupt_dequeuer) {
            drop(state);
            return waiter.restart();
        }
        state.queue.set_waiting(true);
        state.dequeuer = Some(Dequeuer { waiter, caller });
        self.watch_for(&state);
        drop(state);
        // A buffer that came before the watch looked.
        self.advance_dequeuer();
    }

    /// Asks the device, without waiting.
    fn try_dequeue(&self, state: &mut State, argument: &V4l2Buffer) -> Result<Dequeued, Errno> {
        state.queue.dqbuf(argument)?;
        // Only what vb2 looks at. Its flags it would take for the driver's where the call fails, as a call of ours that
        // does not wait often does (videobuf2-v4l2.c:854).
        let mut device = V4l2Buffer {
            buf_type: argument.buf_type,
            memory: argument.memory,
            ..V4l2Buffer::default()
        };
        self.node.buffer_ioctl(QueueOp::Dqbuf, &mut device)?;
        let reply = state.queue.reply(&device);
        let delivery = state.queue.dequeued(&device);
        let slot = state.slots.get(device.index as usize);
        let memory = slot.and_then(|slot| Some((slot.buffer.clone()?, slot.client.clone()?)));
        Ok(Dequeued {
            reply,
            bytes: delivery
                .zip(memory)
                .map(|(delivery, (buffer, client))| (delivery, buffer, client)),
        })
    }

    fn finish(&self, waiter: BoxedWaiter, caller: Option<&BlockedThread>, outcome: Result<Dequeued, Errno>) {
        match outcome {
            Ok(dequeued) => {
                let reply = self.deliver(dequeued, caller);
                waiter.answer(Ok(reply.as_bytes()));
            }
            Err(errno) => waiter.answer(Err(errno)),
        }
    }

    /// Copies the frame. Where it cannot be delivered, because the client's memory has gone since QBUF, the buffer is
    /// flagged as the API flags damaged data: a driver would have written pages that nobody can see any more.
    fn deliver(&self, dequeued: Dequeued, caller: Option<&BlockedThread>) -> V4l2Buffer {
        let Dequeued { mut reply, bytes } = dequeued;
        let Some((delivery, buffer, client)) = bytes else {
            tracing::error!(device = %self.device.path().display(), index = reply.index, "the driver gave back a buffer that it did not have");
            reply.flags |= buf_flag::ERROR;
            return reply;
        };
        let access = buffer.read_access();
        let written = client.write(
            access.mapping(),
            delivery.bytes as usize,
            delivery.claim.client_addr,
            caller,
        );
        drop(access);
        if let Err(fault) = written {
            tracing::debug!(
                device = %self.device.path().display(), pid = %client.process(), index = reply.index, %fault,
                "a frame could not be delivered to the client; the buffer is flagged as damaged"
            );
            reply.flags |= buf_flag::ERROR;
        }
        reply
    }

    /// Serves the sleeping DQBUF if the device has an answer. Was there one?
    pub(super) fn advance_dequeuer(&self) -> bool {
        let mut state = self.lock();
        let Some(dequeuer) = state.dequeuer.take() else {
            return false;
        };
        state.queue.set_waiting(false);
        let argument = V4l2Buffer {
            buf_type: state.queue.buf_type(),
            ..V4l2Buffer::default()
        };
        match self.try_dequeue(&mut state, &argument) {
            Err(Errno::EAGAIN) => {
                state.queue.set_waiting(true);
                state.dequeuer = Some(dequeuer);
            }
            outcome => {
                drop(state);
                self.finish(dequeuer.waiter, dequeuer.caller.as_ref(), outcome);
            }
        }
        true
    }

    fn interrupt_dequeuer(&self, id: u64) {
        let mut state = self.lock();
        if let Some(dequeuer) = state.dequeuer.take_if(|dequeuer| dequeuer.waiter.id() == id) {
            state.queue.set_waiting(false);
            drop(state);
            dequeuer.waiter.restart();
        }
    }
}
