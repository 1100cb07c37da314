//! A dma-buf that the client has mapped: by the fd that it still holds, and only by that; the kernel gives no other way
//! to one (opening it by /proc is ENXIO).

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::importable::exporter_of;
use super::{Access, CopyBy, Found, Importable, Importer, Kind, Look};
use crate::client::{OpenFile, offset_of_start};
use crate::sys::field;
use crate::sys::{Vma, page_size};

/// See the module.
pub(super) struct DmaBuf;

impl Kind for DmaBuf {
    fn name(&self) -> &'static str {
        "dma-buf"
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        // A file can be called so too; what is not asked of the name is asked of the fd.
        if !vma.name.starts_with(b"/dmabuf:") {
            return None;
        }
        let is_one = |file: &OpenFile| {
            let is_called_so = file.link.starts_with(b"/dmabuf:");
            is_called_so && file.fdinfo().is_ok_and(|text| field(&text, "exp_name").is_some())
        };
        let fd = look.client.files_of(vma, is_one).next();
        match fd.map(Object::new) {
            Some(object) => object?.found(look, vma, range),
            None => {
                let closed = "the program has closed the dma-buf's fd, nothing else leads to it";
                Some(Found {
                    what: format!("dma-buf {}", vma.inode),
                    import: Err(closed.to_owned()),
                    copy: through_client(look, range, closed),
                    frame: None,
                    flush: None,
                })
            }
        }
    }
}

/// Only some exporters' mappings have pages that the kernel can hold: vb2-vmalloc, and udmabuf of Linux 6.1.
fn through_client(look: &Look<'_>, range: &Range<u64>, otherwise: &str) -> Result<CopyBy, String> {
    let touched = look.client.touch(range.start);
    touched.map(|()| CopyBy::Memory).map_err(|_| otherwise.to_owned())
}

/// What the offset of a mapping says about the place in the dma-buf. The kernel shows `vm_pgoff`, as mmap was told or as
/// the driver has changed it; splitting a mapping adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Offset {
    /// It is the place.
    True,
    /// Only that a mapping with the offset that a new one of byte 0 has begins there too. Any other may be the rest of a
    /// split one, or begin at byte 0 nevertheless. DRM adds an address of its own.
    OfStart,
    /// Nothing that we know.
    Unknown,
}

/// By `exp_name`. True: dma-buf/heaps/system_heap.c:203, heaps/cma_heap.c:171 (with the names of the region that CMA
/// has), udmabuf.c:48, videobuf2-dma-contig.c:289 (`dma_mmap_attrs`), videobuf2-dma-sg.c:342 (`vm_map_pages`). Of the
/// start: videobuf2-vmalloc.c:180 (`remap_vmalloc_range` with 0), drm_prime.c (`drm_gem_prime_mmap`) with
/// drm_gem_shmem_helper.c (`drm_gem_shmem_fault`), whose pages count from where the mapping begins.
const EXPORTERS: &[(&str, Offset)] = &[
    ("system", Offset::True),
    ("linux,cma", Offset::True),
    ("reserved", Offset::True),
    ("default_cma_region", Offset::True),
    ("udmabuf", Offset::True),
    ("videobuf2_dma_contig", Offset::True),
    ("videobuf2_dma_sg", Offset::True),
    ("videobuf2_vmalloc", Offset::OfStart),
    ("virtio_gpu", Offset::OfStart),
    ("drm", Offset::OfStart),
];

fn offset_of(exporter: &str) -> Offset {
    let row = EXPORTERS.iter().find(|(name, _)| *name == exporter);
    row.map_or(Offset::Unknown, |(_, offset)| *offset)
}

/// Where in a dma-buf of `size` bytes the byte at `client_addr` lies; `None` where that is not beyond doubt. `of_start` is
/// the offset that a new mapping of byte 0 shows.
fn place(
    offset: Offset,
    size: u64,
    vma: &Vma,
    client_addr: u64,
    of_start: impl FnOnce() -> Option<u64>,
) -> Option<u64> {
    // No exporter is asked for more than there is (dma-buf.c:161): one of this length cannot begin elsewhere.
    let whole = vma.end - vma.start == size;
    let start = match offset {
        Offset::True => vma.offset,
        _ if whole => 0,
        Offset::OfStart if of_start() == Some(vma.offset) => 0,
        Offset::OfStart | Offset::Unknown => return None,
    };
    start.checked_add(client_addr.checked_sub(vma.start)?)
}

