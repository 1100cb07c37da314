//! The way to the daemon: the token of a file, and one question on the socket.
//!
//! Each question has a connection of its own, for there is nowhere to keep one: the program may close any fd, and a child
//! has its parent's. Nothing of what comes back is believed before it is one of the answers there are.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno as OsError;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, send, socket_with,
};
use vidcompat_proto::shim::{Answer, Ask, Hello, MESSAGE_BYTES, VERSION};

use crate::{node, sys};

/// How long a daemon may take for one step. It answers in microseconds, and in some milliseconds when it is busy.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// What a file of ours has told about its daemon. Plain bytes: it may outlive the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) hello: Hello,
}

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// Nobody listens: the daemon has gone.
    NoDaemon,
    /// It is busy, of another version, or does not answer in time.
    NoAnswer,
}

impl Link {
    /// Of the file behind `fd`. `None`: it is none of ours, or its daemon is an old one, another version, or dead.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        if !node::is_ours(fd) {
            return None;
        }
        let hello = sys::hello(fd).ok()?;
        (hello.version == VERSION).then_some(Self { hello })
    }

    /// Asks, and waits for the answer, some seconds at most. The fd that comes with it is close-on-exec, and it comes with
    /// the answers that have one and with no others.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub(crate) fn ask(&self, ask: Ask) -> Result<(Answer, Option<OwnedFd>), LinkError> {
        let socket = self.connect()?;
        persist(|| send(&socket, &ask.encode(self.hello.token), SendFlags::NOSIGNAL))
            .map_err(|_| LinkError::NoAnswer)?;
        receive(socket.as_fd())
    }

    fn connect(&self) -> Result<OwnedFd, LinkError> {
        let path = self.hello.socket.get(..usize::from(self.hello.socket_len));
        let address = path
            .filter(|path| !path.is_empty())
            .and_then(|path| SocketAddrUnix::new(path).ok())
            .ok_or(LinkError::NoAnswer)?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|_| LinkError::NoAnswer)?;
        // connect, too, waits: for a place in the queue of a daemon that does not accept.
        for which in [Timeout::Send, Timeout::Recv] {
            set_socket_timeout(&socket, which, Some(PATIENCE)).map_err(|_| LinkError::NoAnswer)?;
        }
        match persist(|| connect(&socket, &address)) {
            Ok(()) => Ok(socket),
            Err(OsError::CONNREFUSED | OsError::NOENT) => Err(LinkError::NoDaemon),
            Err(_) => Err(LinkError::NoAnswer),
        }
    }
}

/// Does `call` again as long as signals end it, but not for ever: each time the socket's patience begins anew.
fn persist<T>(mut call: impl FnMut() -> Result<T, OsError>) -> Result<T, OsError> {
    let begin = Instant::now();
    loop {
        match call() {
            Err(OsError::INTR) if begin.elapsed() < PATIENCE => {}
            done => return done,
        }
    }
}

fn receive(socket: BorrowedFd<'_>) -> Result<(Answer, Option<OwnedFd>), LinkError> {
    let mut message = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = persist(|| {
        let mut into = [IoSliceMut::new(&mut message)];
        recvmsg(socket, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    });
    let received = received.map_err(|_| LinkError::NoAnswer)?;
    // The space's padding has room for a second one on 64 bits.
    let mut files = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let mut files = files.by_ref().flatten();
    let file = files.next();
    let one = files.next().is_none();
    drop(files);

    let whole = !received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let answer = message
        .get(..received.bytes)
        .and_then(|message| Answer::decode(message).ok());
    match answer {
        Some(answer) if whole && one && answer.has_file() == file.is_some() => Ok((answer, file)),
        _ => Err(LinkError::NoAnswer),
    }
}
