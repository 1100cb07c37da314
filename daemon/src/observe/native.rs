//! Would the real node take a pointer into this mapping? The marker for problematic mappings that was wished for when
//! the kernel stopped to follow PFNs (2020): what `get_vaddr_frames` (videobuf2/frame_vector.c) has left is
//! `pin_user_pages_fast(FOLL_LONGTERM)`, and what that refuses, of any mapping, `check_vma_flags` says (mm/gup.c).

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};
use nix::sys::statfs::statfs;
use serde::Serialize;

use crate::resolve::Access;
use crate::sys::Vma;

/// `st_rdev`'s major of `/dev/fbN`.
const FB_MAJOR: u64 = 29;
/// `f_type` of file systems whose shared mappings need no dirty tracking: `TMPFS_MAGIC`, `HUGETLBFS_MAGIC`,
/// `DMA_BUF_MAGIC` (linux/magic.h).
const UNTRACKED: [u64; 3] = [0x0102_1994, 0x9584_58f6, 0x444d_4142];
/// `SECRETMEM_MAGIC`
const SECRETMEM: u64 = 0x5345_434d;

/// What the real node makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Native {
    /// QBUF succeeds, as far as this mapping goes.
    pub ok: bool,
    /// Why not, or what is to be known.
    pub why: Option<String>,
}

/// What is mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// No file, or one that could not be looked at.
    None,
    /// A file, on a file system of this `f_type`.
    File(u64),
    /// A framebuffer, by its driver's name in `/proc/fb`.
    Framebuffer(String),
    /// Another device node, a socket.
    Other,
}

/// All that the verdict depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The mapping.
    pub vma: &'a Vma,
    /// `VmFlags` of its smaps.
    pub flags: &'a [String],
    /// See [`Backing`].
    pub backing: &'a Backing,
    /// What the device does.
    pub access: Access,
    /// The kernel's version.
    pub kernel: (u32, u32),
}

impl Native {
    fn refused(why: impl Into<String>) -> Self {
        Self {
            ok: false,
            why: Some(why.into()),
        }
    }

    /// In the order of `check_vma_flags`.
    #[must_use]
    pub fn of(facts: &Facts<'_>) -> Self {
        let Facts { vma, kernel, .. } = *facts;
        let has = |flag| facts.flags.iter().any(|each| each == flag);
        let found: Vec<_> = [("io", "VM_IO"), ("pf", "VM_PFNMAP")]
            .into_iter()
            .filter_map(|(flag, name)| has(flag).then_some(name))
            .collect();
        if !found.is_empty() {
            return Self::refused(format!("no page of a {} mapping can be pinned", found.join("|")));
        }
        if *facts.backing == Backing::File(SECRETMEM) {
            return Self::refused("secret memory cannot be pinned");
        }
        // FOLL_FORCE, until 6.2, let vb2 pin what is private whatever it allows; and it always asked to write.
        let (forced, writes) = match kernel < (6, 2) {
            true => (!vma.shared, true),
            false => (false, facts.access == Access::Write),
        };
        if writes && !vma.writable && !forced {
            return Self::refused("the mapping is read-only");
        }
        if !writes && !vma.readable {
            return Self::refused("the mapping cannot be read");
        }
        // writable_file_mapping_allowed()
        if writes && vma.writable && vma.shared && kernel >= (6, 5) {
            return Self::of_tracked(facts.backing);
        }
        Self { ok: true, why: None }
    }

    /// A shared, writable mapping, for a kernel that pins none whose changes are tracked (`vma_needs_dirty_tracking`).
    fn of_tracked(backing: &Backing) -> Self {
        match backing {
            Backing::File(kind) if !UNTRACKED.contains(kind) => {
                Self::refused("the file system tracks what is written to a shared mapping of a file")
            }
            Backing::Framebuffer(driver) if driver.ends_with("drmfb") => {
                Self::refused("the DRM driver tracks what is written to the framebuffer")
            }
            Backing::Framebuffer(driver) if driver != "Virtual FB" => Self {
                ok: true,
                why: Some(format!(
                    "unless {driver} tracks what is written to the framebuffer"
                )),
            },
            _ => Self { ok: true, why: None },
        }
    }
}

/// `VmFlags` of the mapping that begins at `start`, from `/proc/PID/smaps`.
///
/// # Errors
/// What reading it says.
pub fn flags(pid: u32, start: u64) -> io::Result<Vec<String>> {
    flags_in(
        BufReader::new(fs::File::open(format!("/proc/{pid}/smaps"))?),
        start,
    )
}

fn flags_in(smaps: impl BufRead, start: u64) -> io::Result<Vec<String>> {
    let mut here = false;
    for line in smaps.split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let first = line.split(' ').next().unwrap_or_default();
        if let Some(begin) = first
            .split_once('-')
            .and_then(|(begin, _)| u64::from_str_radix(begin, 16).ok())
        {
            here = begin == start;
        } else if here && let Some(flags) = line.strip_prefix("VmFlags:") {
            return Ok(flags.split_whitespace().map(str::to_owned).collect());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// What `vma` of process `pid` maps. It is only looked at, not opened.
#[must_use]
pub fn backing(pid: u32, vma: &Vma) -> Backing {
    let path = format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end);
    let path = Path::new(&path);
    match fs::metadata(path) {
        _ if vma.inode == 0 => Backing::None,
        Err(_) => Backing::None,
        Ok(metadata) if metadata.file_type().is_file() => match statfs(path) {
            Ok(found) => Backing::File(found.filesystem_type().0.cast_unsigned()),
            Err(_) => Backing::None,
        },
        Ok(metadata) if metadata.file_type().is_char_device() && major(metadata.rdev()) == FB_MAJOR => {
            let list = fs::read_to_string("/proc/fb").unwrap_or_default();
            Backing::Framebuffer(framebuffer_in(&list, minor(metadata.rdev())))
        }
        Ok(_) => Backing::Other,
    }
}

/// The driver of framebuffer `number`, from `/proc/fb`.
fn framebuffer_in(list: &str, number: u64) -> String {
    let line = list.lines().find_map(|line| {
        let (first, name) = line.split_once(' ')?;
        (first.parse() == Ok(number)).then_some(name)
    });
    line.unwrap_or("its driver").to_owned()
}

/// The version of the kernel that runs; one without a fault of its own where it cannot be read.
#[must_use]
pub fn kernel() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    version_of(&text).unwrap_or((u32::MAX, 0))
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests;
