//! The file behind a mapping, and the client's own fds of it.
//!
//! The mapping itself says which file it is (`/proc/TID/map_files`); a name never does. An fd is taken only after it
//! has been seen to be the same file: our copy of some other file could have effects when it is closed, or wait.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{Access, Look};
use crate::client::Identity;
use crate::sys::Vma;

/// At most so many of a client's fds are taken for one mapping.
const MAX_FILES: usize = 16;

/// Number of the character device that is mapped: major, minor. `None` for what is none, and where the mapping has
/// changed meanwhile.
pub(super) fn device_of(look: &Look<'_>, vma: &Vma) -> Option<(u32, u32)> {
    let file = Identity::at(&link_of(look, vma))?;
    file.device.filter(|_| file.is_mapped_by(vma))
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

fn is_mapped(file: Option<Identity>, vma: &Vma) -> bool {
    file.is_some_and(|file| file.device.is_some() && file.is_mapped_by(vma))
}

/// The client's open files of the character device that is mapped: the very ones it has, so what belongs to an open
/// file (a queue, handles) belongs to these, too.
pub(super) fn of_mapping(look: &Look<'_>, vma: &Vma) -> Vec<File> {
    let same = |file: &File| is_mapped(Identity::of(file), vma);
    let taken = look.client.files().filter_map(|(number, link)| {
        if link != vma.name {
            return None;
        }
        // Follows the link to the open file itself, and takes no part in it.
        let file = Identity::at(&format!("/proc/{}/fd/{number}", look.client.tid()));
        if !is_mapped(file, vma) {
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
        // Another file may be mapped there by now.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(link_of(look, vma));
    open.ok().filter(|file| is_mapped(Identity::of(file), vma))
}

/// Who has made this dma-buf (`exp_name` of its fdinfo, dma-buf.c), and how many bytes it has.
pub(super) fn exporter_of(dma_buf: impl AsFd) -> Option<(String, u64)> {
    let fd = dma_buf.as_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let exporter = info.lines().find_map(|line| line.strip_prefix("exp_name:"))?;
    let size = rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0)).ok()?;
    Some((exporter.trim().to_owned(), size))
}
