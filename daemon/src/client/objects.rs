//! From a mapping of a client to the very file that is mapped: among its fds, or through the mapping itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::stat::makedev;
use nix::unistd::Pid;
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};

use super::{BlockedThread, maps};
use crate::sys::{self, CpuUse, Mapping, Vma};

/// A client may have opened a million files, and have us go through them at each QBUF.
const MOST_FILES: usize = 4096;

/// An open file of a thread, seen from outside.
#[derive(Debug)]
pub struct OpenFile {
    tid: Pid,
    /// Its fd there.
    pub number: i32,
    /// What `/proc/TID/fd/N` says: a path, or a name such as `/dmabuf:`.
    pub link: Vec<u8>,
}

impl OpenFile {
    /// What `/proc/TID/fdinfo/N` says.
    ///
    /// # Errors
    /// What reading it says.
    pub fn fdinfo(&self) -> io::Result<String> {
        std::fs::read_to_string(format!("/proc/{}/fdinfo/{}", self.tid, self.number))
    }
}

impl BlockedThread {
    /// This thread's open files, each looked at when it is asked for: the lowest [`MOST_FILES`]. None where they cannot be
    /// seen.
    fn files(&self) -> impl Iterator<Item = OpenFile> {
        let tid = self.tid;
        let folder = std::fs::read_dir(format!("/proc/{tid}/fd"));
        let file = move |entry: std::fs::DirEntry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            let link = std::fs::read_link(entry.path()).ok()?.into_os_string();
            let link = link.into_encoded_bytes();
            Some(OpenFile { tid, number, link })
        };
        let entries = folder.into_iter().flatten().take(MOST_FILES);
        entries.filter_map(move |entry| file(entry.ok()?))
    }

    /// Fds of ours for this thread's open files of the file that `vma` maps: the very ones it has, so what belongs to an
    /// open file (a queue, handles) belongs to these, too. Only those that `harmless` lets pass, which must be files of
    /// which a copy is harmless (see [`BlockedThread::file`]). None where the thread has closed them all.
    pub fn files_of(&self, vma: &Vma, harmless: impl Fn(&OpenFile) -> bool) -> impl Iterator<Item = OwnedFd> {
        self.files().filter_map(move |file| {
            if !harmless(&file) {
                return None;
            }
            // Before it is taken, by the link to the open file itself, and after.
            let seen = stat(format!("/proc/{}/fd/{}", self.tid, file.number))?;
            if !is_of(&seen, vma) {
                return None;
            }
            let fd = self.file(file.number).ok()?;
            is_mapped_by(&fd, vma).then_some(fd)
        })
    }

    /// Number of the character device that `vma` maps: major, minor. `None` for what is none, and where the mapping has
    /// changed meanwhile.
    pub fn device_of(&self, vma: &Vma) -> Option<(u32, u32)> {
        let seen = stat(self.link_of(vma))?;
        let is_device =
            FileType::from_raw_mode(seen.stx_mode.into()) == FileType::CharacterDevice && is_of(&seen, vma);
        is_device.then_some((seen.stx_rdev_major, seen.stx_rdev_minor))
    }

    /// The file that `vma` maps, opened anew, for writing too where the mapping is writable. Works when all fds are closed;
    /// only for files of which opening has no effect.
    ///
    /// # Errors
    /// What open says, e.g. without CAP_CHECKPOINT_RESTORE; `NotFound` also for a mapping that has changed.
    pub fn open_mapped(&self, vma: &Vma) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(vma.writable)
            // Another file may be mapped there by now.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(self.link_of(vma))?;
        if is_mapped_by(&file, vma) {
            Ok(file)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// The link by which the kernel names the file of a mapping.
    fn link_of(&self, vma: &Vma) -> String {
        format!("/proc/{}/map_files/{:x}-{:x}", self.tid, vma.start, vma.end)
    }
}

/// Asks nobody but the kernel: a file system whose server is a program of the client's would have to be waited for.
fn stat(link: impl AsRef<Path>) -> Option<Statx> {
    let wanted = StatxFlags::TYPE | StatxFlags::INO;
    rustix::fs::statx(rustix::fs::CWD, link.as_ref(), AtFlags::STATX_DONT_SYNC, wanted).ok()
}

