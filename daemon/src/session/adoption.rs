//! Adoption: which of a client's plain buffers become the device's own memory, by exchange in the client's address space.
//!
//! The client shim does the exchange; what is decided here is which buffers are worth it and safe, and what is remembered
//! is which of our dma-bufs are lent. From then on `resolve` finds our own buffer behind the pointer, and imports it: the
//! rest of the session knows nothing of adoption, but that memory which is lent is no bounce buffer.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use vidcompat_proto::Errno;
use vidcompat_proto::queue::{Claim, ClientKey};
use vidcompat_proto::shim::{MOVE_FIRST, Move, Outcome};

use super::Session;
use super::queues::QueueState;
use super::serve::Way;
use crate::client::BlockedThread;
use crate::memory::{BounceBuffer, Provider};
use crate::resolve::Look;
use crate::sys::Vma;

const PAGE: u64 = 4096;
/// How long an exchange may take before we believe that it will never be reported.
const PATIENCE: Duration = Duration::from_secs(2);
/// Buffers that were looked at and not adopted, and are not looked at again.
const MOST_DECLINED: usize = 256;
/// Moves that nobody has come for yet. A shim comes at once, in the thread that has called; who speaks as a shim and
/// never comes leaves no more than these.
const MOST_PENDING: usize = 64;

/// "Call again when you have moved": see [`MOVE_FIRST`].
pub(super) const MOVE: Errno = Errno::from_raw(MOVE_FIRST);

/// What a queue has lent to clients, and what is being exchanged.
#[derive(Debug, Default)]
pub(super) struct Adoption {
    lent: Vec<Lent>,
    pending: VecDeque<Pending>,
    declined: VecDeque<(ClientKey, u64)>,
    /// Exchanges that were done,
    adopted: u64,
    /// and that were undone for other pointers.
    given_back: u64,
    /// Buffers that were not adopted, by the reason.
    reasons: BTreeMap<&'static str, u64>,
}

/// One of our dma-bufs that stands, or is about to stand, where a client had ordinary memory.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) client: ClientKey,
    pub(super) pid: i32,
    pub(super) client_addr: u64,
    /// Whole pages.
    pub(super) length: u64,
    /// Keeps the memory and its charge, whatever becomes of the slot.
    pub(super) buffers: Arc<Vec<BounceBuffer>>,
    pub(super) plane: usize,
    /// `None`: reported as done.
    pub(super) offered: Option<Instant>,
    /// The client was told to give it back. Until then another report that it was taken is the first one, sent again to a
    /// daemon after the one that has heard it.
    pub(super) asked_back: bool,
}

impl Lent {
    fn overlaps(&self, claim: &Claim) -> bool {
        let end = claim.client_addr.saturating_add(u64::from(claim.length));
        self.client == claim.client
            && self.client_addr < end
            && claim.client_addr < self.client_addr + self.length
    }
}

#[derive(Debug)]
struct Pending {
    pid: i32,
    what: Wish,
}

#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Adopt { index: u32, plane: usize, claim: Claim },
    GiveBack { client_addr: u64, length: u64 },
}

const fn whole_pages(length: u32) -> u64 {
    (length as u64).next_multiple_of(PAGE)
}

/// Has process `pid` ended? Where another has its number by now, it has not.
fn is_gone(pid: i32) -> bool {
    nix::sys::signal::kill(Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH)
}

impl Adoption {
    /// What is lent.
    pub(super) fn lent(&self) -> &[Lent] {
        &self.lent
    }

    /// What a daemon before us has lent.
    pub(super) fn again(lent: Vec<Lent>) -> Self {
        Self {
            lent,
            ..Self::default()
        }
    }

    /// For people: how many exchanges were done, and why others were not.
    pub(super) fn told(&self) -> (u64, BTreeMap<String, u64>) {
        let reasons = self
            .reasons
            .iter()
            .map(|(reason, count)| ((*reason).to_owned(), *count));
        (self.adopted, reasons.collect())
    }

    /// Is what is claimed one of ours that is lent?
    pub(super) fn has(&self, claim: &Claim) -> bool {
        let same = |lent: &&Lent| lent.client == claim.client && lent.client_addr == claim.client_addr;
        self.lent
            .iter()
            .filter(|lent| lent.offered.is_none())
            .any(|lent| same(&lent))
    }

    /// The planes of these buffers that are lent.
    fn planes_lent(&self, buffers: &Arc<Vec<BounceBuffer>>) -> Vec<usize> {
        let of_these = self
            .lent
            .iter()
            .filter(|lent| Arc::ptr_eq(&lent.buffers, buffers));
        of_these.map(|lent| lent.plane).collect()
    }

