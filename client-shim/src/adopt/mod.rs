//! Adoption: the program's own pages become the device's buffer, and ordinary memory again.
//!
//! The daemon decides what is adopted and when it is given back; here it is done without the program's other threads
//! noticing ([`swap`], [`mod@give_back`]), or refused. What is adopted stands in a [`table`], because memory must come back
//! when the file is closed, which the daemon can no longer tell us on that file, or when the daemon has died. Nothing is
//! known here of V4L2 or of files.

mod fault;
mod fork;
mod give_back;
mod maps;
mod swap;
#[allow(unsafe_code)]
mod sys;
mod table;

use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fd::OwnedFd;
use vidcompat_proto::Errno;
use vidcompat_proto::shim::{Answer, Ask, Move, Outcome, Token};

use crate::link::{Link, LinkError};
use sys::Stretch;

/// Is anything of the program's adopted? One load.
pub(crate) fn any() -> bool {
    table::is_used()
}

/// So many moves at once are not a daemon's that is well.
const MOVES: usize = 64;

/// A QBUF was told to move first: does what the daemon wants, one move after the other. Afterwards the call is made again,
/// unless the daemon cannot be talked to (`false`).
pub(crate) fn obey(link: &Link) -> bool {
    for _ in 0..MOVES {
        let (wanted, file) = match link.ask(Ask::NextMove) {
            Ok((Answer::Move(wanted), file)) => (wanted, file),
            Ok((Answer::Nothing, _)) => return true,
            _ => return false,
        };
        let (client_addr, length, outcome) = match wanted {
            Move::Adopt { client_addr, length } => {
                (client_addr, length, adopt(link, client_addr, length, file))
            }
            Move::GiveBack { client_addr, length } => (client_addr, length, give_back(client_addr, length)),
        };
        let told = link.ask(Ask::Moved {
            client_addr,
            length,
            outcome,
        });
        if told.is_err() {
            return false;
        }
    }
    true
}

/// Buffers were freed, a file was closed: gives back what no session has any more.
pub(crate) fn reconcile() {
    let mut from = 0;
    // The session that is known to be gone: its other buffers are, too.
    let mut gone: Option<Token> = None;
    while any() {
        // The lock is not held while the daemon is asked: another thread may do the same, and the first gives back.
        let Some((serial, asked, link)) = table::lock().and_then(|table| {
            let entry = table.next_of(from, sys::user())?;
            Some((entry.serial, entry.asked, entry.link))
        }) else {
            return;
        };
        from = serial + 1;
        let token = link.hello.token;
        if gone != Some(token) {
            let answer = link.ask(Ask::IsLent {
                client_addr: asked.start as u64,
                length: asked.len as u64,
            });
            match answer {
                Ok((Answer::Nothing, _)) => {}
                Ok((Answer::Errno(Errno::ENOENT), _)) | Err(LinkError::NoDaemon) => gone = Some(token),
                // Nor would it answer for the others, and each wait is long.
                Err(LinkError::NoAnswer) => return,
                _ => continue,
            }
        }
        take_back(|entry| entry.serial == serial);
    }
}

fn stretch(client_addr: u64, length: u64) -> Option<Stretch> {
    let start = usize::try_from(client_addr).ok()?;
    let len = usize::try_from(length).ok()?;
    start.checked_add(len)?;
    Some(Stretch { start, len })
}

fn adopt(link: &Link, client_addr: u64, length: u64, file: Option<OwnedFd>) -> Outcome {
    if is_switched_off() {
        return Outcome::SwitchedOff;
    }
    let (Some(stretch), Some(file)) = (stretch(client_addr, length), file) else {
        return Outcome::NotOrdinary;
    };
    let Some(mut table) = table::lock() else {
        return Outcome::Refused;
    };
    if table.is_full() {
        return Outcome::TableFull;
    }
    if table.lies_in(stretch) {
        return Outcome::NotOrdinary;
    }
    if !table.watch_forks() {
        return Outcome::Refused;
    }
    match swap::adopt(stretch, &file) {
        Ok(adopted) => {
            table.add(adopted, *link);
            Outcome::Done
        }
        Err(outcome) => outcome,
    }
}

fn give_back(client_addr: u64, length: u64) -> Outcome {
    match stretch(client_addr, length) {
        Some(stretch) => take_back(|entry| entry.asked == stretch),
        None => Outcome::Gone,
    }
}

fn take_back(test: impl Fn(&table::Entry) -> bool) -> Outcome {
    let Some(mut table) = table::lock() else {
        return Outcome::Refused;
    };
    let Some(mut entry) = table.take(test) else {
        return Outcome::Gone;
    };
    match give_back::give_back(entry.adopted) {
        Ok(any) => {
            table.is_gone();
            if any { Outcome::Done } else { Outcome::Gone }
        }
        Err(adopted) => {
            entry.adopted = adopted;
            table.restore(entry);
            Outcome::Refused
        }
    }
}

/// Has the user said `VIDCOMPAT_ADOPT=0`? Looked up once: the environment is the program's to change.
fn is_switched_off() -> bool {
    const UNKNOWN: u8 = 0;
    const ON: u8 = 1;
    const OFF: u8 = 2;
    static SWITCH: AtomicU8 = AtomicU8::new(UNKNOWN);
    let mut switch = SWITCH.load(Ordering::Relaxed);
    if switch == UNKNOWN {
        let off = sys::environment(c"VIDCOMPAT_ADOPT", |value| matches!(value, b"0" | b"off" | b"no"));
        switch = if off { OFF } else { ON };
        SWITCH.store(switch, Ordering::Relaxed);
    }
    switch == OFF
}