fn is_of(seen: &Statx, vma: &Vma) -> bool {
    let device = makedev(seen.stx_dev_major.into(), seen.stx_dev_minor.into());
    (device, seen.stx_ino) == (vma.st_dev(), vma.inode)
}

fn is_mapped_by(file: impl AsFd, vma: &Vma) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let seen = rustix::fs::statx(file, c"", flags, StatxFlags::INO);
    seen.is_ok_and(|seen| is_of(&seen, vma))
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

#[cfg(test)]
mod tests {
    use super::{OpenFile, offset_of_start};
    use crate::client::{BlockedThread, Clients};
    use crate::sys::field;
    use crate::sys::{CpuUse, Mapping, Vma};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::fs::File;
    use std::io::ErrorKind;
    use std::os::unix::fs::FileExt;

    fn object(len: u64) -> File {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        file.set_len(len).expect("room in memory");
        file
    }

    fn ourselves() -> BlockedThread {
        let tid = nix::unistd::gettid().as_raw().cast_unsigned();
        Clients::default().of_thread(tid).expect("ourselves")
    }

    fn vma_of(us: &BlockedThread, mapping: &Mapping) -> Vma {
        let mut found = None;
        let at = mapping.host_ptr().addr() as u64;
        us.each_mapping(at..at + 1, |vma| {
            found = Some(vma);
            Ok(())
        })
        .expect("it is mapped");
        found.expect("it is mapped")
    }

    #[test]
    fn the_file_behind_a_mapping_is_found_among_others_of_its_name_until_it_is_closed() {
        let us = ourselves();
        let (other, file) = (object(8_192), object(8_192));
        file.write_all_at(b"mapped", 4_096).expect("room in memory");
        let mapping = Mapping::shared(&file, 4_096, 4_096, CpuUse::Read).expect("a mapping");
        let vma = vma_of(&us, &mapping);
        let find = || {
            us.files_of(&vma, |file| file.link.starts_with(b"/memfd:test"))
                .next()
        };
        let mut bytes = [0; 6];
        let found = File::from(find().expect("it is open"));
        found.read_exact_at(&mut bytes, 4_096).expect("its bytes");
        assert_eq!(&bytes, b"mapped");
        let is_dma_buf = |file: &OpenFile| {
            let fdinfo = file.fdinfo();
            fdinfo.is_ok_and(|text| field(&text, "exp_name").is_some())
        };
        assert_eq!(us.files_of(&vma, is_dma_buf).count(), 0);
        // Ours, and our copy.
        assert_eq!(us.files_of(&vma, |_| true).count(), 2);
        drop((found, file));
        assert!(find().is_none());
        drop(other);
    }

    #[test]
    fn a_mapping_leads_to_its_file_where_we_may_and_to_no_other() {
        let us = ourselves();
        let file = object(4_096);
        let mapping = Mapping::shared(&file, 0, 4_096, CpuUse::Write).expect("a mapping");
        let vma = vma_of(&us, &mapping);
        drop(file);
        match us.open_mapped(&vma) {
            Ok(file) => file.write_all_at(b"through", 0).expect("it is writable"),
            // Without CAP_CHECKPOINT_RESTORE.
            Err(error) => assert_eq!(error.kind(), ErrorKind::PermissionDenied),
        }
        let stale = Vma {
            inode: vma.inode + 1,
            ..vma
        };
        assert!(us.open_mapped(&stale).is_err());
    }

    #[test]
    fn a_plain_files_start_is_shown_as_0() {
        assert_eq!(offset_of_start(object(4_096)).expect("it can be mapped"), 0);
        assert!(offset_of_start(File::open("/dev/null").expect("it is there")).is_err());
    }

    #[test]
    fn a_line_of_fdinfo_is_found_by_its_whole_name() {
        let text = "pos:\t0\nino:\t17\nexp_name:\tlinux,cma\nname:\ta b\n";
        assert_eq!(field(text, "ino"), Some("17"));
        assert_eq!(field(text, "exp_name"), Some("linux,cma"));
        assert_eq!(field(text, "name"), Some("a b"));
        assert_eq!(field(text, "size"), None);
    }
}
