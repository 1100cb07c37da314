//! DQBUF: waiting for a buffer, and bringing its bytes to the client that queued it.

use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2Buffer, buf_flag};
use vidcompat_proto::ioctl::{QueueOp, queue_row};
use vidcompat_proto::queue::Delivery;
use zerocopy::IntoBytes;

use super::counters::{Counters, Since};
use super::ledger::CallId;
use super::proof::Proven;
use super::queues::QueueState;
use super::serve::Way;
use super::{Blocking, BoxedWaiter, Requester, Session, State};
use crate::client::{BlockedThread, Client};
use crate::memory::BounceBuffer;
use crate::resolve::Importer;
use crate::sys::MemoryFault;

/// One that sleeps in DQBUF, and the thread of its client that is blocked in it, where we can name that.
pub(super) struct Dequeuer {
    waiter: BoxedWaiter,
    caller: Option<BlockedThread>,
    asked: PlanarBuffer,
    who: Requester,
    since: Since,
}

impl Dequeuer {
    pub(super) fn into_waiter(self) -> BoxedWaiter {
        self.waiter
    }

    fn answer(self, outcome: Result<V4l2Buffer, Errno>) {
        match outcome {
            Ok(reply) => self.waiter.answer(Ok(reply.as_bytes())),
            Err(errno) => self.waiter.answer(Err(errno)),
        }
    }
}

/// A buffer that the device has given back, its bytes not yet with the client.
struct Dequeued {
    reply: PlanarBuffer,
    bytes: Bytes,
    /// Of its queue.
    counters: Arc<Counters>,
}

/// One that sleeps no more, and the device's answer.
pub(super) struct Answered {
    dequeuer: Dequeuer,
    outcome: Result<Dequeued, Errno>,
}

enum Bytes {
    /// An OUTPUT buffer, or one of a queue that is passed.
    None,
    /// Plane by plane, each its own way.
    Served(Vec<Delivery>, Served),
    /// There is no memory behind the buffer.
    Unknown,
}

struct Served {
    ways: Arc<Vec<Arc<Way>>>,
    /// None where there was no memory, and everything is imported.
    bounce: Option<Arc<Vec<BounceBuffer>>>,
    client: Arc<Client>,
    importer: Importer,
    counters: Arc<Counters>,
    proven: Arc<Proven>,
    damaged: bool,
}

/// The bytes of the buffer that `reply` tells of, and where they belong.
fn bytes_of(queue: &QueueState, reply: &PlanarBuffer, deliveries: Vec<Delivery>) -> Bytes {
    if deliveries.is_empty() {
        return Bytes::None;
    }
    let served = queue.slots.get(&reply.head.index).and_then(|slot| {
        Some(Served {
            ways: Arc::clone(&slot.ways),
            bounce: slot.planes.clone(),
            client: slot.client.clone()?,
            importer: queue.importer.unwrap_or(Importer::Unknown),
            counters: Arc::clone(&queue.counters),
            proven: Arc::clone(&queue.proven),
            damaged: reply.head.flags & buf_flag::ERROR != 0,
        })
    });
    served.map_or(Bytes::Unknown, |served| Bytes::Served(deliveries, served))
}

