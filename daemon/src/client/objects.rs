//! From a mapping of a client to the very file that is mapped: among its fds, or through the mapping itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{BlockedThread, maps};
use crate::sys::{self, CpuUse, Mapping, Vma};

impl BlockedThread {
    /// An fd of ours for the file that `vma` maps, by one of this thread's fds. `fits` is shown what `/proc/TID/fd/N` and
    /// `/proc/TID/fdinfo/N` say of each that has the inode, and must let pass only files of which a copy is harmless
    /// (see [`BlockedThread::file`]). `None` where the thread has closed them all.
    pub fn file_of(&self, vma: &Vma, fits: impl Fn(&[u8], &str) -> bool) -> Option<OwnedFd> {
        let inode = vma.inode.to_string();
        self.files().into_iter().find_map(|(number, link)| {
            let fdinfo = std::fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.tid)).ok()?;
            // Linux before 5.14 does not tell the inode.
            if field(&fdinfo, "ino").is_some_and(|of_fd| of_fd != inode) || !fits(&link, &fdinfo) {
                return None;
            }
            let fd = self.file(number).ok()?;
            is_mapped_by(&fd, vma).then_some(fd)
        })
    }

    /// The file that `vma` maps, opened anew, for writing too where the mapping is writable. Works when all fds are closed;
    /// only for files of which opening has no effect.
    ///
    /// # Errors
    /// What open says, e.g. without CAP_CHECKPOINT_RESTORE; `NotFound` also for a mapping that has changed.
    pub fn open_mapped(&self, vma: &Vma) -> io::Result<File> {
        let link = format!("/proc/{}/map_files/{:x}-{:x}", self.tid, vma.start, vma.end);
        let file = OpenOptions::new().read(true).write(vma.writable).open(link)?;
        if is_mapped_by(&file, vma) {
            Ok(file)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

fn is_mapped_by(file: impl AsFd, vma: &Vma) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (vma.st_dev(), vma.inode))
}

/// The value of a line of fdinfo, such as `exp_name: system`.
#[must_use]
pub fn field<'a>(fdinfo: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':').map(str::trim);
    fdinfo.lines().find_map(value)
}

/// What fdinfo says of an fd of ours.
///
/// # Errors
/// What reading it says.
pub fn own_fdinfo(file: impl AsFd) -> io::Result<String> {
    std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd()))
}

/// The offset that maps shows for a mapping of `file` from byte 0 on: some drivers make it an address.
///
/// # Errors
/// What mmap and maps say.
pub fn offset_of_start(file: impl AsFd) -> io::Result<u64> {
    let mapping = Mapping::shared(file, 0, sys::page_size()?, CpuUse::Read)?;
    let at = mapping.host_ptr().addr() as u64;
    let mut offset = None;
    let ours = File::open("/proc/self/maps")?;
    let shown = maps::each_covering(&ours, at..at + 1, |vma| {
        // It may have become part of a greater one.
        offset = vma.offset.checked_add(at - vma.start);
        Ok(())
    });
    offset
        .filter(|_| shown.is_ok())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}
