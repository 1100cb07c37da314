//! What shims ask about a file of a V4L2 node.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vidcompat_proto::shim::{Answer, Ask};

use super::{Peer, ShimFile};
use crate::session::Session;

impl ShimFile for Session {
    fn answer(self: Arc<Self>, peer: Peer, ask: Ask, may_adopt: bool) -> (Answer, Option<OwnedFd>) {
        // Whose process we cannot name, or who must not adopt, has nothing to move.
        let mover = peer.pid.filter(|_| may_adopt);
        match (ask, mover) {
            (
                Ask::Map {
                    offset,
                    length,
                    prot,
                    flags,
                },
                _,
            ) => match self.map_for_shim(offset, length, prot, flags) {
                Ok((file, offset)) => (Answer::Map { offset }, Some(file)),
                Err(errno) => (Answer::Errno(errno), None),
            },
            (Ask::Fetch { ticket }, _) => match self.fetch_for_shim(ticket) {
                Ok((file, close_on_exec)) => (Answer::File { close_on_exec }, Some(file)),
                Err(errno) => (Answer::Errno(errno), None),
            },
            (Ask::NextMove, Some(pid)) => match self.next_move(pid) {
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
                self.moved(pid, client_addr, length, outcome);
                (Answer::Nothing, None)
            }
            (Ask::IsLent { client_addr, length }, Some(pid)) => {
                match self.is_lent(pid, client_addr, length) {
                    true => (Answer::Yes, None),
                    false => (Answer::Nothing, None),
                }
            }
            (Ask::NextMove | Ask::Moved { .. } | Ask::IsLent { .. }, None) => (Answer::Nothing, None),
        }
    }
}