impl Session {
    /// `VIDIOC_DQBUF`: `waiter` is answered now or later.
    pub fn dequeue(self: &Arc<Self>, argument: &V4l2Buffer, blocking: Blocking, waiter: BoxedWaiter) {
        let (who, since) = (blocking.who, Since::asked());
        if !self.device.knows(&self.node, queue_row(QueueOp::Dqbuf)) {
            return waiter.answer(Err(Errno::ENOTTY));
        }
        let asked = match self.fetch_planes(*argument, who) {
            Ok(asked) => asked,
            Err(errno) => return waiter.answer(Err(errno)),
        };
        let buf_type = argument.buf_type;
        let passed = self.lock().queues.of(buf_type).passed.is_some();
        let mut dequeuer = Dequeuer {
            waiter,
            // Only for the way that the bytes take: whose they are was settled when they were queued.
            caller: (!passed).then(|| self.caller(who.tid).ok()).flatten(),
            asked,
            who,
            since,
        };
        if let Some(again) = self.dequeued_before(&dequeuer) {
            return self.finish(dequeuer, Ok(again));
        }
        let first = self.try_dequeue(&mut self.lock(), &dequeuer.asked, who.call);
        if !matches!(first, Err(Errno::EAGAIN)) || self.is_nonblocking(blocking) {
            return self.finish(dequeuer, first);
        }
        let mut state = self.lock();
        // Another thread may have gone to sleep meanwhile.
        let may_sleep = if state.ending {
            Err(Errno::ENODEV)
        } else {
            state.queues.of(buf_type).core.dqbuf(buf_type)
        };
        if let Err(errno) = may_sleep {
            drop(state);
            return dequeuer.answer(Err(errno));
        }
        if !self.sleep(&mut dequeuer.waiter, Session::interrupt_dequeuer) {
            drop(state);
            return dequeuer.waiter.restart();
        }
        let queue = state.queues.of_mut(buf_type);
        queue.core.set_waiting(true);
        queue.dequeuer = Some(dequeuer);
        self.watch_anew(&state, buf_type);
        drop(state);
        // A buffer that came before the watch looked.
        self.advance_dequeuer(buf_type);
    }

    /// Asks the device, without waiting.
    fn try_dequeue(&self, state: &mut State, asked: &PlanarBuffer, call: CallId) -> Result<Dequeued, Errno> {
        let dequeued = self.dequeue_one(state, asked)?;
        if self.is_kept() {
            let ledger = &mut state.queues.of_mut(asked.head.buf_type).ledger;
            ledger.returned(&dequeued.reply, call);
            self.commit(state);
        }
        Ok(dequeued)
    }

    /// What request `dequeuer` has got already, from a daemon before us that did not live to answer it. Its bytes are
    /// brought once more.
    fn dequeued_before(&self, dequeuer: &Dequeuer) -> Option<Dequeued> {
        let call = dequeuer.who.call;
        if !call.is_resent {
            return None;
        }
        let state = self.lock();
        let queue = state.queues.of(dequeuer.asked.head.buf_type);
        let reply = queue.ledger.was_returned(call)?.clone();
        let deliveries = match queue.passed {
            Some(_) => Vec::new(),
            None => queue.core.deliveries(&reply)?,
        };
        let bytes = bytes_of(queue, &reply, deliveries);
        Some(Dequeued {
            reply,
            bytes,
            counters: Arc::clone(&queue.counters),
        })
    }

    fn dequeue_one(&self, state: &mut State, asked: &PlanarBuffer) -> Result<Dequeued, Errno> {
        let buf_type = asked.head.buf_type;
        let queue = state.queues.of_mut(buf_type);
        queue.core.dqbuf(buf_type)?;
        // Only what vb2 looks at. Its flags it would take for the driver's where the call fails, as a call of ours that
        // does not wait often does (videobuf2-v4l2.c:854). Planes as many as the client has room for: with too few a
        // driver gives no buffer away.
        let mut device = match queue.ledger.next_lost() {
            // A daemon before us has got it, and nobody was told.
            Some(index) => self.query(buf_type, index)?,
            None => {
                let mut device = PlanarBuffer::blank(buf_type, 0);
                device.head.memory = asked.head.memory;
                device.planes.truncate(asked.planes.len());
                self.node.buffer_ioctl(QueueOp::Dqbuf, &mut device)?;
                device
            }
        };
        let index = device.head.index;
        if let Some(passed) = &mut queue.passed {
            passed.dequeued(index);
            queue.counters.frame(passed.served());
            return Ok(Dequeued {
                reply: passed.reply(&device, asked),
                bytes: Bytes::None,
                counters: Arc::clone(&queue.counters),
            });
        }
        // Told before it answers: what the core hides of a buffer that is with the device it no longer hides.
        let Some(deliveries) = queue.core.dequeued(&mut device) else {
            tracing::debug!(
                device = %self.device.path().display(), index,
                "the driver, which is no vb2 driver, has a frame that no buffer waits for; it is dropped"
            );
            return Err(Errno::EAGAIN);
        };
        let reply = queue.core.reply(&device, asked);
        let slot = queue.slots.get(&device.head.index);
        queue.count(slot.map(|slot| &slot.ways[..]).unwrap_or_default());
        let bytes = bytes_of(queue, &reply, deliveries);
        Ok(Dequeued {
            reply,
            bytes,
            counters: Arc::clone(&queue.counters),
        })
    }