    /// Plain memory was found at `claim`: what we have lent there is not there any more, or never came.
    fn is_plain_again(&mut self, claim: &Claim) {
        self.lent.retain(|lent| !lent.overlaps(claim));
    }

    /// Nothing is lent any more to processes that `is_gone` says so of: a file can outlive who has used it first.
    fn end_of(&mut self, is_gone: impl Fn(i32) -> bool) {
        self.lent.retain(|lent| !is_gone(lent.pid));
    }

    fn decline(&mut self, claim: &Claim, reason: &'static str) {
        *self.reasons.entry(reason).or_default() += 1;
        self.declined.push_back((claim.client, claim.client_addr));
        if self.declined.len() > MOST_DECLINED {
            self.declined.pop_front();
        }
    }

    /// Process `pid` is to come for these; the oldest go where too many were not come for.
    fn ask_for(&mut self, pid: i32, wishes: impl IntoIterator<Item = Wish>) {
        let wishes = wishes.into_iter().map(|what| Pending { pid, what });
        self.pending.extend(wishes);
        while self.pending.len() > MOST_PENDING {
            self.pending.pop_front();
        }
    }

    /// What came of a move of process `pid`.
    fn moved(&mut self, pid: i32, client_addr: u64, length: u64, outcome: Outcome) {
        let same = |lent: &Lent| (lent.pid, lent.client_addr, lent.length) == (pid, client_addr, length);
        let Some(at) = self.lent.iter().position(same) else {
            return;
        };
        match (self.lent[at].offered, outcome) {
            (Some(_), Outcome::Done) => {
                self.lent[at].offered = None;
                self.adopted += 1;
            }
            (Some(_), refused) => {
                let lent = self.lent.swap_remove(at);
                let claim = Claim {
                    client: lent.client,
                    client_addr,
                    length: 0,
                };
                self.decline(&claim, refused.text());
            }
            // Given back, or gone; where the shim could not, it stays lent.
            (None, Outcome::Done) if !self.lent[at].asked_back => {}
            (None, Outcome::Done | Outcome::Gone) => {
                self.lent.swap_remove(at);
            }
            (None, _) => {}
        }
    }

    /// Was an exchange asked for that nobody has come for?
    fn is_pending(&mut self, claim: &Claim) -> bool {
        let before = self.pending.len();
        self.pending
            .retain(|pending| !matches!(&pending.what, Wish::Adopt { claim: of, .. } if of == claim));
        self.pending.len() < before
    }

    fn was_declined(&self, claim: &Claim) -> bool {
        self.declined.contains(&(claim.client, claim.client_addr))
    }
}

/// What there is to be done before a buffer can be queued.
pub(super) enum Before {
    /// Nothing.
    Nothing,
    /// Its memory is other now: look again.
    LookAgain,
    /// The call fails so.
    Fail(Errno),
    /// The queue must import first.
    MakeImporting,
}

/// A QBUF or PREPARE_BUF, as adoption sees it.
pub(super) struct Given<'a> {
    pub(super) index: u32,
    pub(super) buf_type: u32,
    pub(super) ways: &'a [Arc<Way>],
    /// The client has brought pointers that this buffer has not had.
    pub(super) is_new: bool,
    /// The client has the shim, which can exchange memory.
    pub(super) has_shim: bool,
    /// Why nothing can be imported.
    pub(super) obstacle: Option<&'static str>,
    pub(super) caller: &'a BlockedThread,
}

impl QueueState {
    /// The planes of buffer `index` whose memory is lent: it is no bounce buffer.
    pub(super) fn planes_lent(&self, index: u32) -> Vec<usize> {
        let planes = self.slots.get(&index).and_then(|slot| slot.planes.as_ref());
        planes
            .map(|planes| self.adoption.planes_lent(planes))
            .unwrap_or_default()
    }
}

