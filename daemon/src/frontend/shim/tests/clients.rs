//! A server whose answers are known, and what clients do to it.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg,
    socket_with, sockopt,
};
use vidcompat_proto::shim::{Answer, Ask, Token};

use super::super::crowd::Limits;
use super::super::{Peer, Server, Serves};
use crate::claim::{Claim, Kind};

/// With less patience than for people.
pub const LIMITS: Limits = Limits {
    connections: 32,
    of_user: 16,
    asking: 4,
    patience: Duration::from_millis(300),
    idle: Duration::from_millis(700),
};
/// Ours.
pub const TOKEN: Token = [7; 16];
/// A question that is answered only when [`Answers::let_go`] is called.
pub const SLOW: Ask = Ask::Fetch { ticket: 13 };

/// What the server knows.
#[derive(Default)]
pub struct Answers {
    /// Questions by who has asked.
    pub asked: Mutex<Vec<(Peer, Ask)>>,
    held: Mutex<bool>,
    changed: Condvar,
    pub waiting: AtomicUsize,
}

impl Answers {
    pub fn hold(&self) {
        *self.held.lock().expect("a lock") = true;
    }

    pub fn let_go(&self) {
        *self.held.lock().expect("a lock") = false;
        self.changed.notify_all();
    }
}

impl Serves for Answers {
    fn answer(&self, peer: Peer, token: &Token, ask: Ask) -> Option<(Answer, Option<OwnedFd>)> {
        if *token != TOKEN {
            return None;
        }
        self.asked.lock().expect("a lock").push((peer, ask));
        if ask == SLOW {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let held = self.held.lock().expect("a lock");
            drop(self.changed.wait_while(held, |held| *held).expect("a lock"));
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        Some(match ask {
            Ask::Map { offset, .. } => (Answer::Map { offset: offset + 1 }, Some(file())),
            Ask::Fetch { ticket: 0 } => (Answer::Errno(vidcompat_proto::Errno::ENOENT), None),
            Ask::Fetch { .. } => (Answer::File { close_on_exec: true }, Some(file())),
            Ask::IsLent { .. } => (Answer::Yes, None),
            Ask::NextMove | Ask::Moved { .. } => (Answer::Nothing, None),
        })
    }
}

fn file() -> OwnedFd {
    fs::File::open("/dev/null").expect("a file").into()
}

/// A server in a folder of its own.
pub struct Served {
    pub path: PathBuf,
    pub answers: Arc<Answers>,
    server: Option<Server>,
}

impl Served {
    pub fn new(name: &str, limits: Limits) -> Self {
        let folder = std::env::temp_dir().join(format!("vidcompat-shim-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let path = folder.join("shim.sock");
        let answers = Arc::new(Answers::default());
        let claim = Claim::new(&path, Kind::Shim).expect("a new folder");
        let server = Server::with_limits(claim, Arc::clone(&answers), limits).expect("a server");
        Self {
            path,
            answers,
            server: Some(server),
        }
    }

    pub fn end(&mut self) {
        self.server = None;
    }

    /// Waits until the server has no connection left.
    pub fn settle(&self) {
        eventually(|| self.connections() == 0);
    }

    pub fn connections(&self) -> usize {
        self.server
            .as_ref()
            .map_or(0, |server| server.crowd.connections())
    }

    /// Connections that were refused, and closed.
    pub fn refused(&self) -> usize {
        let server = self.server.as_ref();
        server.map_or(0, |server| server.refused.load(Ordering::SeqCst))
    }

    pub fn connect(&self) -> Client {
        Client::to(&self.path).expect("served")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.answers.let_go();
        self.end();
        let folder = self.path.parent().expect("a folder");
        fs::remove_dir(folder).expect("the socket goes with its daemon");
    }
}

/// A connection of a client.
pub struct Client(pub OwnedFd);

impl Client {
    pub fn to(path: &Path) -> Result<Self, Errno> {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Longer than anything that the server waits for.
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(10)))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// # Errors
    /// `EPIPE`, `ECONNRESET`: the other side has ended the connection; `EPERM`: it takes no files.
    pub fn send(&self, message: &[u8], files: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); 256];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)), "room");
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.0, &[IoSlice::new(message)], &mut ancillary, flags).map(drop)
    }

    /// `None`: the other side has ended the connection.
    pub fn receive(&self) -> Option<(Answer, Option<OwnedFd>)> {
        let mut message = [0; 256];
        let mut space = [MaybeUninit::uninit(); 256];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let bytes = loop {
            let parts = &mut [IoSliceMut::new(&mut message)];
            match recvmsg(&self.0, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                // Said before what was sent: there is more of ours that it has not read.
                Err(Errno::CONNRESET) => {}
                other => break other.expect("an answer or the end within ten seconds").bytes,
            }
        };
        let mut files = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                files.extend(fds);
            }
        }
        if bytes == 0 {
            return None;
        }
        let answer = Answer::decode(&message[..bytes]).expect("an answer of ours");
        assert_eq!(files.len(), usize::from(answer.has_file()), "{answer:?}");
        Some((answer, files.pop()))
    }

    /// Nothing is said any more, and then the end comes.
    pub fn is_ended(&self) -> bool {
        self.receive().is_none()
    }

    pub fn ask(&self, ask: Ask) -> Option<Answer> {
        self.send(&ask.encode(TOKEN), &[]).ok()?;
        self.receive().map(|(answer, _)| answer)
    }
}

/// Waits until `true`.
pub fn eventually(what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() {
        assert!(begun.elapsed() < Duration::from_secs(10), "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}
