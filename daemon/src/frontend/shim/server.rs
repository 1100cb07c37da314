//! The socket's threads: one that accepts, one for each connection, and some that close what is refused.
//!
//! Why threads: a file that a stranger sends along with a message (SCM_RIGHTS) is let go of in whatever thread of ours
//! takes or drops the message, and the last one to let go of a file may have to wait: for SO_LINGER of a TCP socket,
//! for a FUSE server that the stranger runs (`fuse_release` in fs/fuse/file.c writes back), for RELEASE of our own node.
//! Nothing can be done about that before Linux 6.16, where a socket can refuse such messages. So each connection takes,
//! waits and closes for itself, and counts until it is closed; and the thread that accepts never closes anything.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, getsockopt, setsockopt, shutdown, sockopt};

use super::complaints::Complaints;
use super::connection::{Peer, Serves, converse};
use super::crowd::{Crowd, Limits, Place, Refused};
use crate::claim::Claim;
use crate::sys;

/// Threads that close what is refused: as many strangers have to make one wait for long before others notice.
const CLOSERS: usize = 4;
/// Refused connections that are not closed yet. When there are more, nobody is accepted.
const REFUSED: usize = 1024;
/// Of a thread. A conversation needs little; the drivers' calls are the kernel's.
const STACK: usize = 256 << 10;
/// Answers that a client has not taken: some six of them have room in this (bytes, the kernel's least).
const SEND_BUFFER: usize = 1;
/// Before the next try to accept, where the system has no descriptor or thread left.
const PAUSE: Duration = Duration::from_millis(100);

/// A served socket. Dropped: nobody is served any more, and the path is free.
#[derive(Debug)]
pub struct Server {
    pub(super) crowd: Arc<Crowd>,
    ending: Arc<AtomicBool>,
    /// Connections that were refused, and closed by now.
    pub(super) refused: Arc<AtomicUsize>,
    claim: Claim,
}

impl Server {
    /// Serves `claim` with what `serves` knows.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub fn start(claim: Claim, serves: Arc<impl Serves>) -> io::Result<Self> {
        Self::with_limits(claim, serves, Limits::default())
    }

    pub(super) fn with_limits(claim: Claim, serves: Arc<impl Serves>, limits: Limits) -> io::Result<Self> {
        if let Err(error) = sys::refuse_files(&claim) {
            tracing::debug!(%error, "files that are sent to the shim's socket are dropped and not refused");
        }
        let listener = claim.as_fd().try_clone_to_owned()?;
        let refused = Arc::default();
        let (crowd, ending) = (Crowd::new(limits), Arc::new(AtomicBool::new(false)));
        let host = Host {
            crowd: Arc::clone(&crowd),
            serves,
            complaints: Arc::default(),
            refused: closers(&refused)?,
        };
        let until = Arc::clone(&ending);
        spawn("shim-accept", move || host.receive(&listener, &until))?;
        Ok(Self {
            crowd,
            ending,
            refused,
            claim,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let refused = self.refused.load(Ordering::Relaxed);
        tracing::debug!(refused, "the shim's socket ends");
        self.ending.store(true, Ordering::Release);
        // Wakes the thread that accepts, and lets nobody connect any more. A socket that outlives us would end with it: then
        // whoever wakes that thread is hung up on, and connects again to the next daemon.
        if !self.claim.stays()
            && let Err(error) = shutdown(self.claim.as_fd().as_raw_fd(), Shutdown::Both)
        {
            tracing::debug!(%error, "the shim's socket");
        }
        // What is under way may take long; the process does not wait for it.
        self.crowd.end();
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name(name.into())
        .stack_size(STACK)
        .spawn(work)
}

/// Threads that close what they are sent.
fn closers(closed: &Arc<AtomicUsize>) -> io::Result<SyncSender<OwnedFd>> {
    let (sender, receiver) = sync_channel(REFUSED);
    let receiver: Arc<Mutex<Receiver<OwnedFd>>> = Arc::new(Mutex::new(receiver));
    for _ in 0..CLOSERS {
        let (receiver, closed) = (Arc::clone(&receiver), Arc::clone(closed));
        spawn("shim-close", move || {
            loop {
                let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                match next {
                    Ok(socket) => {
                        drop(socket);
                        closed.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(_) => return,
                }
            }
        })?;
    }
    Ok(sender)
}

/// What the thread that accepts works with.
struct Host<S> {
    crowd: Arc<Crowd>,
    serves: Arc<S>,
    complaints: Arc<Complaints>,
    refused: SyncSender<OwnedFd>,
}

impl<S: Serves> Host<S> {
    fn receive(&self, listener: &OwnedFd, ending: &AtomicBool) {
        let mut in_trouble = false;
        while !ending.load(Ordering::Acquire) {
            match accept(listener) {
                Ok(socket) if ending.load(Ordering::Acquire) => self.refuse(socket),
                Ok(socket) => {
                    in_trouble = false;
                    self.welcome(socket);
                }
                Err(Errno::EINTR | Errno::EAGAIN | Errno::ECONNABORTED) => {}
                Err(_) if ending.load(Ordering::Acquire) => return,
                Err(error) => {
                    if !in_trouble {
                        tracing::warn!(%error, "nobody is accepted at the shim's socket for a while");
                    }
                    in_trouble = true;
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    fn welcome(&self, socket: OwnedFd) {
        // What the kernel does not know of a connected socket it never will.
        let Ok(peer) = peer(&socket) else {
            return self.refuse(socket);
        };
        if let Err(error) = setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER) {
            tracing::debug!(%error, "a client may leave more answers untaken");
        }
        match self.crowd.enter(socket, peer.uid) {
            Ok(place) => self.serve(place, peer),
            Err((socket, why)) => {
                self.refuse(socket);
                match why {
                    Refused::User => self
                        .complaints
                        .about(peer, "more connections than one user may have"),
                    Refused::Full => self
                        .complaints
                        .about(peer, "more connections than all users may have"),
                }
            }
        }
    }

    fn serve(&self, place: Place, peer: Peer) {
        let (serves, complaints) = (Arc::clone(&self.serves), Arc::clone(&self.complaints));
        let conversation = spawn("shim", move || converse(&place, peer, &*serves, &complaints));
        if let Err(error) = conversation {
            // The connection was closed with what the thread would have had.
            tracing::warn!(%error, "no thread is left for a client at the shim's socket");
        }
    }

    /// Waits only where hundreds are being closed and that takes long.
    fn refuse(&self, socket: OwnedFd) {
        // It is told at once, whenever it is closed.
        if let Err(error) = shutdown(socket.as_raw_fd(), Shutdown::Both) {
            tracing::trace!(%error, "the peer was faster");
        }
        drop(self.refused.send(socket));
    }
}

/// The next connection: waits for it.
fn accept(listener: &OwnedFd) -> Result<OwnedFd, Errno> {
    poll(
        &mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)],
        PollTimeout::NONE,
    )?;
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    rustix::net::accept_with(listener, flags).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
}

fn peer(socket: &OwnedFd) -> Result<Peer, Errno> {
    let known = getsockopt(socket, sockopt::PeerCredentials)?;
    Ok(Peer {
        pid: Some(known.pid()).filter(|pid| *pid > 0),
        uid: known.uid(),
    })
}
