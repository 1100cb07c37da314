//! An open file of a framebuffer node: what is behind it, where it is, and what its shim may ask.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use vidcompat_proto::shim::{Answer, Ask};

use super::position::Position;
use crate::backend::framebuffer::FramebufferFile;
use crate::frontend::shim::{Peer, ShimFile};
use crate::tickets::Tickets;

/// See the module.
pub struct FbFile {
    pub(super) behind: Box<dyn FramebufferFile>,
    pub(super) position: Position,
    pub(super) exported: Tickets,
}

impl FbFile {
    pub(super) fn new(behind: Box<dyn FramebufferFile>) -> Arc<Self> {
        Arc::new(Self {
            behind,
            position: Position::default(),
            exported: Tickets::default(),
        })
    }

    /// When this returns, what is behind it is closed. Who has just been answered may not have let go of it yet.
    pub(super) fn close(self: Arc<Self>) {
        let (mut file, mut tries) = (self, 0_u32);
        while let Err(shared) = Arc::try_unwrap(file) {
            file = shared;
            tries = tries.saturating_add(1);
            match tries {
                ..1000 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl ShimFile for FbFile {
    fn answer(self: Arc<Self>, _peer: Peer, ask: Ask, _may_adopt: bool) -> (Answer, Option<OwnedFd>) {
        match ask {
            Ask::Map {
                offset,
                length,
                prot,
                flags,
            } => match self.behind.map(offset, length, prot, flags) {
                Ok((file, offset)) => (Answer::Map { offset }, Some(file)),
                Err(errno) => (Answer::Errno(errno), None),
            },
            Ask::Fetch { ticket } => match self.exported.take(ticket) {
                Some((file, close_on_exec)) => (Answer::File { close_on_exec }, Some(file)),
                None => (Answer::Errno(vidcompat_proto::Errno::ENOENT), None),
            },
            // Nothing of the program's own memory is ever ours.
            Ask::NextMove | Ask::Moved { .. } | Ask::IsLent { .. } => (Answer::Nothing, None),
        }
    }
}
