//! Device memory that the client has mapped of a file whose mmap gives the same memory at the same offset whenever it is
//! called: PCI resources, /dev/mem, UIO, u-dma-buf. It cannot be imported; it is mapped here too and copied.
//!
//! A device file that is not in the table is not served: what another mmap of it gives nobody knows.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, major, makedev, minor};

use super::{CopyBy, Found, Kind, Look};
use crate::client::offset_of_start;
use crate::sys::{Vma, page_size};

/// linux/magic.h
const SYSFS_MAGIC: rustix::fs::FsWord = 0x6265_6572;

/// A kind of file.
struct Row {
    what: &'static str,
    /// What is mapped must look like this: in a folder of which the names are the system's.
    name: fn(&[u8]) -> bool,
    /// What makes it that kind.
    proof: Proof,
    /// What the offset of its mappings says.
    place: Place,
    /// Opening it has no effect, and the mapping would be the same. Otherwise the client must still have its fd: with
    /// O_SYNC memory is mapped differently, and the last close of some files stops a device.
    opened_anew: bool,
}

enum Proof {
    /// A file of sysfs.
    Sysfs,
    /// Character device of this number.
    Number(u32, u32),
    /// Character device of a class by this name.
    Class(&'static str),
}

enum Place {
    /// The offset in the file.
    Offset,
    /// The same plus an address (drivers/pci/mmap.c:44).
    Moved,
    /// Which of the device's maps, in pages (drivers/uio/uio.c, `uio_find_mem_index`).
    UioMap,
}

const ROWS: &[Row] = &[
    Row {
        what: "PCI resource",
        name: is_resource,
        proof: Proof::Sysfs,
        place: Place::Moved,
        opened_anew: true,
    },
    Row {
        what: "physical memory",
        name: |name| name == b"/dev/mem",
        proof: Proof::Number(1, 1),
        place: Place::Offset,
        opened_anew: false,
    },
    Row {
        what: "UIO map",
        name: |name| is_in_dev(name) && name.starts_with(b"/dev/uio"),
        proof: Proof::Class("uio"),
        place: Place::UioMap,
        opened_anew: false,
    },
    // github.com/ikwzm/udmabuf; `udmabuf_object_mmap` of 5.0.
    Row {
        what: "u-dma-buf",
        name: is_in_dev,
        proof: Proof::Class("u-dma-buf"),
        place: Place::Offset,
        opened_anew: false,
    },
];

/// In the folder itself: in `/dev/shm` everybody can make files.
fn is_in_dev(name: &[u8]) -> bool {
    name.strip_prefix(b"/dev/")
        .is_some_and(|name| !name.contains(&b'/'))
}

/// `/sys/devices/pci0000:00/0000:00:02.0/resource0`, or `resource0_wc`.
fn is_resource(name: &[u8]) -> bool {
    let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let number = last
        .strip_prefix(b"resource")
        .map(|number| number.strip_suffix(b"_wc").unwrap_or(number));
    name.starts_with(b"/sys/")
        && number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

/// See the module.
pub(super) struct Device;

impl Kind for Device {
    fn name(&self) -> &'static str {
        "device memory"
    }

    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        let rows = ROWS.iter().filter(|row| (row.name)(&vma.name));
        rows.into_iter().find_map(|row| row.find(look, vma, range))
    }
}

impl Row {
    fn find(&self, look: &Look<'_>, vma: &Vma, range: &Range<u64>) -> Option<Found> {
        let device = self.proof.of(vma)?;
        // Memory with pages of its own, of whatever device, is plain memory.
        if look.client.touch(range.start).is_ok() {
            return None;
        }
        let copy = match self.file(look, vma) {
            Some(file) => self.copy(file, device, vma, range)?,
            None => Err("the program has closed the device's fd".to_owned()),
        };
        Some(Found {
            what: format!("{} {}", self.what, String::from_utf8_lossy(&vma.name)),
            import: Err("device memory is copied".to_owned()),
            copy,
            frame: None,
            flush: None,
        })
    }

    fn file(&self, look: &Look<'_>, vma: &Vma) -> Option<OwnedFd> {
        let anew = self.opened_anew.then(|| look.client.open_mapped(vma).ok());
        let by_fd = || look.client.files_of(vma, |file| file.link == vma.name).next();
        anew.flatten().map(OwnedFd::from).or_else(by_fd)
    }

