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

    /// The files that a daemon before us has left, as far as they can go on; why the others cannot is added to `why_not`.
    pub(super) fn restore(
        &self,
        inheritance: &mut Inheritance,
        why_not: &mut Vec<String>,
    ) -> Vec<(u64, Image, OwnedFd, Keeping)> {
        let beginning = format!("record.{}.", self.node);
        let handles: Vec<u64> = inheritance
            .beginning(&beginning)
            .filter_map(|name| name.strip_prefix(&beginning)?.parse().ok())
            .collect();
        let one = |fh| {
            self.again(fh, inheritance)
                .inspect_err(|lost| {
                    why_not.push(lost.to_string());
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

#[cfg(test)]
mod tests {
    use super::{Image, Opening, Shelf, VERSION, first_number};
    use crate::frontend::fb::position::{CallId, Position};
    use crate::survive::{Inheritance, Record, Store};
    use std::fs::File;
    use std::os::fd::{AsFd, OwnedFd};

    const OPENING: Opening = Opening {
        uid: 1000,
        flags: libc::O_RDWR,
        by: 8,
    };

    fn null() -> OwnedFd {
        File::open("/dev/null").expect("a null device").into()
    }

    fn record(bytes: &[u8]) -> OwnedFd {
        let record = Record::create("test").expect("a memfd");
        let committed = record.commit(|mut image| {
            image.extend_from_slice(bytes);
            image
        });
        committed.expect("memory");
        record.as_fd().try_clone_to_owned().expect("a descriptor")
    }

    fn image(version: u32) -> Vec<u8> {
        let position = Position::default();
        let call = CallId {
            unique: 10,
            is_resent: false,
        };
        position
            .seek(640, libc::SEEK_SET.cast_unsigned(), call)
            .expect("a position");
        let image = Image {
            version,
            opening: OPENING,
            tokens: vec![(1000, [7; 16])],
            moves: position.moves(),
        };
        postcard::to_extend(&image, Vec::new()).expect("numbers")
    }

    #[test]
    fn a_file_goes_on_as_it_was_written_down() {
        let files = [
            ("record.fb64.5".to_owned(), record(&image(VERSION))),
            ("device.fb64.5".to_owned(), null()),
            ("record.fb65.5".to_owned(), record(&image(VERSION))),
        ];
        let mut inheritance: Inheritance = files.into_iter().collect();
        let mut again = Shelf::new(&Store::none(), "fb64").restore(&mut inheritance, &mut Vec::new());
        assert_eq!(again.len(), 1);
        let (fh, image, ..) = again.remove(0);
        assert_eq!(
            (fh, image.opening, image.tokens),
            (5, OPENING, vec![(1000, [7; 16])])
        );
        let resent = CallId {
            unique: 10,
            is_resent: true,
        };
        let seek = Position::again(image.moves).seek(1, libc::SEEK_CUR.cast_unsigned(), resent);
        assert_eq!(seek, Ok(640), "not twice");
        assert_eq!(
            inheritance.beginning("").collect::<Vec<_>>(),
            ["record.fb65.5"],
            "another node's"
        );
    }

    #[test]
    fn what_cannot_be_trusted_does_not_go_on_and_is_not_kept_any_longer() {
        let whole = image(VERSION);
        let cases: [(&str, Option<OwnedFd>, Option<OwnedFd>); 5] = [
            ("another version", Some(record(&image(VERSION + 1))), Some(null())),
            ("cut off", Some(record(&whole[..whole.len() - 1])), Some(null())),
            ("no image", Some(record(&[])), Some(null())),
            ("no record", Some(null()), Some(null())),
            ("no device", Some(record(&whole)), None),
        ];
        for (case, record, device) in cases {
            let files = [("record.fb64.5", record), ("device.fb64.5", device)];
            let mut inheritance: Inheritance = files
                .into_iter()
                .filter_map(|(name, file)| Some((name.to_owned(), file?)))
                .collect();
            let mut why = Vec::new();
            let again = Shelf::new(&Store::none(), "fb64").restore(&mut inheritance, &mut why);
            assert!(again.is_empty(), "{case}");
            assert_eq!(why.len(), 1, "{case}: {why:?}");
            assert!(inheritance.get("record.fb64.5").is_none(), "{case}");
        }
    }

    #[test]
    fn numbers_of_a_later_daemon_are_higher() {
        let first = first_number();
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(first_number() >= first + 64);
    }
}
