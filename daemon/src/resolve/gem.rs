//! A buffer of a graphics card: a mapped DRM node.
//!
//! Its GEM object is found through the offset of the mapping, which the driver has made up for exactly one object
//! (drm_vma_manager.c): shmem and TTM drivers leave it as it is; those that subtract it (drm_gem_dma_helper.c) are not
//! served. The object is looked for among the handles of the client's own open files, and no card is ever opened:
//! whoever does that becomes its master when there is none.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use nix::errno::Errno;

use super::{CopyBy, Found, Importable, Kind, Look, MAX_FILES};
use crate::sys::{self, Vma};

/// `DRM_MAJOR` (drm/drm_drv.h)
const MAJOR: u32 = 226;

/// `DRM_FILE_PAGE_OFFSET_START` (drm/drm_vma_manager.h) in bytes: no made-up offset is smaller.
const FIRST_OFFSET: u64 = 1 << 32;

/// Handles are small numbers, the lowest free one first. So many are tried, and so many missing in a row are the end.
const MAX_HANDLE: u32 = 4096;
const MAX_GAP: u32 = 64;

/// See the module.
pub(super) struct Gem;

/// The object, as one of the client's open files knows it.
struct Object {
    file: Arc<File>,
    handle: u32,
}

impl Kind for Gem {
    fn name(&self) -> &'static str {
        "DRM buffer"
    }

    fn major(&self) -> Option<u32> {
        Some(MAJOR)
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        let node = String::from_utf8_lossy(&vma.name);
        let place = range.start - vma.start;
        let (what, import, copy) = match object(look, vma) {
            Err(why) => (format!("a buffer of {node}"), Err(why.clone()), Err(why)),
            Ok(object) => {
                let what = format!("buffer {} of {node}", object.handle);
                let exported = sys::prime_export(&*object.file, object.handle)
                    .map_err(|errno| format!("its driver does not export it: {errno}"));
                let import = exported.as_ref().map_err(String::clone).and_then(|dma_buf| {
                    let fd = dma_buf.try_clone().map_err(|error| error.to_string())?;
                    Importable::of(look, Arc::new(fd), place)
                });
                let copy = exported.map(File::from).map(|dma_buf| CopyBy::Object {
                    file: Arc::new(dma_buf),
                    // From the start: shmem drivers map that whatever the offset is (drm_gem_shmem_fault).
                    offset: 0,
                    skip: place,
                    sync: true,
                });
                // The client's own file would not be let go while we have it, so it is the second choice.
                let copy = copy.unwrap_or(CopyBy::Object {
                    file: object.file,
                    // The driver wants the object's own offset and no other (drm_gem_mmap).
                    offset: vma.offset,
                    skip: place,
                    sync: false,
                });
                (what, import, Ok(copy))
            }
        };
        Some(Found {
            what,
            import,
            copy,
            frame: None,
            flush: None,
        })
    }
}

/// Which object is mapped.
///
/// # Errors
/// Why that cannot be known, for people.
fn object(look: &Look<'_>, vma: &Vma) -> Result<Object, String> {
    if vma.offset < FIRST_OFFSET {
        return Err("its driver does not say which buffer is mapped".to_owned());
    }
    let mut files = look.client.files_of(vma, |file| file.link == vma.name).peekable();
    if files.peek().is_none() {
        return Err("the client has closed the device that it has mapped".to_owned());
    }
    for file in files.take(MAX_FILES).map(File::from) {
        let mut missing = 0;
        for handle in 1..MAX_HANDLE {
            match sys::map_offset(&file, handle) {
                // Only a mapping from the object's start: of a part that was cut off by munmap or mprotect, not every
                // driver itself knows which part it is (drm_gem_shmem_fault).
                Ok(offset) if offset == vma.offset => {
                    return Ok(Object {
                        file: Arc::new(file),
                        handle,
                    });
                }
                Err(Errno::ENOENT) => missing += 1,
                // Another object; one that cannot be mapped.
                Ok(_) | Err(_) => missing = 0,
            }
            if missing > MAX_GAP {
                break;
            }
        }
    }
    Err("no handle of the client leads to it, or only a part of it is mapped".to_owned())
}
