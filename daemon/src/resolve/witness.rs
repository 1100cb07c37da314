//! What tells one object from another where their mappings look the same: buffers of one V4L2 queue.

use std::fmt;
use std::ops::Range;
use std::os::fd::AsFd;

use nix::unistd::gettid;

use crate::client::BlockedThread;
use crate::sys::{self, CpuUse, Mapping};

/// What stands at an address, as a number. Who maps something else there has another one, as long as we keep the first
/// object alive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Witness {
    /// The page frame.
    Frame(u64),
    /// What the driver has put behind the mapping, where memory has no pages.
    Object(u64),
}

impl fmt::Debug for Witness {
    // An address of the kernel is nobody's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Frame(_) => "Frame",
            Self::Object(_) => "Object",
        })
    }
}

impl Witness {
    /// Is it still so, at the address where it was found?
    pub(super) fn still_holds(self, client: &BlockedThread, client_addr: u64) -> bool {
        match self {
            Self::Frame(frame) => client.frame(client_addr) == Some(frame),
            Self::Object(object) => {
                matches!(sys::object_at(client.tid(), client_addr), Ok(Some(now)) if now == object)
            }
        }
    }
}

/// What a client has behind a range, to be compared with objects that could be it.
pub(super) struct Seen {
    witness: Witness,
    /// Some pages of the range, each with its distance from the range's first byte and its frame.
    pages: Vec<(u64, u64)>,
    /// Bytes
    length: u64,
}

/// Looks at `range` of the client.
///
/// # Errors
/// Why it cannot be told from others, for people.
pub(super) fn of_client(client: &BlockedThread, range: &Range<u64>) -> Result<Seen, String> {
    let length = range.end - range.start;
    let witness = match client.frame(range.start) {
        Some(frame) => Witness::Frame(frame),
        None => match sys::object_at(client.tid(), range.start) {
            Ok(Some(object)) => Witness::Object(object),
            Ok(None) => return Err("it cannot be told which buffer it is".to_owned()),
            Err(error) => return Err(format!("it cannot be told which buffer it is: {error}")),
        },
    };
    let mut pages = Vec::new();
    if let Witness::Frame(_) = witness {
        for distance in [0, length / 2, length - 1] {
            let frame = client.frame(range.start + distance);
            pages.push((distance, frame.ok_or("a page of it is missing")?));
        }
    }
    Ok(Seen {
        witness,
        pages,
        length,
    })
}

impl Seen {
    /// Is it `object`, from its byte `place` on? For an object that has all its pages as soon as it is mapped.
    pub(super) fn is_of(&self, object: impl AsFd, place: u64) -> bool {
        // One page first: all that is mapped gets its pages at once, and most objects are the wrong one.
        self.is_of_up_to(&object, place, 1) && self.is_of_up_to(&object, place, self.length)
    }

    /// As far as the first `length` bytes show it.
    fn is_of_up_to(&self, object: impl AsFd, place: u64, length: u64) -> bool {
        let end = place.checked_add(length);
        let Some(len) = end.and_then(|end| usize::try_from(end).ok()) else {
            return false;
        };
        // From the start: some drivers map their objects from there whatever the offset is.
        let Ok(mapping) = Mapping::shared(object, 0, len, CpuUse::Read) else {
            return false;
        };
        let ours = mapping.host_ptr().addr() as u64;
        match self.witness {
            // Of the first page the whole is known.
            Witness::Object(_) if length > 1 => true,
            Witness::Object(object) => {
                matches!(sys::object_at(gettid(), ours), Ok(Some(of_ours)) if of_ours == object)
            }
            Witness::Frame(_) => std::fs::File::open("/proc/self/pagemap").is_ok_and(|pagemap| {
                let of_part = self.pages.iter().filter(|(distance, _)| *distance < length);
                let same = |(distance, frame): &(u64, u64)| {
                    sys::frame_of(&pagemap, ours + place + distance) == Some(*frame)
                };
                of_part.into_iter().all(same)
            }),
        }
    }

    /// By which a change will be noticed.
    pub(super) fn witness(&self) -> Witness {
        self.witness
    }
}
