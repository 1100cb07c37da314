//! Requests, taken apart. Every number in them comes from a client or through one: nothing is trusted here but
//! lengths that were checked.

use std::sync::Arc;

use fuser::{Errno, IoctlFlags, OpenFlags, PollEvents};
use polyfuse_kernel::{
    FUSE_INTERRUPT, FUSE_IOCTL, FUSE_OPEN, FUSE_POLL, FUSE_POLL_SCHEDULE_NOTIFY, FUSE_READ, FUSE_RELEASE,
    FUSE_WRITE, fuse_in_header, fuse_interrupt_in, fuse_ioctl_in, fuse_open_in, fuse_poll_in, fuse_read_in,
    fuse_release_in, fuse_write_in,
};
use zerocopy::FromBytes;

use super::channel::{Channel, poll_events};
use super::reply::{ForIoctl, ForOpen, ForPoll, ForRead, ForRelease, ForWrite, Reply};

/// Who makes the call. Of RELEASE and INTERRUPT all three are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The calling *thread*, in our pid namespace; 0 where it cannot be named there. It cannot go away before its
    /// request is answered.
    pub tid: u32,
    /// fsuid
    pub uid: u32,
    /// fsgid
    pub gid: u32,
}

/// One request.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub caller: Caller,
    /// What for, with the right to answer.
    pub operation: Operation<'a>,
}

/// What is asked.
#[derive(Debug)]
pub enum Operation<'a> {
    /// open(2)
    Open {
        /// Flags of the open, without O_CREAT, O_EXCL, O_NOCTTY and O_TRUNC.
        flags: OpenFlags,
        /// The answer.
        reply: Reply<ForOpen>,
    },
    /// The last reference to a file is gone.
    Release {
        /// The file.
        fh: u64,
        /// The answer.
        reply: Reply<ForRelease>,
    },
    /// A piece of a read(2), at most [`super::MAX_IO`] bytes.
    Read {
        /// The file.
        fh: u64,
        /// Bytes that this same read(2) has got already.
        offset: u64,
        /// Bytes wanted.
        size: u32,
        /// Flags of the file now: O_NONBLOCK.
        flags: OpenFlags,
        /// The answer.
        reply: Reply<ForRead>,
    },
    /// A piece of a write(2).
    Write {
        /// The file.
        fh: u64,
        /// Bytes that this same write(2) has written already.
        offset: u64,
        /// Flags of the file now: O_NONBLOCK.
        flags: OpenFlags,
        /// The bytes.
        data: &'a [u8],
        /// The answer.
        reply: Reply<ForWrite>,
    },
    /// ioctl(2)
    Ioctl(IoctlRequest<'a>),
    /// poll(2), select(2), epoll.
    Poll {
        /// The file.
        fh: u64,
        /// The handle to notify.
        kh: u64,
        /// What the client waits for.
        events: PollEvents,
        /// Does anybody wait? Then a later change must be notified.
        schedule_notify: bool,
        /// The answer.
        reply: Reply<ForPoll>,
    },
    /// A signal for the caller of another request. Never answered itself.
    Interrupt {
        /// That request.
        unique: u64,
        /// Where it is watched.
        channel: Arc<Channel>,
    },
}

impl Operation<'_> {
    /// The number that it had first, where a daemon before us has had it already and has not answered.
    pub(super) fn resent(&self) -> Option<u64> {
        fn of<K>(reply: &Reply<K>) -> Option<u64> {
            reply.is_resent().then(|| reply.first_unique())
        }
        match self {
            Self::Open { reply, .. } => of(reply),
            Self::Release { reply, .. } => of(reply),
            Self::Read { reply, .. } => of(reply),
            Self::Write { reply, .. } => of(reply),
            Self::Ioctl(ioctl) => of(&ioctl.reply),
            Self::Poll { reply, .. } => of(reply),
            Self::Interrupt { .. } => None,
        }
    }

    /// Answers it with an error, whatever it is.
    pub(super) fn fail(self, errno: Errno) {
        match self {
            Self::Open { reply, .. } => reply.error(errno),
            Self::Release { reply, .. } => reply.error(errno),
            Self::Read { reply, .. } => reply.error(errno),
            Self::Write { reply, .. } => reply.error(errno),
            Self::Ioctl(ioctl) => ioctl.reply.error(errno),
            Self::Poll { reply, .. } => reply.error(errno),
            Self::Interrupt { .. } => {}
        }
    }
}

