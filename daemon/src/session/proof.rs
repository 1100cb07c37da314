//! That what a device writes to an imported dma-buf arrives there: shown for each dma-buf once, before it is believed.
//!
//! An import can be taken and lead elsewhere: behind a swiotlb the frames stay in its bounce pages; Linux 6.12 maps the
//! wrong pages of a udmabuf that has large folios (udmabuf.c:88). So words that no frame has are written to a few places
//! of the buffer when it is queued, whose contents are nobody's from then on, and looked for when it comes back. Where it
//! comes back without a frame they are taken away again: it may be a screen.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::resolve::Importable;
use crate::sys::{self, CpuUse, Mapping, MemoryFault};

/// Places that are looked at.
const PLACES: usize = 16;
/// A V4L2 buffer is a new dma-buf at each export: a stream that runs for days must not fill the memory. What is forgotten
/// is shown once more.
const MOST_KNOWN: usize = 256;
/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// What is known of the dma-bufs that a queue has imported, by inode. They are held while they stand here by nobody: a
/// recycled number is at worst believed without a proof.
#[derive(Debug, Default)]
pub(super) struct Proven(Mutex<HashMap<u64, bool>>);

impl Proven {
    /// Has what was written arrived? `None`: not seen yet.
    pub(super) fn of(&self, inode: u64) -> Option<bool> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&inode).copied()
    }

    pub(super) fn set(&self, inode: u64, arrived: bool) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST_KNOWN {
            known.retain(|_, arrived| !*arrived);
        }
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(inode, arrived);
    }
}

/// Words in a buffer that is queued.
#[derive(Debug)]
pub(super) struct Proof {
    object: Mapping,
    scratch: Scratch,
    places: Vec<Mark>,
}

/// A word in a buffer, and what was there before: for a daemon after us, which takes it away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    at: usize,
    word: [u8; WORD],
    before: [u8; WORD],
}

impl Proof {
    /// Writes the words to the first `length` bytes of `importable`.
    ///
    /// # Errors
    /// [`MemoryFault`] where the dma-buf cannot be mapped, or is shorter: nothing can be shown of it.
    pub(super) fn begin(importable: &Importable, length: u32) -> Result<Self, MemoryFault> {
        let mut proof = Self::again(importable, length, Vec::new())?;
        let length = length as usize;
        for number in 0..PLACES {
            // From the first word on, and not to the last: a short frame shows something too.
            let at = length / PLACES * number;
            if at + WORD > length {
                break;
            }
            let before = proof.scratch.peek(&proof.object, at)?;
            let word = RandomState::new().build_hasher().finish().to_ne_bytes();
            proof.scratch.poke(&proof.object, at, word)?;
            proof.places.push(Mark { at, word, before });
        }
        Ok(proof)
    }

    /// The words are there already: a daemon before us has written them.
    ///
    /// # Errors
    /// As [`Proof::begin`].
    pub(super) fn again(
        importable: &Importable,
        length: u32,
        places: Vec<Mark>,
    ) -> Result<Self, MemoryFault> {
        let object = Mapping::shared(&*importable.fd, 0, length as usize, CpuUse::Write)
            .map_err(|_| MemoryFault::Fault)?;
        Ok(Self {
            object,
            scratch: Scratch::new().map_err(|_| MemoryFault::Fault)?,
            places,
        })
    }

    /// The words.
    pub(super) fn marks(&self) -> &[Mark] {
        &self.places
    }

    /// Has a frame of `bytes` bytes arrived? Lines may have padding that no device writes, so most places decide; what was
    /// there before is there again. `None`: the frame is too short to tell.
    pub(super) fn arrived(&self, bytes: usize) -> Option<bool> {
        let places = self.places.iter().filter(|place| place.at + WORD <= bytes);
        let written = places.map(|place| {
            let now = self.scratch.peek(&self.object, place.at);
            now.is_ok_and(|now| now != place.word)
        });
        let written: Vec<bool> = written.collect();
        if written.is_empty() {
            return None;
        }
        self.restore_all();
        let arrived = written.iter().filter(|written| **written).count();
        Some(arrived * 2 > written.len())
    }

    fn restore_all(&self) {
        // Of places that lie in one word the last written first.
        self.places.iter().rev().for_each(|place| self.restore(place));
    }

    /// What was at `place` before, unless something else is there now.
    fn restore(&self, place: &Mark) {
        if self.scratch.peek(&self.object, place.at) == Ok(place.word) {
            // Where it is gone nobody misses it.
            let _ = self.scratch.poke(&self.object, place.at, place.before);
        }
    }
}

