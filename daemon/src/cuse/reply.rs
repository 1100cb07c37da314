//! Answers. A [`Reply`] is the right to answer one request, and the duty: dropped without an answer it says `EIO`.

use std::fmt;
use std::io::IoSlice;
use std::marker::PhantomData;
use std::sync::Arc;

use fuser::{Errno, PollEvents};
use polyfuse_kernel::{
    FUSE_IOCTL_RETRY, fuse_ioctl_iovec, fuse_ioctl_out, fuse_open_out, fuse_out_header, fuse_poll_out,
    fuse_write_out,
};
use zerocopy::IntoBytes;

use super::channel::{Channel, MAX_IO};

/// `-ERESTARTSYS`: with a signal pending the kernel restarts the call or returns `EINTR`, as the handler's flags
/// say; without one the client would see errno 512 (KERNEL.md A2).
const RESTART: i32 = -512;

/// In the number of a request that the kernel sends again (`FUSE_UNIQUE_RESEND`, linux/fuse.h). It is part of the number from
/// then on: the answer bears it (`request_find` in fs/fuse/dev.c compares whole numbers), an INTERRUPT names the request with it
/// (`fuse_read_interrupt`), and a request that is sent a third time has the same number as the second.
const RESENT: u64 = 1 << 63;

/// Marks the answer to an OPEN.
#[derive(Debug)]
pub struct ForOpen;
/// Marks the answer to a RELEASE.
#[derive(Debug)]
pub struct ForRelease;
/// Marks the answer to a READ.
#[derive(Debug)]
pub struct ForRead;
/// Marks the answer to a WRITE.
#[derive(Debug)]
pub struct ForWrite;
/// Marks the answer to an IOCTL.
#[derive(Debug)]
pub struct ForIoctl;
/// Marks the answer to a POLL.
#[derive(Debug)]
pub struct ForPoll;

/// A stretch of a client's memory, to be copied by the kernel on the client's behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientArea {
    /// Where it begins.
    pub client_addr: u64,
    /// Bytes.
    pub length: u64,
}

/// Areas that one [`Reply::retry`] may name, input and output together (`FUSE_IOCTL_MAX_IOV`, fs/fuse/ioctl.c:361).
pub const MAX_AREAS: usize = 256;

/// The right to answer one request of kind `K`.
#[must_use]
pub struct Reply<K> {
    channel: Arc<Channel>,
    unique: u64,
    answered: bool,
    kind: PhantomData<K>,
}

impl<K> Reply<K> {
    pub(super) fn new(channel: &Arc<Channel>, unique: u64) -> Self {
        Self {
            channel: Arc::clone(channel),
            unique,
            answered: false,
            kind: PhantomData,
        }
    }

    /// The request that this answers.
    #[must_use]
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// The number that the request had when the kernel sent it first: of a request that is sent again, what the daemon
    /// before us knew it by.
    #[must_use]
    pub fn first_unique(&self) -> u64 {
        self.unique & !RESENT
    }

    /// Was the request handed to a daemon before us already, which did not answer it? It may have executed it.
    #[must_use]
    pub fn is_resent(&self) -> bool {
        self.unique & RESENT != 0
    }

    /// The channel that the request came from.
    #[must_use]
    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Fails the request. The kernel takes -1 to -511 in the header; `ENOSYS` becomes `EIO` (module comment).
    pub fn error(mut self, errno: Errno) {
        self.send_error(errno);
    }

    fn send_error(&mut self, errno: Errno) {
        let code = match errno.code() {
            code @ 1..=511 if code != Errno::ENOSYS.code() => code,
            _ => Errno::EIO.code(),
        };
        self.send(-code, &[]);
    }

    fn send(&mut self, error: i32, parts: &[&[u8]]) {
        self.answered = true;
        let len = size_of::<fuse_out_header>() + parts.iter().map(|part| part.len()).sum::<usize>();
        let header = fuse_out_header {
            len: u32::try_from(len).unwrap_or(u32::MAX),
            error,
            unique: self.unique,
        };
        let first = parts.first().copied().unwrap_or_default();
        let second = parts.get(1).copied().unwrap_or_default();
        let message = [
            IoSlice::new(header.as_bytes()),
            IoSlice::new(first),
            IoSlice::new(second),
        ];
        if let Err(error) = self.channel.write(&message) {
            // ENOENT: a fatal signal took the request back. Everything else: the channel is ending.
            tracing::debug!(unique = self.unique, %error, "answer not taken");
        }
    }
}

