//! The socket of the client shim: what CUSE cannot carry, for whoever has the token of the session.
//!
//! Knows messages and open files; neither CUSE nor V4L2. A file ([`ShimFile`]) says what a question means, [`Shims`] which
//! file is asked, the server ([`Server`]) who may ask, how often and how long.

mod complaints;
mod connection;
mod crowd;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod tokens;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use vidcompat_proto::Errno;
use vidcompat_proto::shim::{Answer, Ask, Hello, MAY_ADOPT, Token, VERSION};

pub use connection::{Peer, Serves};
pub use server::Server;
use tokens::Tokens;

/// Bytes of a path that a socket can have (`sun_path` of unix(7), with its end).
pub const LONGEST_PATH: usize = 107;

/// An open file of a node of ours, that shims ask questions about.
pub trait ShimFile: Send + Sync + 'static {
    /// What `peer` is answered to `ask`, with the file that goes with it. May wait for a driver. With `may_adopt` the
    /// operator lets buffers be adopted.
    fn answer(self: Arc<Self>, peer: Peer, ask: Ask, may_adopt: bool) -> (Answer, Option<OwnedFd>);
}

/// What all nodes of a daemon tell shims.
pub struct Shims {
    /// `None`: there is no socket, and shims are told nothing.
    socket: Option<PathBuf>,
    may_adopt: bool,
    tokens: Tokens<dyn ShimFile>,
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

    /// What the shim of user `uid` is told about `file`. `None`: nothing, as by a daemon that knows of no shim.
    #[must_use]
    pub fn hello<F: ShimFile>(&self, file: &Arc<F>, uid: u32) -> Option<Hello> {
        let path = self.socket.as_ref()?.as_os_str().as_encoded_bytes();
        let mut socket = [0; LONGEST_PATH + 1];
        socket[..LONGEST_PATH]
            .get_mut(..path.len())?
            .copy_from_slice(path);
        Some(Hello {
            version: VERSION,
            socket_len: u16::try_from(path.len()).ok()?,
            flags: if self.may_adopt { MAY_ADOPT } else { 0 },
            token: self.tokens.issue(&of(file), uid)?,
            socket,
        })
    }

    /// The shim of user `uid` has had `token` of `file` from a daemon before us.
    pub fn hello_again<F: ShimFile>(&self, file: &Arc<F>, uid: u32, token: Token) {
        self.tokens.issue_again(&of(file), uid, token);
    }

    /// The last reference to `file` is gone: nobody finds it any more. Who waits for it to be let go of waits for the
    /// questions that are under way, and for no others.
    pub fn ended<F: ShimFile>(&self, file: &Arc<F>) {
        self.tokens.forget(&of(file));
    }
}

fn of<F: ShimFile>(file: &Arc<F>) -> Arc<dyn ShimFile> {
    Arc::<F>::clone(file)
}

impl Serves for Shims {
    fn answer(&self, peer: Peer, token: &Token, ask: Ask) -> Option<(Answer, Option<OwnedFd>)> {
        // Let go of at the end of this call: who closes the file waits for it.
        let asked = self.tokens.find(token, peer.uid)?;
        let (answer, file) = asked.answer(peer, ask, self.may_adopt);
        if answer.has_file() == file.is_some() {
            Some((answer, file))
        } else {
            tracing::error!(?answer, "an answer and its file do not belong together");
            Some((Answer::Errno(Errno::EIO), None))
        }
    }
}
