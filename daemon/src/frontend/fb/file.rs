//! An open file of a framebuffer node: what is behind it, where it is, and what its shim may ask.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vidcompat_proto::shim::{Answer, Ask, Token};

use super::keep::{Image, Keeping, Opening, Shelf};
use super::position::Position;
use crate::backend::framebuffer::FramebufferFile;
use crate::frontend::shim::{Peer, ShimFile};
use crate::tickets::Tickets;

/// See the module.
pub struct FbFile {
    pub(super) behind: Box<dyn FramebufferFile>,
    pub(super) position: Position,
    pub(super) exported: Tickets,
    pub(super) opening: Opening,
    /// By user.
    tokens: Mutex<Vec<(u32, Token)>>,
    /// `None`: it does not outlive us.
    keeping: Option<Keeping>,
}

impl FbFile {
    /// One that is being opened as `fh`.
    pub(super) fn new(
        behind: Box<dyn FramebufferFile>,
        opening: Opening,
        fh: u64,
        shelf: Option<&Shelf>,
    ) -> Arc<Self> {
        let keeping = shelf.and_then(|shelf| shelf.keep(fh, &*behind));
        let file = Arc::new(Self {
            behind,
            position: Position::default(),
            exported: Tickets::default(),
            opening,
            tokens: Mutex::default(),
            keeping,
        });
        file.commit();
        file
    }

    /// One that a daemon before us has had, as it has written it down. What was left to be fetched is not there any more: the
    /// shim asks for it anew.
    pub(super) fn again(behind: Box<dyn FramebufferFile>, image: Image, keeping: Keeping) -> Arc<Self> {
        Arc::new(Self {
            behind,
            position: Position::again(image.moves),
            exported: Tickets::default(),
            opening: image.opening,
            tokens: Mutex::new(image.tokens),
            keeping: Some(keeping),
        })
    }

    /// From now on a daemon after us goes on from here: to be called before anything that has changed is answered.
    pub(super) fn commit(&self) {
        if let Some(keeping) = &self.keeping {
            // Held meanwhile, so that what is written last is what was true last.
            let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            keeping.commit(self.opening, &tokens, &self.position.moves());
        }
    }

    /// The shim of user `uid` is told `token`, which stays valid.
    pub(super) fn remember_token(&self, uid: u32, token: Token) {
        {
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if tokens.contains(&(uid, token)) {
                return;
            }
            tokens.push((uid, token));
        }
        self.commit();
    }

    /// The tokens of shims, by user.
    pub(super) fn tokens(&self) -> Vec<(u32, Token)> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
