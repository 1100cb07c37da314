//! A framebuffer of our own making (`crate::screen`), by the inode of what its programs map.
//!
//! That is either memory of the graphics card, given away as its dma-buf: whoever writes there writes to the screen. Or
//! it is a memfd, from which the screen is drawn: plain memory to the program, imported as the udmabuf that its owner has
//! of it. Neither shows in its pages what a device has written, so the screen is told ([`Flush::Screen`]).

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::dma_buf::Object;
use super::memfd::udmabuf_may_be_wrong;
use super::{Access, CopyBy, Flush, Found, Importable, Kind, Look};
use crate::backend::framebuffer::ScreenMemory;
use crate::sys::Vma;

/// As fdinfo calls who makes dma-bufs of memfds.
const UDMABUF: &str = "udmabuf";

/// `st_dev` and `st_ino` of what programs map.
type Key = (u64, u64);

/// The memories of all screens. An entry ends with its screen.
#[derive(Debug, Default)]
pub(super) struct Screens(Mutex<Vec<(Key, Weak<dyn ScreenMemory>)>>);

impl Screens {
    pub(super) fn add(&self, key: Key, memory: &Arc<dyn ScreenMemory>) {
        let mut screens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        screens.retain(|(other, memory)| *other != key && memory.strong_count() > 0);
        screens.push((key, Arc::downgrade(memory)));
    }

    /// The screen whose memory is mapped there.
    fn find(&self, vma: &Vma) -> Option<Arc<dyn ScreenMemory>> {
        let screens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (vma.st_dev(), vma.inode);
        let (_, memory) = screens.iter().find(|(of_memory, _)| *of_memory == key)?;
        memory.upgrade()
    }
}

/// See the module.
pub(super) struct Screen;

impl Kind for Screen {
    fn name(&self) -> &'static str {
        "our own framebuffer"
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        let memory = look.own.screens().find(vma)?;
        let (found, place) = match vma.name.starts_with(b"/dmabuf:") {
            true => direct(look, &*memory.dma_buf()?, vma, range)?,
            false => {
                let place = vma.offset.checked_add(range.start - vma.start)?;
                (shadow(look, &*memory, place, range), Some(place))
            }
        };
        let flush = |place| Flush::Screen {
            memory: Arc::downgrade(&memory),
            bytes: place..place + (range.end - range.start),
        };
        Some(Found {
            what: format!("our own framebuffer ({})", found.what),
            flush: place
                .filter(|_| look.access == Access::Write)
                .map(|place| Arc::new(flush(place))),
            ..found
        })
    }
}

/// The dma-buf itself is mapped. Where in it is not always known.
fn direct(look: &Look<'_>, dma_buf: &OwnedFd, vma: &Vma, range: &Range<u64>) -> Option<(Found, Option<u64>)> {
    let found = Object::new(dma_buf.try_clone().ok()?)?.found(look, vma, range)?;
    let place = match &found.copy {
        Ok(CopyBy::Object { offset, skip, .. }) => offset.checked_add(*skip),
        _ => None,
    };
    Some((found, place))
}

/// A memfd of ours is mapped, from its byte `place` on. That it is to be had as a dma-buf costs memory, so what speaks
/// against an import comes first.
fn shadow(look: &Look<'_>, memory: &dyn ScreenMemory, place: u64, range: &Range<u64>) -> Found {
    let import = look
        .may_import(UDMABUF)
        .and_then(|()| udmabuf_may_be_wrong(look.importer))
        .and_then(|()| {
            let none = || "there is no dma-buf of its memory (no /dev/udmabuf)".to_owned();
            Importable::of(look, memory.dma_buf().ok_or_else(none)?, place)
        });
    let touched = look.client.touch(range.start);
    Found {
        import,
        copy: touched
            .map(|()| CopyBy::Memory)
            .map_err(|_| "it is behind the end of its memory".to_owned()),
        ..Found::memory("memory")
    }
}