impl Session {
    /// Decides what must happen before `given` goes to the device.
    pub(super) fn before_giving(&self, queue: &mut QueueState, given: &Given<'_>) -> Before {
        let pid = given.caller.client().process().as_raw();
        let can_move = given.has_shim && given.obstacle.is_none();
        let copied = || {
            let ways = given.ways.iter().enumerate();
            ways.filter(|(_, way)| way.backing().is_none())
        };
        // An exchange of another thread that is under way.
        let now = Instant::now();
        let underway = |lent: &Lent| lent.offered.is_some_and(|since| now - since < PATIENCE);
        let waits = |way: &Arc<Way>| {
            queue
                .adoption
                .lent
                .iter()
                .any(|lent| underway(lent) && lent.overlaps(&way.claim))
        };
        if can_move && copied().any(|(_, way)| waits(way)) {
            return Before::Fail(MOVE);
        }
        for (_, way) in copied().filter(|(_, way)| way.is_plain()) {
            queue.adoption.is_plain_again(&way.claim);
        }
        let is_lent = |queue: &QueueState| {
            let lent = queue.planes_lent(given.index);
            copied().any(|(at, _)| lent.contains(&at))
        };
        if is_lent(queue) {
            queue.adoption.end_of(is_gone);
        }
        if is_lent(queue) {
            return self.instead_of_lent(queue, given, pid, can_move);
        }
        if given.has_shim && given.is_new && self.device.may_adopt() {
            let wished = self.wishes(queue, given);
            if !wished.is_empty() && queue.provider == Some(Provider::Exporter) {
                return Before::MakeImporting;
            }
            if !wished.is_empty() {
                queue.adoption.ask_for(pid, wished);
                return Before::Fail(MOVE);
            }
        }
        Before::Nothing
    }

    /// Buffer `given.index` needs memory of its own, and what it has is lent.
    fn instead_of_lent(&self, queue: &mut QueueState, given: &Given<'_>, pid: i32, can_move: bool) -> Before {
        match self.another_slot(queue, given.buf_type, given.index, given.caller.client()) {
            Ok(()) => Before::LookAgain,
            // The device's own memory is all there is.
            Err(_) if can_move => {
                let planes = queue.slots.get(&given.index).and_then(|slot| slot.planes.clone());
                let adoption = &mut queue.adoption;
                let of_slot = |lent: &&Lent| {
                    let same = planes
                        .as_ref()
                        .is_some_and(|planes| Arc::ptr_eq(planes, &lent.buffers));
                    lent.pid == pid && same
                };
                let back: Vec<_> = adoption
                    .lent
                    .iter()
                    .filter(of_slot)
                    .map(|lent| Wish::GiveBack {
                        client_addr: lent.client_addr,
                        length: lent.length,
                    })
                    // Asked for already: then it was not done.
                    .filter(|wish| !adoption.pending.iter().any(|pending| pending.what == *wish))
                    .collect();
                if back.is_empty() {
                    return Before::Fail(Errno::ENOMEM);
                }
                adoption.given_back += back.len() as u64;
                adoption.ask_for(pid, back);
                Before::Fail(MOVE)
            }
            Err(errno) => Before::Fail(errno),
        }
    }

    fn wishes(&self, queue: &mut QueueState, given: &Given<'_>) -> Vec<Wish> {
        let QueueState {
            adoption,
            slots,
            importer,
            ..
        } = queue;
        let planes = slots.get(&given.index).and_then(|slot| slot.planes.as_ref());
        let (Some(planes), Some(importer)) = (planes, *importer) else {
            return Vec::new();
        };
        // As many again for programs that have more frames than buffers.
        let most = 2 * slots.len() * planes.len();
        let look = self.look_of(given.caller, given.buf_type, importer);
        let mut wished = Vec::new();
        for (plane, way) in given.ways.iter().enumerate() {
            let claim = way.claim;
            let Some(segment) = way.plain_segment() else {
                continue;
            };
            if adoption.was_declined(&claim) {
                continue;
            }
            // vb2 allocates whole pages (videobuf2-core.c:240).
            let room = planes
                .get(plane)
                .map_or(0, |plane| (plane.size() as u64).next_multiple_of(PAGE));
            let locked = || {
                let end = claim.client_addr + whole_pages(claim.length);
                look.client
                    .is_locked(claim.client_addr..end)
                    .then_some("it is locked")
            };
            let obstacle = obstacle(&segment.vma, &claim, room)
                .or_else(|| (adoption.lent.len() >= most).then_some("its buffers move about"))
                .or_else(|| (adoption.given_back > most as u64).then_some("its buffers move about"))
                // It was asked to come for it, and called again without.
                .or_else(|| {
                    adoption
                        .is_pending(&claim)
                        .then_some("its shim cannot be talked to")
                })
                .or(given.obstacle)
                .or_else(|| self.not_importable(&look, planes.get(plane)?))
                // Last, for it reads much of a process that has locked anything.
                .or_else(locked);
            match obstacle {
                Some(reason) => adoption.decline(&claim, reason),
                None => wished.push(Wish::Adopt {
                    index: given.index,
                    plane,
                    claim,
                }),
            }
        }
        wished
    }

