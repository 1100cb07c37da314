//! One connection: questions and answers, one after the other, on a thread of its own.
//!
//! Everything that may wait is done here, where only this connection waits: the session's call, and also what the
//! kernel does when a message or the socket is let go of (see [`super::server`]).

use std::fmt::Display;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno as Failure;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use vidcompat_proto::Errno;
use vidcompat_proto::shim::{Answer, Ask, AskError, MESSAGE_BYTES, Token};

use super::complaints::Complaints;
use super::crowd::Place;

/// Questions on one connection. The shim asks some dozen.
const QUESTIONS: usize = 4096;

/// Who is connected, as the kernel has noted it at connect(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The process (thread group), by its number in our pid namespace. `None`: it has none there. It may have ended
    /// since, and another process may have its number.
    pub pid: Option<i32>,
    /// The effective user.
    pub uid: u32,
}

/// Whoever knows the answers.
pub trait Serves: Send + Sync + 'static {
    /// What `peer` is answered to `ask`, with the file that goes with it; `None`: it has no such token. May wait for a
    /// driver.
    fn answer(&self, peer: Peer, token: &Token, ask: Ask) -> Option<(Answer, Option<OwnedFd>)>;
}

/// Serves until the peer has gone, has said nothing for long, or has done what the shim does not do.
pub(super) fn converse(place: &Place, peer: Peer, serves: &impl Serves, complaints: &Complaints) {
    let socket = place.socket();
    for _ in 0..QUESTIONS {
        match question(socket, place.may_be_idle()) {
            Heard::Ask(ask, token) => {
                let Some(turn) = place.turn() else {
                    return complaints.about(
                        peer,
                        "so many questions at a time that this one waits for too long",
                    );
                };
                let answered = serves.answer(peer, &token, ask);
                drop(turn);
                let Some((answer, file)) = answered else {
                    let sent = tell(socket, Answer::Errno(Errno::ENOENT), None);
                    // Of a file that was closed, on purpose.
                    if matches!(ask, Ask::IsLent { .. }) && sent {
                        continue;
                    }
                    return complaints.about(peer, "a token that is none of this user's");
                };
                if !tell(socket, answer, file) {
                    return;
                }
            }
            Heard::Nothing => return,
            Heard::Nonsense(what, answer) => {
                if let Some(errno) = answer {
                    tell(socket, Answer::Errno(errno), None);
                }
                return complaints.about(peer, what);
            }
        }
    }
    complaints.about(peer, "questions without end");
}

enum Heard {
    Ask(Ask, Token),
    /// The peer has gone, or says nothing.
    Nothing,
    /// What it has sent, and what it is answered.
    Nonsense(Box<dyn Display>, Option<Errno>),
}

/// The next message. Files that come with it are dropped by the kernel, because there is no room for them.
fn question(socket: &OwnedFd, idle: Duration) -> Heard {
    let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(idle).unwrap_or(PollTimeout::MAX);
    match poll(&mut wanted, patience) {
        Ok(0) => return Heard::Nothing,
        Ok(_) | Err(Failure::EINTR) => {}
        Err(_) => return Heard::Nothing,
    }
    let mut message = [0; MESSAGE_BYTES];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
    // With MSG_TRUNC: the length that it has, not the length that we have taken.
    match recv(socket.as_raw_fd(), &mut message, flags) {
        // The end, or a message of no bytes.
        Ok(0) | Err(_) => Heard::Nothing,
        Ok(MESSAGE_BYTES) => match Ask::decode(&message) {
            Ok((ask, token)) => Heard::Ask(ask, token),
            // In our version: so another one sees that it has met us.
            Err(error @ AskError::Version(_)) => Heard::Nonsense(Box::new(error), Some(OTHER_VERSION)),
            Err(error @ AskError::Kind(_)) => Heard::Nonsense(Box::new(error), Some(Errno::ENOTTY)),
            Err(error @ AskError::NotOurs) => Heard::Nonsense(Box::new(error), None),
        },
        Ok(bytes) => Heard::Nonsense(Box::new(format!("a message of {bytes} bytes")), None),
    }
}

/// `EPROTO`
const OTHER_VERSION: Errno = Errno::from_raw(71);

/// Sends an answer if the peer has room for it. `false`: it has not, or is gone.
fn tell(socket: &OwnedFd, answer: Answer, file: Option<OwnedFd>) -> bool {
    let message = answer.encode();
    let files: Vec<_> = file.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&message)],
        if files.is_empty() { &[] } else { &rights },
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
        None,
    );
    sent == Ok(MESSAGE_BYTES)
}
