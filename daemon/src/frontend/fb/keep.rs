//! What of an open file of a framebuffer outlives us: the file behind ours, and where in it the program is.
//!
//! What else there is to know is in the driver, and everything that is done twice is as if done once: a mode, a picture, a
//! blank; but for what moves the position, so that is written down with the request that has moved it. Only where the file
//! behind ours is one of the kernel's ([`FramebufferFile::descriptor`]): a screen of our own ends with us.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use vidcompat_proto::shim::Token;

use super::position::Moves;
use crate::backend::framebuffer::FramebufferFile;
use crate::survive::{Inheritance, Kept, Record, RecordError, Store};

/// Of what is written down. Another one is not understood.
const VERSION: u32 = 1;

/// Where the files of one node of ours are kept.
#[derive(Clone, Debug)]
pub struct Shelf {
    store: Arc<Store>,
    node: String,
}

/// What is written down of a file.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Image {
    version: u32,
    pub(super) opening: Opening,
    pub(super) tokens: Vec<(u32, Token)>,
    pub(super) moves: Moves,
}

/// How it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opening {
    pub(super) uid: u32,
    /// `O_*`
    pub(super) flags: libc::c_int,
    /// The number of the request, when the kernel sent it first.
    pub(super) by: u64,
}

/// Why a file does not go on. For people.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("what was written down of it cannot be read: {0}")]
    Record(#[from] RecordError),
    #[error("what was written down of it is another daemon's: {0}")]
    Image(#[from] postcard::Error),
    #[error("it was written down by another version")]
    Version,
    #[error("the file behind it is missing")]
    Missing,
}

impl Shelf {
    /// For the files of `node`, in `store`.
    #[must_use]
    pub fn new(store: &Arc<Store>, node: &str) -> Self {
        Self {
            store: Arc::clone(store),
            node: node.to_owned(),
        }
    }

    fn name(&self, kind: &str, fh: u64) -> String {
        format!("{kind}.{}.{fh}", self.node)
    }

    /// Of `file`, which is being opened as `fh`. `None`: it does not outlive us.
    pub(super) fn keep(&self, fh: u64, file: &dyn FramebufferFile) -> Option<Keeping> {
        let descriptor = file.descriptor().filter(|_| self.store.keeps())?;
        let keep = || -> Result<Keeping, RecordError> {
            let name = self.name("record", fh);
            let record = Record::create(&format!("vidcompat-{name}"))?;
            let device = self.store.put(&self.name("device", fh), descriptor)?;
            Ok(Keeping {
                _kept_record: self.store.put(&name, &record)?,
                record,
                _kept_device: device,
            })
        };
        keep()
            .inspect_err(
                |error| tracing::warn!(%error, node = self.node, "a file does not outlive this daemon"),
            )
            .ok()
    }

    /// The files that a daemon before us has left, as far as they can go on.
    pub(super) fn restore(&self, inheritance: &mut Inheritance) -> Vec<(u64, Image, OwnedFd, Keeping)> {
        let beginning = format!("record.{}.", self.node);
        let handles: Vec<u64> = inheritance
            .beginning(&beginning)
            .filter_map(|name| name.strip_prefix(&beginning)?.parse().ok())
            .collect();
        let one = |fh| {
            self.again(fh, inheritance)
                .inspect_err(|lost| {
                    tracing::warn!(
                        node = self.node, file = fh,
                        "an open file does not outlive the daemon before us ({lost}): its program is told that the device is gone"
                    );
                })
                .ok()
        };
        handles.into_iter().filter_map(one).collect()
    }

    fn again(&self, fh: u64, inheritance: &mut Inheritance) -> Result<(u64, Image, OwnedFd, Keeping), Lost> {
        let (record, device) = (self.name("record", fh), self.name("device", fh));
        // Whatever is wrong: what is let go of here is taken out of the store.
        let (kept_record, kept_device) = (self.store.kept(&record), self.store.kept(&device));
        let (record, bytes) = Record::open(inheritance.remove(&record).ok_or(Lost::Missing)?)?;
        let device = inheritance.remove(&device).ok_or(Lost::Missing)?;
        let image: Image = postcard::from_bytes(&bytes)?;
        if image.version != VERSION {
            return Err(Lost::Version);
        }
        let keeping = Keeping {
            _kept_record: kept_record,
            record,
            _kept_device: kept_device,
        };
        Ok((fh, image, device, keeping))
    }
}

/// A file in the store.
#[derive(Debug)]
pub(super) struct Keeping {
    // Without it the device means nothing, so it goes first.
    _kept_record: Kept,
    record: Record,
    _kept_device: Kept,
}

impl Keeping {
    /// From now on the next daemon goes on from here.
    pub(super) fn commit(&self, opening: Opening, tokens: &[(u32, Token)], moves: &Moves) {
        let image = Image {
            version: VERSION,
            opening,
            tokens: tokens.to_vec(),
            moves: moves.clone(),
        };
        let committed = self.record.commit(|bytes| {
            // Numbers and vectors: nothing that could fail, and nothing is what it would be taken for.
            postcard::to_extend(&image, bytes).unwrap_or_default()
        });
        if let Err(error) = committed {
            tracing::error!(%error, "a file of a framebuffer cannot be written down: it does not outlive this daemon");
        }
    }
}

/// A number for a file that no daemon before us has given to one, unless it had opened sixty in each millisecond: numbers
/// that were used may come back in a RELEASE that is sent again.
pub(super) fn first_number() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    let milliseconds = now.map_or(0, |now| std::time::Duration::from(now).as_millis());
    u64::try_from(milliseconds << 6).unwrap_or(u64::MAX / 2).max(1)
}
