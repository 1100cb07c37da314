//! A session: one open file of one client (or of several, when the file is inherited or passed on).
//!
//! It owns the real node that was opened for this file, asks the queue core what a call means, does it, and tells
//! the core what came of it. It knows neither CUSE nor the shim: whoever waits for an answer is a [`Waiter`].
//!
//! Locking: `state` is held for the length of a queue call, as vb2 holds the queue's lock; never while bytes are
//! copied to a client, whose memory may be slow on purpose.

mod adoption;
mod allocate;
mod arrays;
mod buffers;
mod controls;
mod counters;
mod dequeue;
mod device;
mod events;
mod export;
mod keep;
mod ledger;
mod once;
mod passed;
mod planes;
mod poll;
mod proof;
mod queues;
mod read;
mod reconcile;
mod record;
mod restore;
mod retry;
mod seek;
mod serve;
mod shim;
mod status;
mod trial;
mod write;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::v4l2::{V4l2Buffer, buf_type};
use vidcompat_proto::ioctl::{Policy, QueueOp, Row};
use vidcompat_proto::queue::Help;
use zerocopy::{FromBytes, IntoBytes};

use crate::backend::v4l2::RealNode;
use crate::backend::{Readiness, Served, Wanted, Watch};
use crate::client::{BlockedThread, CallShape, Clients, FileFlags, is_admin};
use crate::tickets::Tickets;

use dequeue::Dequeuer;
use events::EventQueue;
use keep::Keeping;
use once::{Once, S_CTRL};
use poll::PollWait;
use queues::{QueueState, Queues};
use read::FrameReader;
use record::{ExportImage, ExportedPlane};
use write::FrameWriter;

pub(crate) use counters::now_us;
pub use device::{Device, DeviceOptions};
pub use keep::Shelf;
pub use ledger::CallId;
pub use read::Piece;
pub use record::{Lost, Opening};
pub use restore::Orphaned;

/// Somebody whose call may have to wait, for bytes or for a count of bytes.
pub trait Waiter<T: ?Sized = [u8]>: Send {
    /// Tells this waiter from others, as long as it waits.
    fn id(&self) -> u64;
    /// From now on `wake` is called if the call is to end early. `false`: it is to end now.
    fn sleep(&mut self, wake: Box<dyn FnOnce() + Send>) -> bool;
    /// The call returns: what goes back, or an errno.
    fn answer(self: Box<Self>, outcome: Result<&T, Errno>);
    /// The call ends early, as `-ERESTARTSYS` ends it in a driver.
    fn restart(self: Box<Self>);
}

/// A waiter on its own: nobody else answers it.
pub type BoxedWaiter<T = [u8]> = Box<dyn Waiter<T>>;

/// Who makes a call that never waits: enough to find what its pointers point to.
#[derive(Clone, Copy, Debug)]
pub struct Requester {
    /// The calling thread, blocked until it is answered.
    pub tid: u32,
    /// The layout of what it passes by pointer: arrays, and pointers in them. The struct itself is native already.
    pub abi: ClientAbi,
    /// What it has beside the node.
    pub help: Help,
    /// The request.
    pub call: CallId,
}

/// Who calls, and how: enough to find out whether the file is in non-blocking mode.
#[derive(Clone, Copy, Debug)]
pub struct Blocking {
    /// The calling thread.
    pub who: Requester,
    /// Its call.
    pub call: CallShape,
}

#[derive(Default)]
struct State {
    queues: Queues,
    events: EventQueue,
    frames: FrameReader,
    writer: FrameWriter,
    /// Somebody who reads or writes is served by the clock.
    retrying: bool,
    poll: Option<PollWait>,
    /// Whom to tell of readiness, as a daemon after us needs it; 0: nobody has polled.
    poll_handle: u64,
    /// The shim's tokens of this file, by user.
    tokens: Vec<(u32, [u8; 16])>,
    /// The last DQEVENT and what it got.
    last_event: Option<(u64, Vec<u8>)>,
    /// The last call that is not to be made twice.
    once: Option<Once>,
    /// What EXPBUF has left for the shim, by ticket.
    tickets: Vec<(u32, ExportedPlane)>,
    /// Buffers of the device's own that a client has mapped.
    exports: Vec<ExportImage>,
    /// No further call may wait: the node is going away.
    ending: bool,
}

/// One open file.
pub struct Session {
    device: Arc<Device>,
    node: RealNode,
    clients: Mutex<Clients>,
    state: Mutex<State>,
    watch: Mutex<Option<Watch>>,
    /// See [`Wanted::look`].
    looks: AtomicU64,
    flags: Mutex<FileFlags>,
    /// O_NONBLOCK of the open: what counts where the flag cannot be read.
    opened_nonblocking: bool,
    /// O_ACCMODE of the open.
    access_mode: libc::c_int,
    exported: Tickets,
    opening: Opening,
    /// `None`: it ends with us.
    keeping: Option<Keeping>,
}