/// An ioctl. Of a restricted node the kernel has copied what the number says; of an unrestricted one nothing before it was
/// asked to ([`Reply::retry`]). Then the same ioctl comes as a request of its own, that nothing ties to the one before.
#[derive(Debug)]
pub struct IoctlRequest<'a> {
    /// The file.
    pub fh: u64,
    /// COMPAT and 32BIT for a 32-bit client.
    pub flags: IoctlFlags,
    /// The command, 32 bits.
    pub command: u32,
    /// The argument as the client passed it: its pointer, or a number.
    pub client_arg: u64,
    /// What the client gives. Restricted: `_IOC_SIZE` bytes, or none for `_IOR` and `_IO`.
    pub input: &'a [u8],
    /// How many bytes may go back.
    pub out_size: u32,
    /// The answer.
    pub reply: Reply<ForIoctl>,
}

/// A request that needs no handler.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParseError {
    /// Not even a header: nothing can be answered.
    #[error("a message of {0} bytes is no FUSE request")]
    NoHeader(usize),
    /// Answered with an error already.
    #[error("opcode {opcode} with {len} bytes is not served")]
    Refused { opcode: u32, len: usize },
}

/// Takes `message` apart. What is malformed or unknown has been answered when this returns.
pub(super) fn parse<'a>(channel: &Arc<Channel>, message: &'a [u8]) -> Result<Request<'a>, ParseError> {
    let (header, body) =
        fuse_in_header::read_from_prefix(message).map_err(|_| ParseError::NoHeader(message.len()))?;
    let caller = Caller {
        tid: header.pid,
        uid: header.uid,
        gid: header.gid,
    };
    let unique = header.unique;
    let operation = match header.opcode {
        FUSE_OPEN => take::<fuse_open_in>(body).map(|(open, _)| Operation::Open {
            flags: open_flags(open.flags),
            reply: Reply::new(channel, unique),
        }),
        FUSE_RELEASE => take::<fuse_release_in>(body).map(|(release, _)| Operation::Release {
            fh: release.fh,
            reply: Reply::new(channel, unique),
        }),
        FUSE_READ => take::<fuse_read_in>(body).map(|(read, _)| Operation::Read {
            fh: read.fh,
            offset: read.offset,
            size: read.size,
            flags: open_flags(read.flags),
            reply: Reply::new(channel, unique),
        }),
        FUSE_WRITE => take::<fuse_write_in>(body)
            .filter(|(write, data)| data.len() >= write.size as usize)
            .map(|(write, data)| Operation::Write {
                fh: write.fh,
                offset: write.offset,
                flags: open_flags(write.flags),
                data: &data[..write.size as usize],
                reply: Reply::new(channel, unique),
            }),
        FUSE_IOCTL => take::<fuse_ioctl_in>(body)
            .filter(|(ioctl, data)| data.len() >= ioctl.in_size as usize)
            .map(|(ioctl, data)| {
                Operation::Ioctl(IoctlRequest {
                    fh: ioctl.fh,
                    flags: IoctlFlags::from_bits_retain(ioctl.flags),
                    command: ioctl.cmd,
                    client_arg: ioctl.arg,
                    input: &data[..ioctl.in_size as usize],
                    out_size: ioctl.out_size,
                    reply: Reply::new(channel, unique),
                })
            }),
        FUSE_POLL => take::<fuse_poll_in>(body).map(|(poll, _)| Operation::Poll {
            fh: poll.fh,
            kh: poll.kh,
            events: poll_events(poll.events),
            schedule_notify: poll.flags & FUSE_POLL_SCHEDULE_NOTIFY != 0,
            reply: Reply::new(channel, unique),
        }),
        FUSE_INTERRUPT => {
            return match take::<fuse_interrupt_in>(body) {
                Some((interrupt, _)) => Ok(Request {
                    caller,
                    operation: Operation::Interrupt {
                        unique: interrupt.unique,
                        channel: Arc::clone(channel),
                    },
                }),
                None => Err(ParseError::Refused {
                    opcode: header.opcode,
                    len: message.len(),
                }),
            };
        }
        _ => None,
    };
    operation
        .map(|operation| Request { caller, operation })
        .ok_or_else(|| {
            // The kernel sends CUSE nothing else today; EIO is never remembered, ENOSYS sometimes is.
            Reply::<ForRelease>::new(channel, unique).error(Errno::EIO);
            ParseError::Refused {
                opcode: header.opcode,
                len: message.len(),
            }
        })
}

fn take<T: FromBytes>(body: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(body).ok()
}

fn open_flags(bits: u32) -> OpenFlags {
    OpenFlags(bits.cast_signed())
}