    /// `None` where it cannot be told how the offset is meant.
    fn copy(
        &self,
        file: OwnedFd,
        device: u64,
        vma: &Vma,
        range: &Range<u64>,
    ) -> Option<Result<CopyBy, String>> {
        let page = page_size().ok()? as u64;
        let inner = range.start.checked_sub(vma.start)?;
        let start = match self.place {
            Place::Offset => vma.offset,
            Place::Moved => vma.offset.checked_sub(offset_of_start(&file).ok()?)?,
            Place::UioMap => 0,
        };
        let (offset, skip) = match self.place {
            Place::UioMap => match uio_map(&uio_maps(device, page), vma.offset / page) {
                Some((map, pages)) => (map * page, pages * page + inner),
                None => return Some(Err("which of the device's maps it is cannot be known".to_owned())),
            },
            _ => (start.checked_add(inner - inner % page)?, inner % page),
        };
        Some(Ok(CopyBy::Object {
            file: Arc::new(File::from(file)),
            offset,
            skip,
            sync: false,
        }))
    }
}

impl Proof {
    /// The device number (`st_rdev`) of the file that `vma` maps, if it is of this kind. Its name leads to a file here,
    /// in folders that only root can change, which is the mapped one only if device and inode are the same.
    fn of(&self, vma: &Vma) -> Option<u64> {
        // What is mapped is no link.
        let file = rustix::fs::lstat(OsStr::from_bytes(&vma.name)).ok()?;
        if (file.st_dev, file.st_ino) != (vma.st_dev(), vma.inode) {
            return None;
        }
        let is_device = FileType::from_raw_mode(file.st_mode) == FileType::CharacterDevice;
        let holds = match self {
            Proof::Sysfs => {
                rustix::fs::statfs("/sys").is_ok_and(|sys| sys.f_type == SYSFS_MAGIC)
                    && rustix::fs::stat("/sys").is_ok_and(|sys| sys.st_dev == file.st_dev)
            }
            Proof::Number(major, minor) => is_device && file.st_rdev == makedev(*major, *minor),
            Proof::Class(class) => {
                let link = std::fs::read_link(folder(file.st_rdev).join("subsystem")).ok();
                is_device && link.is_some_and(|link| link.file_name() == Some(OsStr::new(class)))
            }
        };
        holds.then_some(file.st_rdev)
    }
}

/// Of a character device, in sysfs.
fn folder(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/char/{}:{}", major(device), minor(device)))
}

/// Pages of each map of a UIO device, in their order.
fn uio_maps(device: u64, page: u64) -> Vec<u64> {
    let pages = |map: usize| {
        let number = |name: &str| {
            let text = std::fs::read_to_string(folder(device).join(format!("maps/map{map}/{name}"))).ok()?;
            u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        Some(number("size")?.checked_add(number("offset")?)?.div_ceil(page))
    };
    // MAX_UIO_MAPS; a device may have map 1 and no map 0.
    (0..5).map(|map| pages(map).unwrap_or(0)).collect()
}

/// The map, and the page in it, at which a mapping begins that shows this offset, in pages. A new one shows the map's
/// number; what is left of a split one shows more, and may look like another map. `None` where both are possible.
fn uio_map(maps: &[u64], shown: u64) -> Option<(u64, u64)> {
    let mut possible = (0..).zip(maps).filter_map(|(map, pages)| {
        let page = shown.checked_sub(map)?;
        (page < *pages).then_some((map, page))
    });
    possible.next().filter(|_| possible.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::{is_resource, uio_map};

    #[test]
    fn only_the_resource_files_of_a_device_look_like_one() {
        let folder = "/sys/devices/pci0000:00/0000:00:02.0";
        for (name, is_one) in [
            ("resource0", true),
            ("resource2_wc", true),
            ("resource", false),
            ("resource_wc", false),
            ("resource0_resize", false),
            ("rom", false),
        ] {
            assert_eq!(
                is_resource(format!("{folder}/{name}").as_bytes()),
                is_one,
                "{name}"
            );
        }
        assert!(!is_resource(b"/home/resource0"));
    }

    #[test]
    fn a_uio_map_is_known_by_its_number_unless_it_may_be_the_rest_of_another() {
        assert_eq!(uio_map(&[4, 0, 0, 0, 0], 0), Some((0, 0)));
        assert_eq!(uio_map(&[4, 0, 0, 0, 0], 3), Some((0, 3)));
        assert_eq!(uio_map(&[4, 0, 0, 0, 0], 4), None);
        assert_eq!(uio_map(&[1, 8, 0, 0, 0], 1), Some((1, 0)));
        assert_eq!(uio_map(&[2, 8, 0, 0, 0], 1), None);
        assert_eq!(uio_map(&[2, 8, 0, 0, 0], 2), Some((1, 1)));
    }
}