impl<K> Drop for Reply<K> {
    fn drop(&mut self) {
        if !self.answered {
            tracing::error!(
                unique = self.unique,
                "a request was dropped without an answer: EIO"
            );
            self.send_error(Errno::EIO);
        }
    }
}

impl<K> fmt::Debug for Reply<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({})", self.unique)
    }
}

impl Reply<ForOpen> {
    /// The file is open; later requests carry `fh`.
    pub fn opened(mut self, fh: u64) {
        let body = fuse_open_out {
            fh,
            ..fuse_open_out::default()
        };
        self.send(0, &[body.as_bytes()]);
    }
}

impl Reply<ForRelease> {
    /// The file is closed.
    pub fn released(mut self) {
        self.send(0, &[]);
    }
}

impl Reply<ForRead> {
    /// `bytes` were read; fewer than asked end the client's call.
    pub fn data(mut self, bytes: &[u8]) {
        self.send(0, &[bytes]);
    }
}

impl Reply<ForWrite> {
    /// `count` bytes were written.
    pub fn written(mut self, count: u32) {
        let body = fuse_write_out {
            size: count,
            ..fuse_write_out::default()
        };
        self.send(0, &[body.as_bytes()]);
    }
}

impl Reply<ForIoctl> {
    /// The ioctl returned `result` (negative: `-errno`, any number) and `argument` goes back to the client. At most
    /// the size in the command's number may go back; the kernel copies it also when `result` is negative.
    pub fn result(mut self, result: i32, argument: &[u8]) {
        let body = fuse_ioctl_out {
            result,
            ..fuse_ioctl_out::default()
        };
        self.send(0, &[body.as_bytes(), argument]);
    }

    /// Of an unrestricted node: the same ioctl is to come again, as a new request that has the bytes of `input`, one area
    /// after the other, and room for those of `output`. Where the client cannot read an area of `input` its call fails with
    /// `EFAULT`, and nothing comes again; an area of `output` that it cannot write fails the call after everything was done.
    ///
    /// More than [`MAX_AREAS`], or more than [`super::MAX_IO`] bytes of input or of output: `ENOMEM`, as the kernel says.
    pub fn retry(mut self, input: &[ClientArea], output: &[ClientArea]) {
        let too_long = |areas: &[ClientArea]| {
            let length = areas
                .iter()
                .try_fold(0_u64, |sum, area| sum.checked_add(area.length));
            length.is_none_or(|length| length > u64::from(MAX_IO))
        };
        if input.len() + output.len() > MAX_AREAS || too_long(input) || too_long(output) {
            return self.failed(libc::ENOMEM);
        }
        let vectors: Vec<_> = input
            .iter()
            .chain(output)
            .map(|area| fuse_ioctl_iovec {
                base: area.client_addr,
                len: area.length,
            })
            .collect();
        let body = fuse_ioctl_out {
            result: 0,
            flags: FUSE_IOCTL_RETRY,
            in_iovs: u32::try_from(input.len()).unwrap_or(u32::MAX),
            out_iovs: u32::try_from(output.len()).unwrap_or(u32::MAX),
        };
        self.send(0, &[body.as_bytes(), vectors.as_bytes()]);
    }

    /// The ioctl failed with `errno` (positive), and nothing goes back.
    pub fn failed(self, errno: i32) {
        self.result(-errno, &[]);
    }

    /// The answer to an interrupt: as if the driver had returned `-ERESTARTSYS`.
    pub fn restart(self) {
        self.result(RESTART, &[]);
    }
}

impl Reply<ForPoll> {
    /// What is ready.
    pub fn ready(mut self, events: PollEvents) {
        let body = fuse_poll_out {
            revents: events.bits(),
            ..fuse_poll_out::default()
        };
        self.send(0, &[body.as_bytes()]);
    }
}
