//! The file behind a mapping, and the client's own fds of it.
//!
//! The mapping itself says which file it is (`/proc/TID/map_files`); a name never does. An fd is taken only after it
//! has been seen to be the same file: our copy of some other file could have effects when it is closed, or wait.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

use super::{Access, Look};
use crate::sys::Vma;

/// At most so many of a client's fds are taken for one mapping.
const MAX_FILES: usize = 16;

/// Number of the character device that is mapped: major, minor. `None` for what is none, and where the mapping has
/// changed meanwhile.
pub(super) fn device_of(look: &Look<'_>, vma: &Vma) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(link_of(look, vma)).ok()?;
    is_mapped(&metadata, vma).then(|| (major(metadata.rdev()), minor(metadata.rdev())))
}

/// The link by which the kernel names the file of a mapping.
fn link_of(look: &Look<'_>, vma: &Vma) -> String {
    format!(
        "/proc/{}/map_files/{:x}-{:x}",
        look.client.tid(),
        vma.start,
        vma.end
    )
}

fn is_mapped(metadata: &std::fs::Metadata, vma: &Vma) -> bool {
    use std::os::unix::fs::FileTypeExt;
    metadata.file_type().is_char_device() && metadata.dev() == vma.st_dev() && metadata.ino() == vma.inode
}

/// The client's open files of the character device that is mapped: the very ones it has, so what belongs to an open
/// file (a queue, handles) belongs to these, too.
pub(super) fn of_mapping(look: &Look<'_>, vma: &Vma) -> Vec<File> {
    let same = |file: &File| file.metadata().is_ok_and(|metadata| is_mapped(&metadata, vma));
    let taken = look.client.files().into_iter().filter_map(|(number, link)| {
        if link != vma.name {
            return None;
        }
        // Follows the link to the open file itself, and takes no part in it.
        let metadata = std::fs::metadata(format!("/proc/{}/fd/{number}", look.client.tid())).ok()?;
        if !is_mapped(&metadata, vma) {
            return None;
        }
        Some(File::from(look.client.file(number).ok()?)).filter(same)
    });
    taken.take(MAX_FILES).collect()
}

/// The character device that is mapped, opened anew through the mapping. Only for a driver to which one more open file
/// means nothing.
pub(super) fn reopen(look: &Look<'_>, vma: &Vma) -> Option<File> {
    let open = File::options()
        .read(true)
        .write(look.access == Access::Write)
        .open(link_of(look, vma));
    open.ok()
        .filter(|file| file.metadata().is_ok_and(|metadata| is_mapped(&metadata, vma)))
}

/// Who has made this dma-buf (`exp_name` of its fdinfo, dma-buf.c), and how many bytes it has.
pub(super) fn exporter_of(dma_buf: impl AsFd) -> Option<(String, u64)> {
    let fd = dma_buf.as_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let exporter = info.lines().find_map(|line| line.strip_prefix("exp_name:"))?;
    let size = rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0)).ok()?;
    Some((exporter.trim().to_owned(), size))
}
