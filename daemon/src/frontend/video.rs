//! A V4L2 node of ours: CUSE requests to sessions, session answers to CUSE replies.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use fuser::{Errno as FuseErrno, IoctlFlags, PollEvents};
use nix::poll::PollFlags;
use vidcompat_proto::Errno;
use vidcompat_proto::abi::ClientAbi;
use vidcompat_proto::abi::v4l2::V4l2Buffer;
use vidcompat_proto::ioc::Command;
use vidcompat_proto::ioctl::{Policy, QueueOp, Row};
use vidcompat_proto::queue::Help;
use vidcompat_proto::shim;
use zerocopy::{FromBytes, IntoBytes};

use super::Restored;
use super::argument::Shape;
use super::shim::Shims;
use crate::client::CallShape;
use crate::cuse::{
    Caller, Channel, ForIoctl, ForRead, ForRelease, ForWrite, Handler, IoctlRequest, Operation, Reply,
    Request, Ticket, Turn,
};
use crate::observe::model;
use crate::session::{
    Blocking, BoxedWaiter, CallId, Device, Lost, Opening, Orphaned, Piece, Requester, Session, Shelf, Waiter,
};
use crate::survive::{Inheritance, Tries, What};

/// The front end of one real node.
pub struct VideoNode {
    device: Arc<Device>,
    shims: Arc<Shims>,
    sessions: Mutex<HashMap<u64, Open>>,
    next_fh: AtomicU64,
    /// Where files are kept that outlive us.
    shelf: Option<Shelf>,
    /// Who sleeps in poll(2) on files that could not go on.
    orphans: Mutex<Vec<u64>>,
    /// Files of a daemon before us are being taken up: how many is not known yet.
    restoring: AtomicBool,
}

struct Open {
    session: Arc<Session>,
    uid: u32,
    /// The thread that called last; 0 where it cannot be named. For people: by now it may be another's.
    last_tid: AtomicU32,
}

/// A number that no earlier daemon has given to a file, unless it had opened sixty files in each millisecond.
fn later_than_any_before() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    let milliseconds = now.map_or(0, |now| std::time::Duration::from(now).as_millis());
    u64::try_from(milliseconds << 6).unwrap_or(u64::MAX / 2).max(1)
}

/// Files that one user may have open on one node, and all users together: each costs descriptors of ours.
const MAX_OPEN_PER_USER: usize = 256;
const MAX_OPEN: usize = 1024;

impl VideoNode {
    /// Serves `device`, also to the shims of `shims`. What is open outlives us on `shelf`.
    #[must_use]
    pub fn new(device: Arc<Device>, shims: Arc<Shims>, shelf: Option<Shelf>) -> Arc<Self> {
        Arc::new(Self {
            device,
            shims,
            sessions: Mutex::default(),
            // Numbers that were used may come back in a RELEASE that is sent again, or stand in the store: those of other
            // daemons are lower.
            next_fh: AtomicU64::new(later_than_any_before()),
            shelf,
            orphans: Mutex::default(),
            restoring: AtomicBool::new(false),
        })
    }

    /// Goes on with the files that a daemon before us has had open, before anything is read from the channel. What cannot
    /// go on is left to be given up: its clients are told that the device is gone.
    #[must_use]
    pub fn restore(&self, inheritance: &mut Inheritance, tries: Option<&Tries>) -> Restored {
        let mut restored = Restored::default();
        let Some(shelf) = &self.shelf else { return restored };
        self.restoring.store(true, Ordering::Relaxed);
        let beginning = format!("record.{}.", shelf.node());
        let handles: Vec<u64> = inheritance
            .beginning(&beginning)
            .filter_map(|name| name.strip_prefix(&beginning)?.parse().ok())
            .collect();
        for fh in handles {
            let taken_up = tries.map(|tries| tries.take_up(What::File(fh)));
            let outcome = match &taken_up {
                Some(None) => Err(Session::give_up(shelf, fh, inheritance, Lost::Deadly)),
                _ => Session::restore(&self.device, shelf, fh, inheritance),
            };
            match outcome {
                Ok(session) => {
                    self.take_over(fh, session);
                    restored.files += 1;
                }
                Err(Orphaned { why, sleeper }) => {
                    tracing::warn!(
                        device = %self.device.path().display(), file = fh,
                        "an open file does not outlive the daemon before us ({why}): its program is told that the device is gone"
                    );
                    restored.lost.push(why.to_string());
                    restored.sleepers_unknown |= sleeper.is_none();
                    self.orphans().extend(sleeper.filter(|handle| *handle != 0));
                }
            }
        }
        self.restoring.store(false, Ordering::Relaxed);
        restored
    }

