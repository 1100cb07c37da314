//! The socket of the client shim: what CUSE cannot carry, for whoever has the token of the session.
//!
//! Knows messages and sessions; neither CUSE nor V4L2.

mod tokens;

use std::path::PathBuf;
use std::sync::Arc;

use vidcompat_proto::shim::{Hello, MAY_ADOPT, VERSION};

use crate::session::Session;

use tokens::Tokens;

/// What all nodes of a daemon tell shims.
#[derive(Debug)]
pub struct Shims {
    socket: PathBuf,
    may_adopt: bool,
    tokens: Tokens,
}

impl Shims {
    /// Sessions can be asked for at `socket`; with `may_adopt`, buffers may be adopted.
    #[must_use]
    pub fn new(socket: PathBuf, may_adopt: bool) -> Arc<Self> {
        Arc::new(Self {
            socket,
            may_adopt,
            tokens: Tokens::default(),
        })
    }

    /// What the shim of user `uid` is told about `session`. `None`: the socket's path is too long to be told.
    #[must_use]
    pub fn hello(&self, session: &Arc<Session>, uid: u32) -> Option<Hello> {
        let path = self.socket.as_os_str().as_encoded_bytes();
        let mut socket = [0; 108];
        socket.get_mut(..path.len())?.copy_from_slice(path);
        Some(Hello {
            version: VERSION,
            socket_len: u16::try_from(path.len()).ok()?,
            flags: if self.may_adopt { MAY_ADOPT } else { 0 },
            token: self.tokens.issue(session, uid)?,
            socket,
        })
    }

    /// The session that user `uid` has this token of.
    #[must_use]
    pub fn session(&self, token: &[u8; 16], uid: u32) -> Option<Arc<Session>> {
        self.tokens.find(token, uid)
    }
}