impl Session {
    /// Opens the real node with the access mode and O_NONBLOCK of the flags. On a shelf it outlives us, as file `fh`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn open(
        device: &Arc<Device>,
        opening: Opening,
        fh: u64,
        shelf: Option<&Shelf>,
    ) -> Result<Arc<Self>, Errno> {
        let flags = opening.flags;
        let is_busy = |error: &std::io::Error| error.raw_os_error() == Some(libc::EBUSY);
        let node = device
            .unless_leaving(is_busy, || RealNode::open(device.path(), flags))
            .and_then(|node| device.is_still(node))
            .map_err(|error| {
                // The real node is gone while ours still stands: to the client that is a device without a driver.
                match error.raw_os_error() {
                    Some(libc::ENOENT) | None => Errno::ENODEV,
                    Some(errno) => Errno::from_raw(errno),
                }
            })?;
        let keeping = shelf.and_then(|shelf| {
            let begun = Keeping::begin(shelf, fh, opening.uid, node.descriptor());
            begun
                .inspect_err(|error| {
                    tracing::warn!(
                        device = %device.path().display(), %error,
                        "a file cannot be put into the fd store: it will not outlive this daemon"
                    );
                })
                .ok()
        });
        let state = State {
            queues: Queues::counted(device.totals()),
            frames: FrameReader::counted(&device.totals()[0]),
            writer: FrameWriter::counted(&device.totals()[1]),
            ..State::default()
        };
        let session = Self::with(device, node, opening, keeping, Clients::default(), state, 0);
        session.commit_now();
        if let Some(keeping) = &session.keeping
            && let Err(error) = keeping.publish()
        {
            tracing::warn!(
                device = %device.path().display(), %error,
                "a file cannot be put into the fd store: it will not outlive this daemon"
            );
        }
        Ok(session)
    }

    fn with(
        device: &Arc<Device>,
        node: RealNode,
        opening: Opening,
        keeping: Option<Keeping>,
        clients: Clients,
        state: State,
        last_ticket: u32,
    ) -> Arc<Self> {
        device.files_changed();
        let descriptor = node.descriptor();
        let session = Arc::new(Self {
            device: Arc::clone(device),
            node,
            clients: Mutex::new(clients),
            state: Mutex::new(state),
            watch: Mutex::default(),
            looks: AtomicU64::new(0),
            flags: Mutex::default(),
            opened_nonblocking: opening.flags & libc::O_NONBLOCK != 0,
            access_mode: opening.flags & libc::O_ACCMODE,
            exported: Tickets::after(last_ticket),
            opening,
            keeping,
        });
        let watch = Watch::start(device.runtime(), descriptor, Waiting(Arc::downgrade(&session)));
        *session.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        session
    }

    /// The last reference to the file is gone: when this returns, the real node is closed (a node that one process
    /// at a time may open can be opened again). Nobody can be waiting.
    pub fn close(self: Arc<Self>) {
        self.device.files_changed();
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(watch) = watch {
            watch.stop(self.device.runtime());
        }
        // A thread that has just answered the client's last call may not have let go of the session yet; one that has asked
        // the driver for the shim lets go when the driver has answered.
        let (mut session, mut tries) = (self, 0_u32);
        loop {
            session = match Arc::try_unwrap(session) {
                Ok(alone) => return alone.forget(),
                Err(shared) => shared,
            };
            tries = tries.saturating_add(1);
            match tries {
                ..1000 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// The file is closed. No daemon after us finds it, and only then is anything let go of.
    fn forget(self) {
        let Self {
            device,
            node,
            state,
            keeping,
            ..
        } = self;
        let Some(keeping) = keeping else { return };
        let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        keeping.end();
        // Whoever keeps our files closes its own of the node when it likes: until then the driver thinks it open. Its queues
        // end here, so that the next file may have them.
        for queue in state.queues.each() {
            queue.let_go(&node, device.is_no_vb2(queue.core.buf_type()));
        }
        device.leaves();
    }

    /// The node goes away: whoever waits is answered as when a device is unplugged.
    pub fn shut_down(&self) {
        let (waiters, writers) = {
            let mut state = self.lock();
            state.ending = true;
            if let Some(poll) = state.poll.take() {
                poll.notify();
            }
            let mut waiters = Vec::new();
            for queue in state.queues.each_mut() {
                queue.core.set_waiting(false);
                waiters.extend(queue.dequeuer.take().map(Dequeuer::into_waiter));
            }
            waiters.extend(state.events.drain());
            waiters.extend(state.frames.drain());
            (waiters, state.writer.drain())
        };
        for writer in writers {
            writer.answer(Err(Errno::ENODEV));
        }
        for waiter in waiters {
            waiter.answer(Err(Errno::ENODEV));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A bug that panicked in one call must not make every later one panic; vb2's own state in the driver is
        // what counts, and ours follows it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process behind thread `tid`, which is blocked in a request.
    fn caller(&self, tid: u32) -> Result<BlockedThread, Errno> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.of_thread(tid).map_err(|error| {
            if self.device.may_complain() {
                tracing::warn!(
                    device = %self.device.path().display(), client_tid = tid, %error,
                    "the memory of a client cannot be reached: vidcompatd needs CAP_SYS_PTRACE and must share its pid namespace"
                );
            }
            Errno::EFAULT
        })
    }

    /// Lets `waiter` sleep, until `interrupt` is called with its id. `false`: it is to end at once.
    fn sleep<T: ?Sized>(self: &Arc<Self>, waiter: &mut BoxedWaiter<T>, interrupt: fn(&Session, u64)) -> bool {
        let (weak, id) = (Arc::downgrade(self), waiter.id());
        waiter.sleep(Box::new(move || {
            if let Some(session) = weak.upgrade() {
                interrupt(&session, id);
            }
        }))
    }

    /// What an ioctl without a row is answered: a device that is gone says so before it looks at the number.
    pub fn unknown_ioctl(&self) -> Errno {
        if self.node.is_gone() {
            Errno::ENODEV
        } else {
            Errno::ENOTTY
        }
    }

    /// Runs an ioctl that never waits. `argument` is the struct of `row`, changed in place.
    ///
    /// # Errors
    /// What the real driver gives for the same call.
    pub fn ioctl(&self, row: &'static Row, argument: &mut [u8], who: Requester) -> Result<i32, Errno> {
        if row.probe.is_some() && !self.device.knows(&self.node, row) {
            return Err(Errno::ENOTTY);
        }
        match row.policy {
            Policy::Pass if row.command.number() == S_CTRL => self.set_control(row, argument, who.call),
            Policy::Pass => self.node.ioctl(row, argument),
            Policy::Privileged if is_admin(who.tid) => self.node.ioctl(row, argument),
            Policy::Privileged => Err(Errno::EPERM),
            Policy::Refuse(errno) => Err(errno),
            Policy::Array => self.array_ioctl(row, argument, who),
            Policy::Window => self.window_ioctl(row, argument, who),
            Policy::Controls => self.ext_controls(row, argument, who),
            Policy::Expbuf => with(argument, |request| self.expbuf(request, who.help)).map(|()| 0),
            Policy::Queue(op) => self.queue_ioctl(op, argument, who).map(|()| 0),
            // These wait: `dequeue_event` and `seek`.
            Policy::Dqevent | Policy::Seek => Err(Errno::ENOTTY),
        }
    }

    fn queue_ioctl(&self, op: QueueOp, argument: &mut [u8], who: Requester) -> Result<(), Errno> {
        match op {
            QueueOp::Reqbufs => with(argument, |request| self.reqbufs(request, who)),
            QueueOp::CreateBufs => with(argument, |request| self.create_bufs(request, who)),
            QueueOp::RemoveBufs => with(argument, |request| self.remove_bufs(request, who.call)),
            QueueOp::Querybuf | QueueOp::Qbuf | QueueOp::PrepareBuf => {
                with(argument, |head: &mut V4l2Buffer| {
                    let asked = self.fetch_planes(*head, who)?;
                    let reply = match op {
                        QueueOp::Querybuf => self.querybuf(&asked),
                        _ => self.give(op, &asked, who),
                    }?;
                    self.store_planes(&reply, head, who)?;
                    *head = reply.to_head();
                    Ok(())
                })
            }
            QueueOp::Streamon | QueueOp::Streamoff => {
                with(argument, |buf_type: &mut u32| self.stream(op, *buf_type))
            }
            // This waits: `dequeue`.
            QueueOp::Dqbuf => Err(Errno::ENOTTY),
        }
    }

    /// Is the file of a call that would wait in non-blocking mode?
    fn is_nonblocking(&self, who: Blocking) -> bool {
        let mut flags = self.flags.lock().unwrap_or_else(PoisonError::into_inner);
        flags
            .is_nonblocking(who.who.tid, who.call, self.device.generation())
            .unwrap_or_else(|| {
                tracing::debug!(
                    client_tid = who.who.tid,
                    "O_NONBLOCK of a waiting call cannot be read; that of the open counts"
                );
                self.opened_nonblocking
            })
    }

    /// Serves those who wait where nothing can take its time: nobody's memory is touched, and no lock is waited for.
    /// `false`: somebody waits for more than that.
    fn serve_at_once(&self, what: Readiness) -> bool {
        let Ok(mut state) = self.state.try_lock() else {
            return false;
        };
        let State {
            queues,
            events,
            frames,
            writer,
            ..
        } = &mut *state;
        let waits = |queue: &QueueState| queue.dequeuer.is_some();
        let others = !events.is_empty() || !frames.is_idle() || !writer.is_idle();
        let quick =
            |queue: &QueueState| queue.passed.is_some() && !buf_type::is_multi_planar(queue.core.buf_type());
        if others
            || queues
                .each()
                .into_iter()
                .any(|queue| waits(queue) && !quick(queue))
        {
            return false;
        }
        let waiting: Vec<_> = queues
            .each()
            .into_iter()
            .filter(|queue| waits(queue))
            .map(|queue| queue.core.buf_type())
            .collect();
        let served = Self::tell_polling(&self.node, &mut state, what) || !waiting.is_empty();
        let answered: Vec<_> = waiting
            .into_iter()
            .filter_map(|buf_type| self.answered(&mut state, buf_type))
            .collect();
        if !served {
            self.watch_for(&state);
        }
        drop(state);
        // Their bytes are where they belong.
        answered.into_iter().for_each(|answered| self.tell(answered));
        true
    }

    /// Something has changed in the device: serve whoever waits for it.
    fn on_ready(&self, what: Readiness) {
        let served = [
            self.advance_dequeuer(buf_type::VIDEO_CAPTURE),
            self.advance_dequeuer(buf_type::VIDEO_OUTPUT),
            self.advance_events(),
            self.advance_readers(),
            self.advance_writers(),
            self.advance_poll(what),
        ];
        // While somebody is served at each turn the registration stays, which spares two epoll_ctl a frame.
        if !served.contains(&true) {
            let state = self.lock();
            self.watch_for(&state);
        }
    }

    /// Waits for what `state` says from now on. Called with the lock held, so that the last word is the right one.
    fn watch_for(&self, state: &State) {
        if let Some(watch) = &*self.watch.lock().unwrap_or_else(PoisonError::into_inner) {
            watch.want(Wanted {
                look: self.looks.load(Ordering::Relaxed),
                ..state.wanted()
            });
        }
    }

    /// The same after the device has been found to have nothing: where its driver tells only those who begin to wait
    /// then, the watch begins anew.
    fn watch_anew(&self, state: &State, buf_type: u32) {
        if self.device.is_no_vb2(buf_type) {
            self.looks.fetch_add(1, Ordering::Relaxed);
        }
        self.watch_for(state);
    }

    /// To be called, without the lock, before the device frees buffers: from then on a poll of ours for input would
    /// start read() emulation in the driver. Those who poll look again; a registration that is left from the last
    /// frame ends.
    fn stop_watching(&self) {
        let settled = {
            let mut state = self.lock();
            if let Some(poll) = state.poll.take() {
                poll.notify();
            }
            self.watch_for(&state);
            let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
            watch.as_ref().map(|watch| watch.settled(self.device.runtime()))
        };
        if let Some(settled) = settled {
            settled();
        }
    }
}

/// The session, for its watch, which must not keep it open.
struct Waiting(Weak<Session>);

impl Served for Waiting {
    fn at_once(&self, what: Readiness) -> bool {
        self.0.upgrade().is_none_or(|session| session.serve_at_once(what))
    }

    fn on_ready(&self, what: Readiness) {
        if let Some(session) = self.0.upgrade() {
            session.on_ready(what);
        }
    }
}

impl State {
    /// What somebody waits for.
    fn wanted(&self) -> Wanted {
        let poll = self.poll.as_ref().map(PollWait::wanted).unwrap_or_default();
        Wanted {
            input: poll.input || self.queues.capture.dequeuer.is_some() || !self.frames.is_idle(),
            output: poll.output || self.queues.output.dequeuer.is_some() || !self.writer.is_idle(),
            priority: poll.priority || !self.events.is_empty(),
            look: 0,
        }
    }
}

/// `argument` as the struct `T`, changed in place.
fn with<T: FromBytes + IntoBytes + zerocopy::Immutable>(
    argument: &mut [u8],
    act: impl FnOnce(&mut T) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut value = T::read_from_bytes(argument).map_err(|_| Errno::ENOTTY)?;
    act(&mut value)?;
    argument.copy_from_slice(value.as_bytes());
    Ok(())
}