    fn orphans(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_over(&self, fh: u64, session: Arc<Session>) {
        for (uid, token) in session.tokens() {
            self.shims.hello_again(&session, uid, token);
        }
        let open = Open {
            uid: session.opening().uid,
            last_tid: AtomicU32::new(0),
            session,
        };
        self.sessions().insert(fh, open);
    }

    /// Whoever polls looks once more: what has happened meanwhile nobody has told them.
    pub fn wake_pollers(&self, channel: &Channel) {
        let handles: Vec<u64> = self
            .sessions()
            .values()
            .filter_map(|open| open.session.poll_handle())
            .collect();
        let orphans = std::mem::take(&mut *self.orphans());
        for handle in handles.into_iter().chain(orphans) {
            channel.notify_poll(handle);
        }
    }

    /// The node goes away: every call that waits ends.
    pub fn shut_down(&self) {
        let sessions: Vec<_> = self
            .sessions()
            .values()
            .map(|open| Arc::clone(&open.session))
            .collect();
        for session in sessions {
            session.shut_down();
        }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Open>> {
        // Changed by single calls only: never half done.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, fh: u64, caller: Caller) -> Option<Arc<Session>> {
        let sessions = self.sessions();
        let open = sessions.get(&fh)?;
        open.last_tid.store(caller.tid, Ordering::Relaxed);
        Some(Arc::clone(&open.session))
    }

    /// What went through the node, for status.
    pub fn totals(&self) -> model::Totals {
        self.device.told_totals()
    }

    /// How many files are open. As long as that is not known, one more.
    pub fn open_files(&self) -> usize {
        self.sessions().len() + usize::from(self.restoring.load(Ordering::Relaxed))
    }

    /// What is open, for status, in the order of opening.
    pub fn files(&self) -> Vec<model::File> {
        let mut handles: Vec<u64> = self.sessions().keys().copied().collect();
        handles.sort_unstable();
        // One after the other: who closes waits for all that hold the session.
        let file = |fh| {
            let (tid, session) = {
                let sessions = self.sessions();
                let open = sessions.get(&fh)?;
                (open.last_tid.load(Ordering::Relaxed), Arc::clone(&open.session))
            };
            let caller = crate::client::process_and_name(tid);
            let queues = session.status();
            Some(model::File {
                fh,
                busy: queues.is_none(),
                queues: queues.unwrap_or_default(),
                pid: caller.as_ref().map(|(pid, _)| *pid),
                comm: caller.map(|(_, name)| name),
            })
        };
        handles.into_iter().filter_map(file).collect()
    }

    fn open(&self, caller: Caller, flags: libc::c_int, call: CallId) -> Result<u64, Errno> {
        let uid = caller.uid;
        let opened_before = |open: &Open| open.session.opening().by == call.unique;
        if call.is_resent
            && let Some((fh, _)) = self.sessions().iter().find(|(_, open)| opened_before(open))
        {
            return Ok(*fh);
        }
        let (all, of_user) = {
            let sessions = self.sessions();
            (
                sessions.len(),
                sessions.values().filter(|open| open.uid == uid).count(),
            )
        };
        if all >= MAX_OPEN || of_user >= MAX_OPEN_PER_USER {
            return Err(Errno::ENFILE);
        }
        let fh = self.next_fh.fetch_add(1, Ordering::Relaxed);
        let opening = Opening {
            flags,
            uid,
            by: call.unique,
        };
        let session = Session::open(&self.device, opening, fh, self.shelf.as_ref())?;
        let open = Open {
            session,
            uid,
            last_tid: AtomicU32::new(caller.tid),
        };
        self.sessions().insert(fh, open);
        Ok(fh)
    }

    fn release(&self, fh: u64, reply: Reply<ForRelease>) {
        let open = self.sessions().remove(&fh);
        if let Some(open) = open {
            self.shims.ended(&open.session);
            open.session.close();
        }
        reply.released();
    }

    fn ioctl(&self, caller: Caller, request: IoctlRequest<'_>, turn: &Turn<'_>) {
        let IoctlRequest {
            fh,
            flags,
            command,
            client_arg,
            input,
            out_size,
            reply,
        } = request;
        let command = Command(command);
        let compat = flags.contains(IoctlFlags::FUSE_IOCTL_COMPAT);
        let abi = if compat {
            ClientAbi::COMPAT
        } else {
            ClientAbi::Native
        };
        let Some(session) = self.session(fh, caller) else {
            return reply.failed(Errno::ENODEV.raw());
        };
        if command == shim::HELLO {
            return match self.shims.hello(&session, caller.uid) {
                Some(hello) => {
                    session.remember_token(caller.uid, hello.token);
                    reply.result(0, hello.as_bytes());
                }
                None => reply.failed(Errno::ENOTTY.raw()),
            };
        }
        let meant = shim::meant(command);
        let taken = Shape::of(meant.unwrap_or(command), abi, input).and_then(|(row, shape)| {
            let argument = shape.native(row)?;
            Ok((row, shape, argument))
        });
        let (row, shape, mut argument) = match taken {
            Ok(taken) => taken,
            Err(Errno::ENOTTY) => return reply.failed(session.unknown_ioctl().raw()),
            Err(errno) => return reply.failed(errno.raw()),
        };
        let who = Requester {
            tid: caller.tid,
            abi: shape.abi(abi),
            help: if meant.is_some() { Help::Shim } else { Help::None },
            call: call_of(&reply),
        };
        let blocking = Blocking {
            who,
            call: CallShape {
                compat,
                command: command.0,
                client_arg,
            },
        };
        match row.policy {
            Policy::Queue(QueueOp::Dqbuf) => {
                let Ok(argument) = V4l2Buffer::read_from_bytes(&argument) else {
                    return reply.failed(Errno::ENOTTY.raw());
                };
                let waiter = watched(Shaped { reply, shape });
                if turn.pass() {
                    session.dequeue(&argument, blocking, waiter);
                } else {
                    waiter.answer(Err(OVERLOADED));
                }
            }
            Policy::Dqevent => {
                let waiter = watched(Shaped { reply, shape });
                if turn.pass() {
                    session.dequeue_event(row, blocking, waiter);
                } else {
                    waiter.answer(Err(OVERLOADED));
                }
            }
            _ => {
                let outcome = match row.policy {
                    _ if !turn.pass() => Err(OVERLOADED),
                    Policy::Seek => session.seek(row, &mut argument, blocking),
                    _ => session.ioctl(row, &mut argument, who),
                };
                let back = match row.command.is_read() {
                    true => shape.answer(&argument),
                    false => Vec::new(),
                };
                answer(reply, row, outcome, &back[..back.len().min(out_size as usize)]);
            }
        }
    }
}

fn call_of<K>(reply: &Reply<K>) -> CallId {
    CallId {
        unique: reply.first_unique(),
        is_resent: reply.is_resent(),
    }
}

fn piece_of<K>(reply: &Reply<K>, offset: u64, caller: Caller) -> Piece {
    Piece {
        offset,
        tid: caller.tid,
        call: call_of(reply),
    }
}

/// So many calls hang in drivers or in clients' memory that no thread is left for another.
const OVERLOADED: Errno = Errno::ENOMEM;

/// Sends back what the driver would have copied back.
fn answer(reply: Reply<ForIoctl>, row: &Row, outcome: Result<i32, Errno>, back: &[u8]) {
    match outcome {
        Ok(result) => reply.result(result, back),
        Err(errno) if row.always_copy => reply.result(-errno.raw(), back),
        Err(errno) => reply.failed(errno.raw()),
    }
}

impl Handler for Arc<VideoNode> {
    fn handle(&self, request: Request<'_>, turn: &Turn<'_>) {
        let Request { caller, operation } = request;
        match operation {
            Operation::Open { flags, reply } => {
                let opened = if turn.pass() {
                    self.open(caller, flags.0, call_of(&reply))
                } else {
                    Err(OVERLOADED)
                };
                match opened {
                    Ok(fh) => reply.opened(fh),
                    Err(errno) => reply.error(FuseErrno::from_i32(errno.raw())),
                }
            }
            Operation::Release { fh, reply } => {
                if turn.pass() {
                    self.release(fh, reply);
                } else {
                    // What hangs may be what this ends.
                    let node = Arc::clone(self);
                    thread::spawn(move || node.release(fh, reply));
                }
            }
            Operation::Ioctl(ioctl) => self.ioctl(caller, ioctl, turn),
            Operation::Read {
                fh,
                offset,
                size,
                flags,
                reply,
            } => match self.session(fh, caller) {
                None => reply.error(FuseErrno::ENODEV),
                Some(session) => {
                    let piece = piece_of(&reply, offset, caller);
                    let waiter = watched(reply);
                    let nonblocking = flags.0 & libc::O_NONBLOCK != 0;
                    if turn.pass() {
                        session.read(piece, size as usize, nonblocking, waiter);
                    } else {
                        waiter.answer(Err(OVERLOADED));
                    }
                }
            },
            Operation::Write {
                fh,
                offset,
                flags,
                data,
                reply,
            } => match self.session(fh, caller) {
                None => reply.error(FuseErrno::ENODEV),
                Some(session) => {
                    let piece = piece_of(&reply, offset, caller);
                    let waiter = watched(reply);
                    let nonblocking = flags.0 & libc::O_NONBLOCK != 0;
                    if turn.pass() {
                        session.write(piece, data, nonblocking, waiter);
                    } else {
                        waiter.answer(Err(OVERLOADED));
                    }
                }
            },
            Operation::Poll {
                fh,
                kh,
                events,
                schedule_notify,
                reply,
            } => match self.session(fh, caller) {
                Some(session) if turn.pass() => {
                    let channel = Arc::clone(reply.channel());
                    let notify: Option<Box<dyn Fn() + Send>> = if schedule_notify {
                        Some(Box::new(move || channel.notify_poll(kh)))
                    } else {
                        None
                    };
                    reply.ready(to_fuse(session.poll(from_fuse(events), kh, notify)));
                }
                _ => reply.ready(PollEvents::POLLERR | PollEvents::POLLHUP),
            },
            Operation::Interrupt { unique, channel } => {
                if turn.pass() {
                    channel.interrupts().interrupt(unique);
                } else {
                    thread::spawn(move || channel.interrupts().interrupt(unique));
                }
            }
        }
    }
}

fn from_fuse(events: PollEvents) -> PollFlags {
    // poll(2) takes 16 bits; the kernel's internal ones above them mean nothing to a driver.
    PollFlags::from_bits_truncate(i16::from_ne_bytes([
        events.bits().to_le_bytes()[0],
        events.bits().to_le_bytes()[1],
    ]))
}

fn to_fuse(flags: PollFlags) -> PollEvents {
    PollEvents::from_bits_retain(u32::from(flags.bits().cast_unsigned()))
}

/// A request that may wait: watched for an interrupt since it was read.
struct Watched<R> {
    reply: R,
    ticket: Ticket,
}

fn watched<R, T: ?Sized>(reply: R) -> BoxedWaiter<T>
where
    R: Outcome<T> + Send + 'static,
{
    let (channel, unique) = reply.request();
    let ticket = channel.interrupts().watch(unique);
    Box::new(Watched { reply, ticket })
}

/// How a request that may wait ends.
trait Outcome<T: ?Sized> {
    fn request(&self) -> (&Arc<Channel>, u64);
    fn give(self, outcome: Result<&T, Errno>);
    fn give_restart(self);
}

/// The answer to an ioctl, in the client's layout.
struct Shaped {
    reply: Reply<ForIoctl>,
    shape: Shape,
}

impl Outcome<[u8]> for Shaped {
    fn request(&self) -> (&Arc<Channel>, u64) {
        (self.reply.channel(), self.reply.unique())
    }

    fn give(self, outcome: Result<&[u8], Errno>) {
        match outcome {
            Ok(argument) => self.reply.result(0, &self.shape.answer(argument)),
            Err(errno) => self.reply.failed(errno.raw()),
        }
    }

    fn give_restart(self) {
        self.reply.restart();
    }
}

impl Outcome<[u8]> for Reply<ForRead> {
    fn request(&self) -> (&Arc<Channel>, u64) {
        (self.channel(), self.unique())
    }

    fn give(self, outcome: Result<&[u8], Errno>) {
        match outcome {
            Ok(bytes) => self.data(bytes),
            Err(errno) => self.error(FuseErrno::from_i32(errno.raw())),
        }
    }

    fn give_restart(self) {
        // A read has no way to say -ERESTARTSYS through FUSE: the header takes errors up to 511 only.
        self.error(FuseErrno::EINTR);
    }
}

impl Outcome<u32> for Reply<ForWrite> {
    fn request(&self) -> (&Arc<Channel>, u64) {
        (self.channel(), self.unique())
    }

    fn give(self, outcome: Result<&u32, Errno>) {
        match outcome {
            Ok(count) => self.written(*count),
            Err(errno) => self.error(FuseErrno::from_i32(errno.raw())),
        }
    }

    fn give_restart(self) {
        // As for a read.
        self.error(FuseErrno::EINTR);
    }
}

impl<R: Outcome<T> + Send, T: ?Sized> Waiter<T> for Watched<R> {
    fn id(&self) -> u64 {
        self.ticket.unique()
    }

    fn sleep(&mut self, wake: Box<dyn FnOnce() + Send>) -> bool {
        self.ticket.sleep(wake).is_ok()
    }

    fn answer(self: Box<Self>, outcome: Result<&T, Errno>) {
        self.reply.give(outcome);
    }

    fn restart(self: Box<Self>) {
        self.reply.give_restart();
    }
}
