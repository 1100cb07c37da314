//! A `/dev/videoN` of ours: CUSE requests to sessions, session answers to CUSE replies.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fuser::{Errno as FuseErrno, IoctlFlags, PollEvents};
use nix::poll::PollFlags;
use vidcompat_proto::Errno;
use vidcompat_proto::abi::v4l2::V4l2Buffer;
use vidcompat_proto::ioc::Command;
use vidcompat_proto::ioctl::{self, Policy, QueueOp, Row};
use zerocopy::FromBytes;

use crate::client::CallShape;
use crate::cuse::{
    Caller, ForIoctl, ForRead, Handler, IoctlRequest, Operation, Reply, Request, Ticket, Turn,
};
use crate::session::{Blocking, Device, Session, Waiter};

/// The front end of one real node.
pub struct VideoNode {
    device: Arc<Device>,
    sessions: Mutex<HashMap<u64, Arc<Session>>>,
    next_fh: AtomicU64,
}

impl VideoNode {
    /// Serves `device`.
    #[must_use]
    pub fn new(device: Arc<Device>) -> Arc<Self> {
        Arc::new(Self {
            device,
            sessions: Mutex::default(),
            next_fh: AtomicU64::new(1),
        })
    }

    /// The node goes away: every call that waits ends.
    pub fn shut_down(&self) {
        let sessions: Vec<_> = self.sessions().values().cloned().collect();
        for session in sessions {
            session.shut_down();
        }
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Session>>> {
        // Changed by single calls only: never half done.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, fh: u64) -> Option<Arc<Session>> {
        self.sessions().get(&fh).cloned()
    }

    fn open(&self, flags: libc::c_int) -> Result<u64, Errno> {
        let session = Session::open(&self.device, flags)?;
        let fh = self.next_fh.fetch_add(1, Ordering::Relaxed);
        self.sessions().insert(fh, session);
        Ok(fh)
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
        let Some(row) = ioctl::lookup(command) else {
            return reply.failed(Errno::ENOTTY.raw());
        };
        let Some(session) = self.session(fh) else {
            return reply.failed(Errno::ENODEV.raw());
        };
        let compat = flags.contains(IoctlFlags::FUSE_IOCTL_COMPAT);
        let who = Blocking {
            tid: caller.tid,
            call: CallShape {
                compat,
                command: command.0,
                client_arg,
            },
        };
        match row.policy {
            Policy::Queue(QueueOp::Dqbuf) => {
                let Ok(argument) = V4l2Buffer::read_from_bytes(input) else {
                    return reply.failed(Errno::ENOTTY.raw());
                };
                let waiter = IoctlWaiter::boxed(reply);
                turn.pass();
                session.dequeue(&argument, who, waiter);
            }
            Policy::Dqevent => {
                let waiter = IoctlWaiter::boxed(reply);
                turn.pass();
                session.dequeue_event(row, who, waiter);
            }
            _ => {
                let mut argument = vec![0; command.size()];
                let given = input.len().min(argument.len());
                argument[..given].copy_from_slice(&input[..given]);
                turn.pass();
                let outcome = session.ioctl(row, &mut argument, caller.tid);
                answer(reply, row, outcome, &argument, out_size);
            }
        }
    }
}

/// Sends back what the driver would have copied back.
fn answer(reply: Reply<ForIoctl>, row: &Row, outcome: Result<i32, Errno>, argument: &[u8], out_size: u32) {
    let back = if row.command.is_read() {
        &argument[..argument.len().min(out_size as usize)]
    } else {
        &[]
    };
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
                turn.pass();
                match self.open(flags.0) {
                    Ok(fh) => reply.opened(fh),
                    Err(errno) => reply.error(FuseErrno::from_i32(errno.raw())),
                }
            }
            Operation::Release { fh, reply } => {
                turn.pass();
                let session = self.sessions().remove(&fh);
                if let Some(session) = session {
                    session.close();
                }
                reply.released();
            }
            Operation::Ioctl(ioctl) => self.ioctl(caller, ioctl, turn),
            Operation::Read {
                fh,
                offset,
                size,
                flags,
                reply,
            } => match self.session(fh) {
                None => reply.error(FuseErrno::ENODEV),
                Some(session) => {
                    let waiter = ReadWaiter::boxed(reply);
                    turn.pass();
                    session.read(offset, size as usize, flags.0 & libc::O_NONBLOCK != 0, waiter);
                }
            },
            Operation::Write { fh, data, reply, .. } => match self.session(fh) {
                None => reply.error(FuseErrno::ENODEV),
                Some(session) => {
                    let data = data.to_vec();
                    turn.pass();
                    match session.write(&data) {
                        Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
                        Err(errno) => reply.error(FuseErrno::from_i32(errno.raw())),
                    }
                }
            },
            Operation::Poll {
                fh,
                kh,
                events,
                schedule_notify,
                reply,
            } => match self.session(fh) {
                None => reply.ready(PollEvents::POLLERR | PollEvents::POLLHUP),
                Some(session) => {
                    turn.pass();
                    let channel = Arc::clone(reply.channel());
                    let notify: Option<Box<dyn Fn() + Send>> = if schedule_notify {
                        Some(Box::new(move || channel.notify_poll(kh)))
                    } else {
                        None
                    };
                    reply.ready(to_fuse(session.poll(from_fuse(events), notify)));
                }
            },
            Operation::Interrupt { unique, channel } => {
                turn.pass();
                channel.interrupts().interrupt(unique);
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

/// An ioctl that may wait: watched for an interrupt since it was read.
struct IoctlWaiter {
    reply: Reply<ForIoctl>,
    ticket: Ticket,
}

impl IoctlWaiter {
    /// To be made before the turn is passed: an interrupt can come right behind its request.
    fn boxed(reply: Reply<ForIoctl>) -> Box<dyn Waiter> {
        let ticket = reply.channel().interrupts().watch(reply.unique());
        Box::new(Self { reply, ticket })
    }
}

impl Waiter for IoctlWaiter {
    fn id(&self) -> u64 {
        self.ticket.unique()
    }

    fn sleep(&mut self, wake: Box<dyn FnOnce() + Send>) -> bool {
        self.ticket.sleep(wake).is_ok()
    }

    fn answer(self: Box<Self>, outcome: Result<&[u8], Errno>) {
        match outcome {
            Ok(argument) => self.reply.result(0, argument),
            Err(errno) => self.reply.failed(errno.raw()),
        }
    }

    fn restart(self: Box<Self>) {
        self.reply.restart();
    }
}

/// A read(2) that may wait.
struct ReadWaiter {
    reply: Reply<ForRead>,
    ticket: Ticket,
}

impl ReadWaiter {
    fn boxed(reply: Reply<ForRead>) -> Box<dyn Waiter> {
        let ticket = reply.channel().interrupts().watch(reply.unique());
        Box::new(Self { reply, ticket })
    }
}

impl Waiter for ReadWaiter {
    fn id(&self) -> u64 {
        self.ticket.unique()
    }

    fn sleep(&mut self, wake: Box<dyn FnOnce() + Send>) -> bool {
        self.ticket.sleep(wake).is_ok()
    }

    fn answer(self: Box<Self>, outcome: Result<&[u8], Errno>) {
        match outcome {
            Ok(bytes) => self.reply.data(bytes),
            Err(errno) => self.reply.error(FuseErrno::from_i32(errno.raw())),
        }
    }

    fn restart(self: Box<Self>) {
        // A read has no way to say -ERESTARTSYS through FUSE: the header takes errors up to 511 only.
        self.reply.error(FuseErrno::EINTR);
    }
}
