//! The socket of the client shim: what CUSE cannot carry, for whoever has the token of the session.
//!
//! Knows messages and sessions; neither CUSE nor V4L2. [`Shims`] says what a question means, the server ([`Server`])
//! who may ask, how often and how long.

mod complaints;
mod connection;
mod crowd;
mod server;
#[cfg(test)]
mod tests;
mod tokens;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::shim::{Answer, Ask, Hello, MAY_ADOPT, Token, VERSION};

use crate::session::Session;

pub use connection::{Peer, Serves};
pub use server::Server;
use tokens::Tokens;

/// Bytes of a path that a socket can have (`sun_path` of unix(7), with its end).
pub const LONGEST_PATH: usize = 107;

/// What all nodes of a daemon tell shims.
pub struct Shims {
    /// `None`: there is no socket, and shims are told nothing.
    socket: Option<PathBuf>,
    may_adopt: bool,
    tokens: Tokens<Session>,
}

impl Shims {
    /// Sessions can be asked for at `socket`, if anywhere; with `may_adopt`, buffers may be adopted.
    #[must_use]
    pub fn new(socket: Option<PathBuf>, may_adopt: bool) -> Arc<Self> {
        Arc::new(Self {
            socket,
            may_adopt,
            tokens: Tokens::default(),
        })
    }

    /// What the shim of user `uid` is told about `session`. `None`: nothing, as by a daemon that knows of no shim.
    #[must_use]
    pub fn hello(&self, session: &Arc<Session>, uid: u32) -> Option<Hello> {
        let path = self.socket.as_ref()?.as_os_str().as_encoded_bytes();
        let mut socket = [0; LONGEST_PATH + 1];
        socket[..LONGEST_PATH]
            .get_mut(..path.len())?
            .copy_from_slice(path);
        Some(Hello {
            version: VERSION,
            socket_len: u16::try_from(path.len()).ok()?,
            flags: if self.may_adopt { MAY_ADOPT } else { 0 },
            token: self.tokens.issue(session, uid)?,
            socket,
        })
    }

    /// The last reference to the file of `session` is gone: nobody finds it any more. Who waits for it to be let go
    /// of waits for the questions that are under way, and for no others.
    pub fn ended(&self, session: &Arc<Session>) {
        self.tokens.forget(session);
    }

    fn ask(&self, session: &Arc<Session>, peer: Peer, ask: Ask) -> (Answer, Option<OwnedFd>) {
        // Whose process we cannot name, or who must not adopt, has nothing to move.
        let mover = peer.pid.filter(|_| self.may_adopt);
        match (ask, mover) {
            (
                Ask::Map {
                    offset,
                    length,
                    prot,
                    flags,
                },
                _,
            ) => match session.map_for_shim(offset, length, prot, flags) {
                Ok((file, offset)) => (Answer::Map { offset }, Some(file)),
                Err(errno) => (Answer::Errno(errno), None),
            },
            (Ask::Fetch { ticket }, _) => match session.fetch_for_shim(ticket) {
                Ok((file, close_on_exec)) => (Answer::File { close_on_exec }, Some(file)),
                Err(errno) => (Answer::Errno(errno), None),
            },
            (Ask::NextMove, Some(pid)) => match session.next_move(pid) {
                Some((step, file)) => (Answer::Move(step), file),
                None => (Answer::Nothing, None),
            },
            (
                Ask::Moved {
                    client_addr,
                    length,
                    outcome,
                },
                Some(pid),
            ) => {
                session.moved(pid, client_addr, length, outcome);
                (Answer::Nothing, None)
            }
            (Ask::IsLent { client_addr, length }, Some(pid)) => {
                match session.is_lent(pid, client_addr, length) {
                    true => (Answer::Yes, None),
                    false => (Answer::Nothing, None),
                }
            }
            (Ask::NextMove | Ask::Moved { .. } | Ask::IsLent { .. }, None) => (Answer::Nothing, None),
        }
    }
}

impl Serves for Shims {
    fn answer(&self, peer: Peer, token: &Token, ask: Ask) -> Option<(Answer, Option<OwnedFd>)> {
        // Let go of at the end of this call: who closes the file waits for it.
        let session = self.tokens.find(token, peer.uid)?;
        let (answer, file) = self.ask(&session, peer, ask);
        if answer.has_file() == file.is_some() {
            Some((answer, file))
        } else {
            tracing::error!(
                ?answer,
                "an answer of a session and its file do not belong together"
            );
            Some((Answer::Errno(Errno::EIO), None))
        }
    }
}