#[cfg(test)]
mod tests {
    use super::Screen;
    use crate::backend::framebuffer::ScreenMemory;
    use crate::client::Clients;
    use crate::resolve::{Access, CopyBy, Found, Importer, Kind, Look, OwnBuffers, Policy, resolve};
    use crate::sys::{CpuUse, Mapping};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;
    use std::ops::Range;
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Mutex};

    /// A screen that remembers what it was told.
    #[derive(Debug, Default)]
    struct Fake {
        dma_buf: Option<Arc<OwnedFd>>,
        told: Mutex<Vec<(u64, u64)>>,
    }

    impl ScreenMemory for Fake {
        fn dma_buf(&self) -> Option<Arc<OwnedFd>> {
            self.dma_buf.clone()
        }

        fn changed(&self, bytes: Range<u64>) {
            self.told
                .lock()
                .expect("nobody panics")
                .push((bytes.start, bytes.end));
        }
    }

    fn memfd() -> File {
        let file = File::from(memfd_create(c"screen", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        file.set_len(1 << 20).expect("room in memory");
        file
    }

    fn key(file: &File) -> (u64, u64) {
        let stat = rustix::fs::fstat(file).expect("open");
        (stat.st_dev, stat.st_ino)
    }

    /// What stands behind `len` bytes `at` bytes into what is mapped of `file` from its byte `offset`.
    fn find(own: &OwnBuffers, file: &File, offset: i64, at: u64, len: u64, access: Access) -> Option<Found> {
        let mapping = Mapping::shared(file, offset, 1 << 16, CpuUse::Write).expect("a mapping");
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        let client = Clients::default().of_thread(tid).expect("ourselves");
        let look = Look {
            client: &client,
            access,
            importer: Importer::Scattered,
            policy: &Policy::default(),
            own,
        };
        let start = mapping.host_ptr().addr() as u64 + at;
        let range = start..start + len;
        let mut found = None;
        client
            .each_mapping(range.clone(), |vma| {
                found = Screen.find(&look, &vma, &range);
                Ok(())
            })
            .expect("it is mapped");
        found
    }

    #[test]
    fn a_shadow_is_copied_as_memory_and_the_screen_learns_which_bytes_have_changed() {
        let file = memfd();
        let screen = Arc::new(Fake::default());
        let memory: Arc<dyn ScreenMemory> = screen.clone();
        let own = OwnBuffers::default();
        own.add_screen(key(&file), &memory);
        let found = find(&own, &file, 8192, 100, 5000, Access::Write).expect("a screen");
        assert!(matches!(found.copy, Ok(CopyBy::Memory)), "{found:?}");
        assert_eq!(
            found.import.expect_err("nothing to import"),
            "there is no dma-buf of its memory (no /dev/udmabuf)"
        );
        found.flush.expect("somebody to tell").run().expect("it is there");
        assert_eq!(*screen.told.lock().expect("nobody panics"), [(8292, 13_292)]);
        // What a device reads has not changed.
        let read = find(&own, &file, 0, 0, 5000, Access::Read).expect("a screen");
        assert!(read.flush.is_none());
    }

    #[test]
    fn other_memory_and_that_of_a_screen_that_is_gone_are_none() {
        let (file, other) = (memfd(), memfd());
        let memory: Arc<dyn ScreenMemory> = Arc::new(Fake::default());
        let own = OwnBuffers::default();
        own.add_screen(key(&file), &memory);
        assert!(find(&own, &other, 0, 0, 4096, Access::Write).is_none());
        let found = find(&own, &file, 0, 0, 4096, Access::Write).expect("a screen");
        drop(memory);
        assert!(find(&own, &file, 0, 0, 4096, Access::Write).is_none());
        // Nobody is there to be told, and nobody has to be.
        found.flush.expect("a screen's").run().expect("no error");
    }

    #[test]
    fn a_shadows_udmabuf_is_imported_from_where_the_range_begins() {
        // Where the kernel has that.
        let file = File::from(
            memfd_create(c"screen", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("a memfd"),
        );
        file.set_len(1 << 20).expect("room in memory");
        rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::SHRINK).expect("a memfd");
        let Ok(device) = File::open("/dev/udmabuf") else {
            return;
        };
        let dma_buf = crate::sys::udmabuf(device, &file, 0, 1 << 20).expect("a udmabuf");
        let screen = Arc::new(Fake {
            dma_buf: Some(Arc::new(dma_buf)),
            ..Fake::default()
        });
        let memory: Arc<dyn ScreenMemory> = screen.clone();
        let own = OwnBuffers::default();
        own.add_screen(key(&file), &memory);
        let found = find(&own, &file, 4096, 0, 4096, Access::Write).expect("a screen");
        assert_eq!(found.import.expect("allowed").offset, 4096);
    }

    #[test]
    fn before_a_memfd_it_is_a_screen_and_what_was_written_there_is_told() {
        let file = memfd();
        let screen = Arc::new(Fake::default());
        let memory: Arc<dyn ScreenMemory> = screen.clone();
        let own = OwnBuffers::default();
        own.add_screen(key(&file), &memory);
        let mapping = Mapping::shared(&file, 0, 1 << 16, CpuUse::Write).expect("a mapping");
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        let client = Clients::default().of_thread(tid).expect("ourselves");
        let look = Look {
            client: &client,
            access: Access::Write,
            importer: Importer::Vmalloc,
            policy: &Policy::default(),
            own: &own,
        };
        let start = mapping.host_ptr().addr() as u64;
        let behind = resolve(&look, start, 1 << 16).expect("it is mapped");
        let kinds: Vec<_> = behind.segments.iter().map(|segment| segment.kind).collect();
        assert_eq!(kinds, ["our own framebuffer"]);
        behind.flush();
        assert_eq!(*screen.told.lock().expect("nobody panics"), [(0, 1 << 16)]);
    }
}
