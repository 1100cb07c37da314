//! A memfd that the client has mapped: plain memory that is copied through the client's address space, and that a
//! device can import where the operator allows it.
//!
//! We never look into it ourselves, and never add a seal to it, which nobody could take back. Without the operator's word it
//! is not imported: a udmabuf pins the client's pages as long as it lives, and a hole that the client punches into the
//! memfd meanwhile parts the two.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::fs::SealFlags;

use super::{Found, Importable, Importer, Kind, Look};
use crate::client::OpenFile;
use crate::sys::{CpuUse, Mapping, Vma, page_size, udmabuf};

/// What the policy calls it: the dma-buf is ours, the pages are the client's.
const EXPORTER: &str = "memfd";

/// See the module.
pub(super) struct Memfd;

impl Kind for Memfd {
    fn name(&self) -> &'static str {
        "memfd"
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        let name = vma.name.strip_prefix(b"/memfd:")?;
        if look.client.touch(range.start).is_err() {
            return None;
        }
        let name = String::from_utf8_lossy(name.strip_suffix(b" (deleted)").unwrap_or(name)).into_owned();
        Some(Found {
            import: look.may_import(EXPORTER).and_then(|()| import(look, vma, range)),
            ..Found::memory(format!("memfd {name}"))
        })
    }
}

fn import(look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Result<Importable, String> {
    if Some(vma.st_dev()) != of_memfds() {
        return Err("it has huge pages, or is no memfd".to_owned());
    }
    let page = page_size().map_err(|error| error.to_string())? as u64;
    if !range.start.is_multiple_of(page) {
        return Err("it does not begin at a page".to_owned());
    }
    udmabuf_may_be_wrong(look.importer)?;
    let offset = vma.offset + (range.start - vma.start);
    // Up to the end of its last page, which is mapped too.
    let size = (range.end - range.start).next_multiple_of(page);
    let limit = size_limit();
    if size > limit {
        return Err(format!("udmabuf takes {limit} bytes at most"));
    }
    let memfd = file(look, vma).ok_or("there is no way to the memfd")?;
    let seals = rustix::fs::fcntl_get_seals(&memfd).map_err(|error| error.to_string())?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err("it can shrink: it is not sealed".to_owned());
    }
    if seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err("it is sealed against writing".to_owned());
    }
    // A page that was allocated but never touched is cleared at its first touch (mm/shmem.c), after a device may have
    // written to it.
    let touched = match (i64::try_from(offset), usize::try_from(size)) {
        (Ok(offset), Ok(size)) => {
            Mapping::shared(&memfd, offset, size, CpuUse::Write).and_then(|mapping| mapping.populate_write())
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    touched.map_err(|error| format!("its pages cannot be touched: {error}"))?;
    let made = File::open("/dev/udmabuf").and_then(|device| udmabuf(device, &memfd, offset, size));
    let fd = made.map_err(|error| format!("no udmabuf: {error}"))?;
    let inode = rustix::fs::fstat(&fd).map_err(|error| error.to_string())?.st_ino;
    Ok(Importable {
        fd: Arc::new(fd),
        exporter: EXPORTER.to_owned(),
        inode,
        size,
        offset: 0,
    })
}

/// The kernel's vmap of a udmabuf takes the first page of each folio for all of it (udmabuf.c:89, up to 6.16).
///
/// # Errors
/// What speaks against an import, for people.
pub(super) fn udmabuf_may_be_wrong(importer: Importer) -> Result<(), String> {
    let by_processor = matches!(importer, Importer::Vmalloc | Importer::Unknown);
    if by_processor && huge_pages_are_possible() {
        return Err("shared memory may have huge pages, which the kernel's udmabuf gets wrong".to_owned());
    }
    Ok(())
}

/// By the mapping, which outlives the fd, or by an fd where that needs a capability that we lack.
fn file(look: &Look<'_>, vma: &Vma) -> Option<OwnedFd> {
    let mapped = look.client.open_mapped(vma).map(OwnedFd::from);
    let is_memfd = |file: &OpenFile| file.link.starts_with(b"/memfd:");
    mapped.ok().or_else(|| look.client.files_of(vma, is_memfd).next())
}

/// `st_dev` of every memfd without MFD_HUGETLB: they live in a file system of the kernel's own, in which nobody else can
/// make files.
fn of_memfds() -> Option<u64> {
    static DEVICE: OnceLock<Option<u64>> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let ours = rustix::fs::memfd_create(c"vidcompat", rustix::fs::MemfdFlags::CLOEXEC).ok()?;
        Some(rustix::fs::fstat(ours.as_fd()).ok()?.st_dev)
    })
}

