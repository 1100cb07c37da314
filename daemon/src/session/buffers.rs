//! QUERYBUF, QBUF, PREPARE_BUF, REMOVE_BUFS, STREAMON and STREAMOFF.

use std::collections::VecDeque;
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::{PlanarBuffer, V4l2Plane, V4l2RemoveBuffers, buf_type};
use vidcompat_proto::ioctl::QueueOp;
use vidcompat_proto::queue::{Acquire, Claim, Help, Next, Queue};
use zerocopy::{FromBytes, IntoBytes};

use super::adoption::{Before, Given};
use super::counters::Counters;
use super::ledger::{CallId, Done, UnderWay};
use super::proof::Proven;
use super::queues::{Slot, access};
use super::reconcile::query;
use super::serve::{How, Way};
use super::{Requester, Session, State};
use crate::client::{BlockedThread, Client};
use crate::memory::{BounceBuffer, Provider};
use crate::resolve::{Access, Importable, Importer, Look};
use crate::sys::{CpuUse, MemoryFault};

/// Why a dma-buf is copied that the policy allows.
const REFUSED: &str = "the device has refused its dma-buf";
const LOST: &str = "a frame has not arrived in its dma-buf";
const UNPROVEN: &str = "its dma-buf cannot be looked into, so nothing would show that frames arrive";

/// Is what the device is to get other than what was written down before?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    None,
    Memory,
}

/// What was found in the client's memory, for what the core had asked: the ways, or after so many good new planes an
/// errno. What the device is to read is in `bounce` then, unless REQBUFS has made another buffer of that index meanwhile.
struct Seen {
    step: Acquire,
    bounce: Option<Arc<Vec<BounceBuffer>>>,
    outcome: Result<Vec<Arc<Way>>, (usize, Errno)>,
}

/// What a look needs of the queue, whose lock it does not hold.
struct Behold {
    buf_type: u32,
    importer: Importer,
    counters: Arc<Counters>,
    bounce: Option<Arc<Vec<BounceBuffer>>>,
    remembered: Arc<Vec<Arc<Way>>>,
    /// The device holds what is remembered: it stays so.
    prepared: bool,
    refused: Vec<String>,
    proven: Arc<Proven>,
    recent: VecDeque<Arc<Way>>,
    /// Planes of `bounce` that are lent to a client: nothing of another pointer's goes there.
    lent: Vec<usize>,
}