    /// Why a dma-buf of ours would not be imported, if it would not.
    fn not_importable(&self, look: &Look<'_>, plane: &BounceBuffer) -> Option<&'static str> {
        let Some(dma_buf) = plane.dma_buf() else {
            // It will be exported first.
            return None;
        };
        match self.device.own().exporter(dma_buf) {
            Some(exporter) if look.may_import(&exporter).is_ok() => None,
            _ => Some("the policy does not let the device import it"),
        }
    }

    /// What process `pid` is to move before its QBUF, with the dma-buf of an adoption.
    pub fn next_move(&self, pid: i32) -> Option<(Move, Option<OwnedFd>)> {
        let mut state = self.lock();
        let next = state
            .queues
            .each_mut()
            .into_iter()
            .find_map(|queue| next_of(queue, pid));
        self.commit(&state);
        next
    }

    /// What came of a move of process `pid`.
    pub fn moved(&self, pid: i32, client_addr: u64, length: u64, outcome: Outcome) {
        let mut state = self.lock();
        for queue in state.queues.each_mut() {
            queue.adoption.moved(pid, client_addr, length, outcome);
        }
        self.commit(&state);
    }

    /// Is what process `pid` has at `client_addr` one of the buffers of this session?
    pub fn is_lent(&self, pid: i32, client_addr: u64, length: u64) -> bool {
        let mut state = self.lock();
        let queues = state.queues.each_mut();
        let mut lent = queues.iter().flat_map(|queue| &queue.adoption.lent);
        lent.any(|lent| (lent.pid, lent.client_addr, lent.length) == (pid, client_addr, length))
    }
}

fn next_of(queue: &mut QueueState, pid: i32) -> Option<(Move, Option<OwnedFd>)> {
    loop {
        let at = queue
            .adoption
            .pending
            .iter()
            .position(|pending| pending.pid == pid)?;
        match queue.adoption.pending.remove(at)?.what {
            Wish::GiveBack { client_addr, length } => {
                let lent = queue.adoption.lent.iter_mut();
                for lent in lent.filter(|lent| (lent.pid, lent.client_addr) == (pid, client_addr)) {
                    lent.asked_back = true;
                }
                return Some((Move::GiveBack { client_addr, length }, None));
            }
            Wish::Adopt { index, plane, claim } => {
                // REQBUFS may have been called since.
                let Some(buffers) = queue.slots.get(&index).and_then(|slot| slot.planes.clone()) else {
                    continue;
                };
                // Before anything is handed out: what the slot has lent stays lent, and it gets other memory when it needs some.
                if queue.adoption.planes_lent(&buffers).contains(&plane) {
                    continue;
                }
                let Some(fd) = buffers.get(plane).and_then(BounceBuffer::hand_out) else {
                    continue;
                };
                let lent = Lent {
                    client: claim.client,
                    pid,
                    client_addr: claim.client_addr,
                    length: whole_pages(claim.length),
                    buffers: Arc::clone(&buffers),
                    plane,
                    offered: Some(Instant::now()),
                    asked_back: false,
                };
                let (client_addr, length) = (lent.client_addr, lent.length);
                queue.adoption.lent.push(lent);
                return Some((Move::Adopt { client_addr, length }, Some(fd)));
            }
        }
    }
}

/// Why plain memory, whose first or only mapping is `vma`, is not adopted: ours has `room` bytes. `None`: it can be.
fn obstacle(vma: &Vma, claim: &Claim, room: u64) -> Option<&'static str> {
    let length = whole_pages(claim.length);
    let name = &vma.name[..];
    let within = |end| end <= vma.end && vma.start <= claim.client_addr;
    Some(if !claim.client_addr.is_multiple_of(PAGE) {
        "it does not begin with a page"
    } else if name.starts_with(b"/anon_hugepage") {
        "it has huge pages"
    } else if vma.shared || vma.inode != 0 {
        "it is shared memory, or a file's"
    } else if name == b"[heap]" || name.starts_with(b"[stack") {
        "it lies in the brk heap, or on a stack"
    } else if !vma.readable || !vma.writable {
        "it cannot be read and written"
    } else if !claim.client_addr.checked_add(length).is_some_and(within) {
        "it is several mappings"
    } else if length > room {
        "it is longer than the device's buffer"
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests;