/// May a memfd have pages greater than the smallest ones?
fn huge_pages_are_possible() -> bool {
    let policy = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    match policy {
        Ok(policy) => !policy.contains("[never]") && !policy.contains("[deny]"),
        // A kernel that cannot do it at all.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Bytes of a udmabuf at most.
fn size_limit() -> u64 {
    let limit = std::fs::read_to_string("/sys/module/udmabuf/parameters/size_limit_mb");
    let megabytes = limit.ok().and_then(|text| text.trim().parse::<u64>().ok());
    megabytes.unwrap_or(64).saturating_mul(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::Memfd;
    use crate::client::Clients;
    use crate::resolve::{Access, CopyBy, Found, Importer, Kind, Look, OwnBuffers, Policy};
    use crate::sys::{CpuUse, Mapping};
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;

    /// What is found behind `len` bytes that begin `at` bytes into a mapped memfd.
    fn found(seals: SealFlag, at: u64, len: usize, rules: &[&str]) -> Found {
        let file = memfd_create(c"frames", MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
        let file = File::from(file);
        file.set_len(66 << 20).expect("room in memory");
        let mapping = Mapping::shared(&file, 0, 66 << 20, CpuUse::Write).expect("a mapping");
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("it can be sealed");
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        let client = Clients::default().of_thread(tid).expect("ourselves");
        let look = Look {
            client: &client,
            access: Access::Write,
            importer: Importer::Scattered,
            policy: &Policy::new(rules.iter().map(|rule| rule.parse().expect("a rule")).collect()),
            own: &OwnBuffers::default(),
        };
        let start = mapping.host_ptr().addr() as u64 + at;
        let range = start..start + len as u64;
        let mut found = None;
        client
            .each_mapping(range.clone(), |vma| {
                found = Memfd.find(&look, &vma, &range);
                Ok(())
            })
            .expect("it is mapped");
        found.expect("a memfd")
    }

    fn reason(seals: SealFlag, at: u64, len: usize) -> String {
        found(seals, at, len, &["memfd:*=allow"])
            .import
            .expect_err("this cannot be imported")
    }

    #[test]
    fn it_is_copied_as_plain_memory_and_imported_only_where_the_operator_says_so() {
        let found = found(SealFlag::F_SEAL_SHRINK, 0, 8_192, &[]);
        assert_eq!(found.what, "memfd frames");
        assert!(matches!(found.copy, Ok(CopyBy::Memory)));
        let reason = found.import.expect_err("nobody has allowed it");
        assert_eq!(reason, "memfd is not imported into scattered queue");
    }

    #[test]
    fn what_udmabuf_would_refuse_has_its_reason() {
        let shrink = SealFlag::F_SEAL_SHRINK;
        assert_eq!(reason(shrink, 1, 8_192), "it does not begin at a page");
        assert_eq!(
            reason(SealFlag::empty(), 0, 8_192),
            "it can shrink: it is not sealed"
        );
        assert_eq!(
            reason(shrink | SealFlag::F_SEAL_FUTURE_WRITE, 0, 8_192),
            "it is sealed against writing"
        );
        assert!(reason(shrink, 0, 65 << 20).starts_with("udmabuf takes "));
    }

    #[test]
    fn a_sealed_one_becomes_a_udmabuf_of_whole_pages_where_the_kernel_has_that() {
        let found = found(SealFlag::F_SEAL_SHRINK, 8_192, 5_001, &["memfd:*=allow"]);
        match found.import {
            Ok(import) => assert_eq!((import.size, import.offset), (8_192, 0)),
            Err(reason) => assert!(
                File::open("/dev/udmabuf").is_err() && reason.starts_with("no udmabuf: "),
                "{reason}"
            ),
        }
    }
}