impl Session {
    /// `VIDIOC_QUERYBUF`
    pub(super) fn querybuf(&self, asked: &PlanarBuffer) -> Result<PlanarBuffer, Errno> {
        let state = self.lock();
        let mut device = Queue::without_references(asked);
        self.node.buffer_ioctl(QueueOp::Querybuf, &mut device)?;
        let queue = state.queues.of(asked.head.buf_type);
        Ok(match &queue.passed {
            Some(passed) => passed.reply(&device, asked),
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
        if let Some(answer) = self.given_before(asked, who.call) {
            return answer;
        }
        let outcome = self.give_now(op, asked, who);
        if outcome.is_err() {
            // A call that fails may have let go of what the buffer had.
            self.commit_now();
        }
        outcome
    }

    /// The answer to a call that a daemon before us has done, and did not live to answer.
    fn given_before(&self, asked: &PlanarBuffer, call: CallId) -> Option<Result<PlanarBuffer, Errno>> {
        if !call.is_resent {
            return None;
        }
        let (index, buf_type) = (asked.head.index, asked.head.buf_type);
        let was_given = {
            let mut state = self.lock();
            let queue = state.queues.of_mut(buf_type);
            let was_given = queue.ledger.was_given(index, call);
            if was_given
                && let Some(passed) = &mut queue.passed
                && let Ok(device) = query(&self.node, buf_type, index)
            {
                passed.given_before(&device, asked);
            }
            self.commit(&state);
            was_given
        };
        was_given.then(|| self.querybuf(asked))
    }

    fn give_now(&self, op: QueueOp, asked: &PlanarBuffer, who: Requester) -> Result<PlanarBuffer, Errno> {
        let (index, buf_type) = (asked.head.index, asked.head.buf_type);
        let passed_alone = self
            .lock()
            .queues
            .of(buf_type)
            .passed
            .as_ref()
            .is_some_and(|passed| passed.needs_no_caller(&asked.head));
        if passed_alone {
            return self.give_passed(op, asked, None, who.call);
        }
        let caller = self.caller(who.tid)?;
        let mut seen: Option<Seen> = None;
        // Why nothing can be imported.
        let mut obstacle = None;
        loop {
            let mut state = self.lock();
            let queue = state.queues.of_mut(buf_type);
            if queue.passed.is_some() {
                drop(state);
                return self.give_passed(op, asked, Some(&caller), who.call);
            }
            let next = match op {
                QueueOp::PrepareBuf => queue.core.prepare_buf(asked, caller.client().key()),
                _ => queue.core.qbuf(asked, caller.client().key()),
            }?;
            let ways = queue.slots.get(&index).map(|slot| Arc::clone(&slot.ways));
            let ways = ways.unwrap_or_default();
            let prepared = matches!(next, Next::Prepared(_));
            let step = match next {
                Next::AskDevice => return Err(self.ask_why_not(op, asked)),
                // What the device holds it fills, and of plain memory the copy will tell: nothing is looked at twice.
                Next::Prepared(_) if !buf_type::is_output(buf_type) => {
                    return self.give_device(op, asked, &mut state, who.call, News::None);
                }
                Next::Ready(_) if !buf_type::is_output(buf_type) && ways.iter().all(|way| way.is_plain()) => {
                    return self.give_device(op, asked, &mut state, who.call, News::None);
                }
                Next::Ready(all) | Next::Prepared(all) => Acquire {
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
            let Some(Seen { step, outcome, .. }) = seen.take().filter(is_of) else {
                // Not under the lock: the memory may be slow on purpose. Then the core is asked again, for another
                // thread may have been faster.
                let behold = Behold {
                    buf_type,
                    importer: queue.importer.unwrap_or(Importer::Unknown),
                    counters: Arc::clone(&queue.counters),
                    bounce: bounce.clone(),
                    remembered: ways,
                    prepared,
                    refused: queue.refused.clone(),
                    proven: Arc::clone(&queue.proven),
                    recent: queue.recent.clone(),
                    lent: queue.planes_lent(index),
                };
                let owner = match step.new.is_empty() {
                    true => queue.slots.get(&index).and_then(|slot| slot.client.clone()),
                    false => None,
                };
                drop(state);
                let outcome = self.look(&caller, owner.as_deref(), &step, &behold, obstacle);
                seen = Some(Seen {
                    step,
                    bounce,
                    outcome,
                });
                continue;
            };
            let ways = match outcome {
                Ok(ways) => ways,
                Err((good, errno)) => {
                    queue.core.acquire_failed(index, good);
                    return Err(errno);
                }
            };
            let given = Given {
                index,
                buf_type,
                ways: &ways,
                is_new: !step.new.is_empty(),
                has_shim: who.help == Help::Shim,
                obstacle,
                caller: &caller,
            };
            match self.before_giving(queue, &given) {
                Before::Nothing => {}
                Before::LookAgain => {
                    // Other memory of ours.
                    self.commit(&state);
                    continue;
                }
                Before::Fail(errno) => return Err(errno),
                Before::MakeImporting => {
                    drop((ways, bounce));
                    obstacle = self.make_importing(state, buf_type, who.tid);
                    continue;
                }
            }
            let imports = ways.iter().any(|way| way.backing().is_some());
            if imports && queue.provider == Some(Provider::Exporter) {
                drop((ways, bounce));
                obstacle = self.make_importing(state, buf_type, who.tid);
                continue;
            }
            if !step.new.is_empty() {
                queue.core.acquired(index, &step.all);
            }
            // Of our own dma-bufs it has taken all: what it refuses now is not the memory.
            let is_foreign = |way: &Arc<Way>| way.backing().is_some() && !queue.adoption.has(&way.claim);
            let may_be_memory = obstacle.is_none() && ways.iter().any(is_foreign);
            let mut news = if step.new.is_empty() {
                News::None
            } else {
                News::Memory
            };
            if let Some(slot) = queue.slots.get_mut(&index) {
                let shape = |ways: &[Arc<Way>]| ways.iter().map(|way| way.is_imported()).collect::<Vec<_>>();
                if shape(&slot.ways) != shape(&ways) {
                    news = News::Memory;
                }
                slot.ways = Arc::new(ways);
                if !step.new.is_empty() {
                    slot.client = Some(Arc::clone(caller.client()));
                }
            }
            let outcome = self.give_device(op, asked, &mut state, who.call, news);
            let queue = state.queues.of_mut(buf_type);
            match outcome {
                Err(errno) if may_be_memory => {
                    tracing::debug!(
                        device = %self.device.path().display(), index, %errno,
                        "the device does not take the client's own dma-buf: it is copied"
                    );
                    obstacle = Some(REFUSED);
                }
                outcome => {
                    // That it was the import that was refused is known when the copy was not.
                    if outcome.is_ok() && obstacle == Some(REFUSED) {
                        queue.remember_refusal(index);
                    }
                    return outcome;
                }
            }
        }
    }

    /// The device gets buffer `index`, with the memory of its slot.
    fn give_device(
        &self,
        op: QueueOp,
        asked: &PlanarBuffer,
        state: &mut State,
        call: CallId,
        news: News,
    ) -> Result<PlanarBuffer, Errno> {
        let (index, buf_type) = (asked.head.index, asked.head.buf_type);
        let queue = state.queues.of_mut(buf_type);
        let slot = queue.slots.get(&index);
        let backing = slot.map(Slot::backing).unwrap_or_default();
        if backing.is_empty() {
            queue.core.acquire_failed(index, usize::MAX);
            return Err(Errno::ENOMEM);
        }
        let ways = slot.map(|slot| Arc::clone(&slot.ways)).unwrap_or_default();
        if buf_type::is_output(asked.head.buf_type) {
            // Before the device reads it.
            ways.iter().for_each(|way| way.sync(CpuUse::Write));
        }
        let mut device = queue.core.for_device(asked, &backing);
        if news == News::Memory || buf_type::is_output(buf_type) {
            // The device will tell that it has the buffer, and not what was to be in it.
            self.commit(state);
        }
        let queue = state.queues.of_mut(buf_type);
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
        queue.given(&ways);
        queue.ledger.given(op, index, call);
        let reply = queue.core.reply(&device, asked);
        self.commit(state);
        Ok(reply)
    }

    /// Finds the ways of all planes and, where the device is to read them, fetches the bytes. A driver sees the memory
    /// itself from QBUF on; what the client writes after QBUF to memory that is copied is lost here, as the specification
    /// allows.
    fn look(
        &self,
        caller: &BlockedThread,
        owner: Option<&Client>,
        step: &Acquire,
        behold: &Behold,
        obstacle: Option<&'static str>,
    ) -> Result<Vec<Arc<Way>>, (usize, Errno)> {
        let look = self.look_of(caller, behold.buf_type, behold.importer);
        let mut good = 0;
        let mut ways = Vec::new();
        for (at, claim) in step.all.iter().enumerate() {
            if let Some(way) = behold.remembered.get(at).filter(|_| behold.prepared) {
                ways.push(Arc::clone(way));
                continue;
            }
            if !step.new.contains(claim) {
                let remembered = behold.remembered.get(at).filter(|way| way.claim == *claim);
                let way = self.look_again(&look, remembered, *claim, behold, obstacle);
                ways.push(proving(&look, way, behold).unwrap_or_else(|_| Arc::new(Way::gone(*claim))));
                continue;
            }
            let way = self.way(&look, *claim, behold, obstacle);
            let way = way.and_then(|way| proving(&look, way, behold)).map_err(|fault| {
                behold.counters.add(|counters| &counters.faults, 1);
                tracing::debug!(
                    device = %self.device.path().display(), client_pid = %caller.client().process(),
                    client_addr = format_args!("{:#x}", claim.client_addr), length = claim.length, %fault,
                    "QBUF refused: the memory is out of reach"
                );
                (good, Errno::EFAULT)
            })?;
            good += 1;
            ways.push(way);
        }
        step.then.map_err(|errno| (good, errno))?;
        let Some(bounce) = behold
            .bounce
            .as_ref()
            .filter(|_| buf_type::is_output(behold.buf_type))
        else {
            return Ok(ways);
        };
        let client = owner.unwrap_or(caller.client());
        let is_lent = |(at, way): (usize, &Arc<Way>)| way.backing().is_none() && behold.lent.contains(&at);
        if ways.iter().enumerate().any(is_lent) {
            // There will be another look, with other memory.
            return Ok(ways);
        }
        for (way, plane) in ways
            .iter()
            .zip(bounce.iter())
            .filter(|(way, _)| way.backing().is_none())
        {
            way.fetch(plane, client, Some(caller), &behold.counters)
                .map_err(|_| (good, Errno::EFAULT))?;
        }
        Ok(ways)
    }

    /// The way of memory that was queued before, if nothing has changed; of what has changed, the new one. A driver would
    /// not look again, and go on with pages that the client no longer sees.
    fn look_again(
        &self,
        look: &Look<'_>,
        remembered: Option<&Arc<Way>>,
        claim: Claim,
        behold: &Behold,
        obstacle: Option<&'static str>,
    ) -> Arc<Way> {
        let holds = |way: &&Arc<Way>| {
            let forbidden = obstacle.is_some() && way.backing().is_some();
            !forbidden && (way.is_plain() || way.still_holds(look.client))
        };
        if let Some(way) = remembered.filter(holds) {
            behold.counters.add(|counters| &counters.remembered, 1);
            return Arc::clone(way);
        }
        let way = self.way(look, claim, behold, obstacle);
        way.unwrap_or_else(|_| Arc::new(Way::gone(claim)))
    }

    /// The way of memory that this buffer has not had before: perhaps another buffer has.
    fn way(
        &self,
        look: &Look<'_>,
        claim: Claim,
        behold: &Behold,
        obstacle: Option<&'static str>,
    ) -> Result<Arc<Way>, MemoryFault> {
        let recent = behold.recent.iter().find(|way| way.claim == claim);
        if let Some(way) = recent.filter(|way| obstacle.is_none() && way.still_holds(look.client)) {
            behold.counters.add(|counters| &counters.remembered, 1);
            return Ok(Arc::clone(way));
        }
        behold.counters.add(|counters| &counters.resolves, 1);
        let may_import = |importable: &Importable| match obstacle {
            Some(why) => Err(why),
            None if behold.refused.contains(&importable.exporter) => Err(REFUSED),
            None if behold.proven.of(importable.inode) == Some(false) => Err(LOST),
            None => Ok(()),
        };
        Way::find(look, claim, may_import).map(Arc::new)
    }

    /// A look at what `caller` has mapped, for a queue of `buf_type`.
    pub(super) fn look_of<'a>(
        &'a self,
        caller: &'a BlockedThread,
        buf_type: u32,
        importer: Importer,
    ) -> Look<'a> {
        Look {
            client: caller,
            access: access(buf_type),
            importer,
            policy: self.device.policy(),
            own: self.device.own(),
        }
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
    pub(super) fn remove_bufs(&self, request: &mut V4l2RemoveBuffers, call: CallId) -> Result<(), Errno> {
        // These may be the last.
        self.stop_watching();
        let mut state = self.lock();
        let asked = *request;
        if let Some(answer) = state.queues.of(asked.buf_type).ledger.answer(call) {
            *request = V4l2RemoveBuffers::read_from_bytes(answer).map_err(|_| Errno::EIO)?;
            return Ok(());
        }
        let removing = UnderWay::Removing {
            by: call.unique,
            first: asked.index,
            count: asked.count,
        };
        self.under_way(&mut state, asked.buf_type, Some(removing));
        let outcome = self.remove_now(&mut state, &asked, request);
        let ledger = &mut state.queues.of_mut(asked.buf_type).ledger;
        ledger.done = outcome.is_ok().then(|| Done {
            by: call.unique,
            answer: request.as_bytes().to_vec(),
        });
        self.under_way(&mut state, asked.buf_type, None);
        outcome
    }

    fn remove_now(
        &self,
        state: &mut State,
        asked: &V4l2RemoveBuffers,
        request: &mut V4l2RemoveBuffers,
    ) -> Result<(), Errno> {
        self.node.remove_bufs(request)?;
        self.buffers_removed(state, asked);
        Ok(())
    }

    /// The device has removed these.
    pub(super) fn buffers_removed(&self, state: &mut State, asked: &V4l2RemoveBuffers) {
        let queue = state.queues.of_mut(asked.buf_type);
        queue.removed(asked);
        if queue.passed.is_some() && !self.has_buffers(queue, asked.buf_type) {
            // The next CREATE_BUFS may be for another memory.
            queue.passed = None;
            queue.core.passes_no_more();
        }
    }

    /// `VIDIOC_STREAMON` and `VIDIOC_STREAMOFF`: `op` says which.
    pub(super) fn stream(&self, op: QueueOp, buf_type: u32) -> Result<(), Errno> {
        let mut state = self.lock();
        if op == QueueOp::Streamon {
            self.node.stream(op, buf_type)?;
            state.queues.of_mut(buf_type).core.streamon();
            self.commit(&state);
            return Ok(());
        }
        // That they all have come back one by one is what the device would tell.
        self.under_way(&mut state, buf_type, Some(UnderWay::Streamoff));
        let outcome = self.node.stream(op, buf_type);
        if outcome.is_ok() {
            state.queues.of_mut(buf_type).streamoff();
        }
        self.under_way(&mut state, buf_type, None);
        outcome?;
        // A DQBUF that sleeps ends with what the device says now: EINVAL, it does not stream.
        drop(state);
        self.advance_dequeuer(buf_type);
        Ok(())
    }
}

/// `way` with a proof in it, if it needs one; copied, if none can be had.
fn proving(look: &Look<'_>, way: Arc<Way>, behold: &Behold) -> Result<Arc<Way>, MemoryFault> {
    if let How::Import(importable) = &way.how
        && look.access == Access::Write
        && behold.proven.of(importable.inode).is_none()
        && way.prove().is_err()
    {
        return Way::find(look, way.claim, |_| Err(UNPROVEN)).map(Arc::new);
    }
    Ok(way)
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