impl Drop for Proof {
    /// In a buffer that no frame came to, nothing has changed.
    fn drop(&mut self) {
        self.restore_all();
    }
}

/// A few bytes that go to and from mappings whose bytes must not be touched.
#[derive(Debug)]
struct Scratch {
    file: File,
    mapping: Mapping,
}

impl Scratch {
    fn new() -> std::io::Result<Self> {
        let file = File::from(memfd_create(c"vidcompat-proof", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(4096)?;
        let mapping = Mapping::shared(&file, 0, 4096, CpuUse::Write)?;
        Ok(Self { file, mapping })
    }

    fn peek(&self, object: &Mapping, at: usize) -> Result<[u8; WORD], MemoryFault> {
        sys::copy(object, at, &self.mapping, 0, WORD)?;
        let mut word = [0; WORD];
        self.file
            .read_exact_at(&mut word, 0)
            .map_err(|_| MemoryFault::Fault)?;
        Ok(word)
    }

    fn poke(&self, object: &Mapping, at: usize, word: [u8; WORD]) -> Result<(), MemoryFault> {
        self.file.write_all_at(&word, 0).map_err(|_| MemoryFault::Fault)?;
        sys::copy(&self.mapping, 0, object, at, WORD)
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST_KNOWN, Proof, Proven};
    use crate::resolve::Importable;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    fn object(size: usize) -> (File, Importable) {
        let file = File::from(memfd_create(c"object", MFdFlags::empty()).expect("a memfd"));
        file.write_all_at(&vec![5; size], 0).expect("room in memory");
        let importable = Importable {
            fd: Arc::new(OwnedFd::from(file.try_clone().expect("a descriptor"))),
            exporter: "test".to_owned(),
            inode: 1,
            size: size as u64,
            offset: 0,
        };
        (file, importable)
    }

    #[test]
    fn a_stream_of_ever_new_dma_bufs_is_forgotten_but_for_what_never_arrived() {
        let proven = Proven::default();
        proven.set(0, false);
        for inode in 1..10_000 {
            proven.set(inode, true);
        }
        assert_eq!((proven.of(0), proven.of(9_999)), (Some(false), Some(true)));
        assert!(proven.0.lock().expect("nobody else").len() <= MOST_KNOWN);
    }

    #[test]
    fn a_frame_that_arrives_is_proven_and_its_padding_is_as_before() {
        let (file, importable) = object(64_000);
        let proof = Proof::begin(&importable, 64_000).expect("it can be mapped");
        assert_eq!(proof.arrived(7), None);
        file.write_all_at(&[9; 40_000], 0).expect("room in memory");
        assert_eq!(proof.arrived(64_000), Some(true));
        let mut bytes = vec![0; 64_000];
        file.read_exact_at(&mut bytes, 0).expect("its bytes");
        assert!(bytes[..40_000].iter().all(|byte| *byte == 9));
        assert!(bytes[40_000..].iter().all(|byte| *byte == 5));
    }

    #[test]
    fn what_a_daemon_before_us_has_written_is_looked_for_and_taken_away_by_the_next() {
        for arrives in [true, false] {
            let (file, importable) = object(64_000);
            let proof = Proof::begin(&importable, 64_000).expect("it can be mapped");
            let marks = proof.marks().to_vec();
            std::mem::forget(proof);
            if arrives {
                file.write_all_at(&[9; 40_000], 0).expect("room in memory");
            }
            let again = Proof::again(&importable, 64_000, marks).expect("it can be mapped");
            assert_eq!(again.arrived(64_000), Some(arrives));
            let mut bytes = vec![0; 64_000];
            file.read_exact_at(&mut bytes, 0).expect("its bytes");
            assert!(bytes.iter().all(|byte| [5, 9].contains(byte)));
        }
    }

    #[test]
    fn of_a_frame_that_went_elsewhere_every_word_is_found_and_undone() {
        let (file, importable) = object(4_099);
        let proof = Proof::begin(&importable, 4_099).expect("it can be mapped");
        assert_eq!(proof.arrived(4_099), Some(false));
        drop(proof);
        let mut bytes = vec![0; 4_099];
        file.read_exact_at(&mut bytes, 0).expect("its bytes");
        assert!(bytes.iter().all(|byte| *byte == 5));
    }

    #[test]
    fn a_single_page_of_many_is_no_proof() {
        let (file, importable) = object(64_000);
        let proof = Proof::begin(&importable, 64_000).expect("it can be mapped");
        file.write_all_at(&[9; 4_096], 0).expect("room in memory");
        assert_eq!(proof.arrived(64_000), Some(false));
    }
}
