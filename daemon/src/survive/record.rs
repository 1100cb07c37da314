//! A few kilobytes that outlive the process that wrote them: whole, or as they were before.
//!
//! A memfd with two slots, written in turn: each has a header with a number that grows, the length and a checksum. A commit is
//! one pwrite(2); a process that is killed in it has spoilt only the older slot. (pwrite into a memfd runs to its end or not at
//! all but for a fatal signal between two pages; the checksum tells.)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use nix::sys::memfd::{MFdFlags, memfd_create};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where the second slot begins: no image may be larger than this, less the header.
const SLOT: u64 = 1 << 20;
const MAGIC: u32 = u32::from_le_bytes(*b"vcr1");

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Header {
    magic: u32,
    checksum: u32,
    turn: u64,
    length: u64,
}

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The kernel.
    #[error("a record cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// Neither slot is whole.
    #[error("neither copy of a record is whole")]
    Spoilt,
    /// More than a slot holds.
    #[error("{0} bytes are more than a record holds")]
    TooLarge(usize),
    /// Whoever was to write has written nothing.
    #[error("there is nothing to write")]
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub struct Record {
    file: File,
    /// Of the last commit, and the buffer of the next one.
    state: Mutex<(u64, Vec<u8>)>,
}

impl Record {
    /// An empty one; `name` is for people who look at /proc/PID/fd.
    ///
    /// # Errors
    /// The kernel has no memory or no descriptors.
    pub fn create(name: &str) -> Result<Self, RecordError> {
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?;
        Ok(Self {
            file: File::from(fd),
            state: Mutex::default(),
        })
    }

    /// One that an earlier process has written, and what was committed last.
    ///
    /// # Errors
    /// [`RecordError::Spoilt`] where nothing was ever committed, or somebody else has written there.
    pub fn open(fd: OwnedFd) -> Result<(Self, Vec<u8>), RecordError> {
        let file = File::from(fd);
        let newest = [0, SLOT]
            .into_iter()
            .filter_map(|at| slot(&file, at))
            .max_by_key(|(turn, _)| *turn);
        let (turn, bytes) = newest.ok_or(RecordError::Spoilt)?;
        let record = Self {
            file,
            state: Mutex::new((turn, Vec::new())),
        };
        Ok((record, bytes))
    }

    /// From now on `fill` says what the next process reads. It appends to the vector that it is given.
    ///
    /// # Errors
    /// See [`RecordError`]; what was committed before is no longer true, and is not read any more either.
    pub fn commit(&self, fill: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<(), RecordError> {
        const HEADER: usize = size_of::<Header>();
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut bytes = std::mem::take(&mut state.1);
        bytes.clear();
        bytes.resize(HEADER, 0);
        let mut bytes = fill(bytes);
        let turn = state.0 + 1;
        let Some(length) = bytes.len().checked_sub(HEADER) else {
            self.spoil()?;
            return Err(RecordError::Nothing);
        };
        if bytes.len() as u64 > SLOT {
            self.spoil()?;
            return Err(RecordError::TooLarge(length));
        }
        let header = Header {
            magic: MAGIC,
            checksum: checksum(turn, &bytes[HEADER..]),
            turn,
            length: length as u64,
        };
        bytes[..HEADER].copy_from_slice(header.as_bytes());
        let outcome = self.file.write_all_at(&bytes, (turn % 2) * SLOT);
        // The buffer serves again, whatever came of it.
        *state = (turn, bytes);
        if let Err(error) = outcome {
            self.spoil()?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Neither slot counts any more. What was never written has no header, and no memory is needed to overwrite one.
    fn spoil(&self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        for at in [0, SLOT].into_iter().filter(|at| *at < length) {
            self.file.write_all_at(&[0; size_of::<Header>()], at)?;
        }
        Ok(())
    }
}

impl AsFd for Record {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn checksum(turn: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&turn.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// The slot at `at`, if it is whole: its turn and its bytes.
fn slot(file: &File, at: u64) -> Option<(u64, Vec<u8>)> {
    let mut header = [0; size_of::<Header>()];
    file.read_exact_at(&mut header, at).ok()?;
    let header = Header::read_from_bytes(&header).ok()?;
    if header.magic != MAGIC || header.length > SLOT {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(header.length).ok()?];
    file.read_exact_at(&mut bytes, at + size_of::<Header>() as u64)
        .ok()?;
    (checksum(header.turn, &bytes) == header.checksum).then_some((header.turn, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reopened(record: &Record) -> Result<Vec<u8>, RecordError> {
        let fd = record.as_fd().try_clone_to_owned().expect("a descriptor");
        Record::open(fd).map(|(_, bytes)| bytes)
    }

    fn commit(record: &Record, bytes: &[u8]) {
        let filled = record.commit(|mut image| {
            image.extend_from_slice(bytes);
            image
        });
        filled.expect("memory");
    }

    #[test]
    fn the_last_commit_is_read_back_and_a_spoilt_one_leaves_the_one_before() {
        let record = Record::create("test").expect("a memfd");
        assert!(matches!(reopened(&record), Err(RecordError::Spoilt)));
        for text in ["one", "two, which is longer", "three", ""] {
            commit(&record, text.as_bytes());
            assert_eq!(reopened(&record).expect("whole"), text.as_bytes());
        }
        // The fourth is in the first slot: as if the process had been killed in it.
        record.file.write_all_at(b"x", 5).expect("a memfd");
        assert_eq!(reopened(&record).expect("the third"), b"three");
        record.file.write_all_at(b"x", SLOT + 5).expect("a memfd");
        assert!(matches!(reopened(&record), Err(RecordError::Spoilt)));
    }

    #[test]
    fn another_process_goes_on_with_the_turns() {
        let record = Record::create("test").expect("a memfd");
        commit(&record, b"one");
        let fd = record.as_fd().try_clone_to_owned().expect("a descriptor");
        let (record, _) = Record::open(fd).expect("whole");
        commit(&record, b"two");
        assert_eq!(reopened(&record).expect("whole"), b"two");
        assert!(matches!(
            record.commit(|mut image| {
                image.resize(2 << 20, 0);
                image
            }),
            Err(RecordError::TooLarge(_))
        ));
        assert!(
            matches!(reopened(&record), Err(RecordError::Spoilt)),
            "what was true before is not any more"
        );
        commit(&record, b"three");
        assert_eq!(reopened(&record).expect("whole"), b"three");
        assert!(matches!(record.commit(|_| Vec::new()), Err(RecordError::Nothing)));
        assert!(matches!(reopened(&record), Err(RecordError::Spoilt)));
    }
}