/// The kernel's vmap of a udmabuf takes the first page of each folio for all of it (udmabuf.c:89, up to 6.16; memory of
/// huge pages is enough). What a device writes is seen not to arrive; what it reads nobody sees.
fn shows_when_wrong(look: &Look<'_>, exporter: &str) -> Result<(), String> {
    let by_processor = matches!(look.importer, Importer::Vmalloc | Importer::Unknown);
    if exporter == "udmabuf" && by_processor && look.access == Access::Read {
        return Err("a device may read other pages of a udmabuf, and nobody would see it".to_owned());
    }
    Ok(())
}

/// A dma-buf, and what it says of itself.
pub(super) struct Object {
    fd: OwnedFd,
    exporter: String,
    /// bytes
    size: u64,
}

impl Object {
    /// `None`: it says nothing.
    pub(super) fn new(fd: OwnedFd) -> Option<Self> {
        // Of our copy: what the client's number stands for may have changed.
        let (exporter, size) = exporter_of(&fd)?;
        Some(Self { fd, exporter, size })
    }

    /// What stands behind `range`, which lies within `vma`, a mapping of it. `None`: our own descriptors run out.
    pub(super) fn found(self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        let page = page_size().ok()? as u64;
        let what = format!("dma-buf {} ({})", vma.inode, self.exporter);
        let how = offset_of(&self.exporter);
        let of_start = || offset_of_start(&self.fd).ok();
        let size = self.size.next_multiple_of(page);
        let Some(place) = place(how, size, vma, range.start, of_start) else {
            let unknown = "where in the dma-buf the mapping begins cannot be known";
            return Some(Found {
                what,
                import: Err(unknown.to_owned()),
                copy: through_client(look, range, unknown),
                frame: None,
                flush: None,
            });
        };
        let file = Arc::new(File::from(self.fd.try_clone().ok()?));
        // What always begins at byte 0 is mapped from there.
        let offset = match how {
            Offset::True => place - place % page,
            Offset::OfStart | Offset::Unknown => 0,
        };
        let import = look
            .may_import(&self.exporter)
            .and_then(|()| shows_when_wrong(look, &self.exporter));
        let import = import.map(|()| Importable {
            fd: Arc::new(self.fd),
            exporter: self.exporter,
            inode: vma.inode,
            size: self.size,
            offset: place,
        });
        Some(Found {
            what,
            import,
            copy: Ok(CopyBy::Object {
                file,
                offset,
                skip: place - offset,
                sync: true,
            }),
            frame: None,
            flush: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Offset, offset_of, place};
    use crate::sys::Vma;

    fn vma(pages: u64, offset: u64) -> Vma {
        Vma {
            start: 0x10_0000,
            end: 0x10_0000 + pages * 4096,
            readable: true,
            writable: true,
            shared: true,
            offset,
            device: (0, 11),
            inode: 17,
            name: b"/dmabuf:".to_vec(),
        }
    }

    const SIZE: u64 = 16 * 4096;

    fn shown(start: u64) -> impl FnOnce() -> Option<u64> {
        move || Some(start)
    }

    #[test]
    fn a_true_offset_is_the_place_and_a_range_may_begin_behind_it() {
        let place = |vma, at| place(Offset::True, SIZE, &vma, at, || unreachable!("nobody asks"));
        assert_eq!(place(vma(16, 0), 0x10_0000), Some(0));
        assert_eq!(place(vma(4, 8192), 0x10_0003), Some(8195));
        assert_eq!(place(vma(4, u64::MAX), 0x10_0003), None);
    }

    #[test]
    fn what_begins_at_the_start_looks_like_a_new_one_or_is_as_long_as_the_dma_buf() {
        let fake = 0x1_0000_0000;
        for start in [0, fake] {
            let place = |vma, at| place(Offset::OfStart, SIZE, &vma, at, shown(start));
            assert_eq!(place(vma(4, start), 0x10_1001), Some(4097));
            assert_eq!(place(vma(4, start + 4096), 0x10_0000), None);
            assert_eq!(place(vma(16, start + 4096), 0x10_0000), Some(0));
        }
        assert_eq!(place(Offset::OfStart, SIZE, &vma(4, 0), 0x10_0000, || None), None);
    }

    #[test]
    fn of_an_unknown_exporter_all_must_be_mapped() {
        assert_eq!(offset_of("i915"), Offset::Unknown);
        let place = |vma, at| place(Offset::Unknown, SIZE, &vma, at, shown(0));
        assert_eq!(place(vma(16, 0x1_0000_0000), 0x10_1001), Some(4097));
        assert_eq!(place(vma(15, 0), 0x10_0000), None);
    }
}