    fn finish(&self, dequeuer: Dequeuer, outcome: Result<Dequeued, Errno>) {
        let reply = outcome.and_then(|dequeued| {
            let counters = Arc::clone(&dequeued.counters);
            let reply = self.deliver(dequeued, dequeuer.caller.as_ref());
            self.store_planes(&reply, &dequeuer.asked.head, dequeuer.who)?;
            counters.answered(dequeuer.since, &reply.head);
            Ok(reply.to_head())
        });
        dequeuer.answer(reply);
    }

    /// Copies the frame. Where it cannot be delivered, because the client's memory has gone since QBUF, the buffer is
    /// flagged as the API flags damaged data: a driver would have written pages that nobody can see any more.
    fn deliver(&self, dequeued: Dequeued, caller: Option<&BlockedThread>) -> PlanarBuffer {
        let Dequeued { mut reply, bytes, .. } = dequeued;
        match bytes {
            Bytes::None => {}
            Bytes::Unknown => {
                tracing::error!(
                    device = %self.device.path().display(), index = reply.head.index,
                    "there is no memory behind a buffer that the driver gave back"
                );
                reply.head.flags |= buf_flag::ERROR;
            }
            Bytes::Served(deliveries, served) => {
                for (at, delivery) in deliveries.iter().enumerate() {
                    if let Err(fault) = self.deliver_plane(at, delivery, &served, reply.head.buf_type, caller)
                    {
                        tracing::debug!(
                            device = %self.device.path().display(), client_pid = %served.client.process(),
                            index = reply.head.index, %fault,
                            "a frame could not be delivered to the client; the buffer is flagged as damaged"
                        );
                        served.counters.add(|counters| &counters.faults, 1);
                        reply.head.flags |= buf_flag::ERROR;
                    }
                }
            }
        }
        reply
    }

    fn deliver_plane(
        &self,
        at: usize,
        delivery: &Delivery,
        served: &Served,
        buf_type: u32,
        caller: Option<&BlockedThread>,
    ) -> Result<(), MemoryFault> {
        let Served { client, counters, .. } = served;
        let way = served.ways.get(at).ok_or(MemoryFault::Fault)?;
        if way.is_inherited() {
            return match self.find_inherited(delivery, served, buf_type, caller) {
                Some(found) => {
                    found.prove_by(way.marks());
                    self.show(&found, delivery, served, false)
                }
                None => Ok(()),
            };
        }
        if way.backing().is_some() {
            return self.show(way, delivery, served, true);
        }
        let bounce = served.bounce.as_ref().and_then(|bounce| bounce.get(at));
        let bounce = bounce.ok_or(MemoryFault::Fault)?;
        let len = delivery.bytes as usize;
        // The mappings can only be looked at for the client itself; what another process dequeues goes where it
        // belonged at QBUF.
        let owner = caller.filter(|caller| caller.client().key() == client.key());
        let delivered = match owner {
            Some(owner) if !way.is_plain() && !way.still_holds(owner) => Err(MemoryFault::Fault),
            _ => way.deliver(bounce, len, client, caller, counters),
        };
        match (delivered, owner) {
            // Something else may have been mapped there since.
            (Err(MemoryFault::Fault), Some(owner)) => {
                let look = self.look_of(owner, buf_type, served.importer);
                counters.add(|counters| &counters.resolves, 1);
                let way = Way::find(&look, delivery.claim, |_| {
                    Err("the frame has been captured already")
                })?;
                way.deliver(bounce, len, client, caller, counters)
            }
            (delivered, _) => delivered,
        }
    }

    /// The device has written to the client's own memory. `is_ours`: we have given it ourselves. Else a daemon before us may
    /// have looked for its words and taken them away, which looks as if a frame had come.
    fn show(
        &self,
        way: &Way,
        delivery: &Delivery,
        served: &Served,
        is_ours: bool,
    ) -> Result<(), MemoryFault> {
        way.show();
        // Of a frame that the driver calls damaged nothing need have arrived.
        let arrived = (!served.damaged).then(|| way.arrived(delivery.bytes as usize));
        match arrived.flatten() {
            Some((inode, arrived)) => {
                if is_ours || !arrived {
                    served.proven.set(inode, arrived);
                }
                self.tell_lost(way, arrived)
            }
            None => Ok(()),
        }
    }

    /// What a daemon before us gave the device of the client's own memory: whoever dequeues finds the dma-buf once more.
    fn find_inherited(
        &self,
        delivery: &Delivery,
        served: &Served,
        buf_type: u32,
        caller: Option<&BlockedThread>,
    ) -> Option<Way> {
        let owner = caller.filter(|caller| caller.client().key() == served.client.key())?;
        let look = self.look_of(owner, buf_type, served.importer);
        Way::find(&look, delivery.claim, |_| Ok(())).ok()
    }

    fn tell_lost(&self, way: &Way, arrived: bool) -> Result<(), MemoryFault> {
        if arrived {
            return Ok(());
        }
        if self.device.may_complain() {
            tracing::warn!(
                device = %self.device.path().display(), what = way.what(),
                "the device has taken a dma-buf, and its frame has not arrived there: frames are copied from now on"
            );
        }
        Err(MemoryFault::Fault)
    }

    /// Serves the DQBUF that sleeps on the queue of `buf_type` if the device has an answer. Was there one?
    pub(super) fn advance_dequeuer(&self, buf_type: u32) -> bool {
        let mut state = self.lock();
        let sleeps = state.queues.of(buf_type).dequeuer.is_some();
        let answered = self.answered(&mut state, buf_type);
        drop(state);
        if let Some(answered) = answered {
            self.tell(answered);
        }
        sleeps
    }

    /// The DQBUF that sleeps on the queue of `buf_type`, if the device has an answer: to be told without the lock.
    pub(super) fn answered(&self, state: &mut State, buf_type: u32) -> Option<Answered> {
        let queue = state.queues.of_mut(buf_type);
        let mut dequeuer = queue.dequeuer.take()?;
        queue.core.set_waiting(false);
        dequeuer.since.is_ready();
        match self.try_dequeue(state, &dequeuer.asked, dequeuer.who.call) {
            Err(Errno::EAGAIN) => {
                let queue = state.queues.of_mut(buf_type);
                queue.core.set_waiting(true);
                queue.dequeuer = Some(dequeuer);
                if self.device.is_no_vb2(buf_type) {
                    self.watch_anew(state, buf_type);
                }
                None
            }
            outcome => Some(Answered { dequeuer, outcome }),
        }
    }

    /// Brings the bytes and ends the call.
    pub(super) fn tell(&self, answered: Answered) {
        self.finish(answered.dequeuer, answered.outcome);
    }

    fn interrupt_dequeuer(&self, id: u64) {
        let mut state = self.lock();
        let mut found = None;
        for queue in state.queues.each_mut() {
            if let Some(dequeuer) = queue.dequeuer.take_if(|dequeuer| dequeuer.waiter.id() == id) {
                queue.core.set_waiting(false);
                found = Some(dequeuer);
            }
        }
        drop(state);
        if let Some(dequeuer) = found {
            dequeuer.waiter.restart();
        }
    }
}
