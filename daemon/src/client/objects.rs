//! From a mapping of a client to the very file that is mapped: among its fds, or through the mapping itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, makedev, statx};

use super::{BlockedThread, maps};
use crate::sys::{self, CpuUse, Mapping, Vma};

impl BlockedThread {
    /// An fd of ours for the file that `vma` maps, by one of this thread's fds: one whose `/proc/TID/fd/N` passes `link` and
    /// whose `/proc/TID/fdinfo/N` passes `fdinfo`, which must let pass only files of which a copy is harmless (see
    /// [`BlockedThread::file`]). `None` where the thread has closed them all.
    pub fn file_of(
        &self,
        vma: &Vma,
        link: impl Fn(&[u8]) -> bool,
        fdinfo: impl Fn(&str) -> bool,
    ) -> Option<OwnedFd> {
        let inode = vma.inode.to_string();
        self.files().find_map(|(number, of_fd)| {
            if !link(&of_fd) {
                return None;
            }
            let text = std::fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.tid)).ok()?;
            // Linux before 5.14 does not tell the inode.
            if field(&text, "ino").is_some_and(|of_fd| of_fd != inode) || !fdinfo(&text) {
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
        let mut options = OpenOptions::new();
        options.read(true).write(vma.writable);
        // Another file may be mapped there by now.
        let file = options
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(link)?;
        if is_mapped_by(&file, vma) {
            Ok(file)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

fn is_mapped_by(file: impl AsFd, vma: &Vma) -> bool {
    Identity::of(file).is_some_and(|identity| identity.is_mapped_by(vma))
}

/// Which file it is, as the kernel knows without asking anybody: a client's file may be of a file system (FUSE) whose
/// server is the client, and never answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    st_dev: u64,
    inode: u64,
    /// Major and minor, of a character device.
    pub device: Option<(u32, u32)>,
}

impl Identity {
    /// Of what is at `path`. A link there leads on.
    pub fn at(path: &str) -> Option<Self> {
        Self::told(statx(CWD, path, Self::flags(), Self::wanted()))
    }

    /// Of an open file.
    pub fn of(file: impl AsFd) -> Option<Self> {
        Self::told(statx(
            file,
            c"",
            Self::flags() | AtFlags::EMPTY_PATH,
            Self::wanted(),
        ))
    }

    fn flags() -> AtFlags {
        AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT
    }

    fn wanted() -> StatxFlags {
        StatxFlags::TYPE | StatxFlags::INO
    }

    fn told(stat: rustix::io::Result<Statx>) -> Option<Self> {
        let stat = stat.ok()?;
        let is_device = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::CharacterDevice;
        Some(Self {
            st_dev: makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            device: is_device.then_some((stat.stx_rdev_major, stat.stx_rdev_minor)),
        })
    }

    /// Is it the file that `vma` maps?
    pub fn is_mapped_by(&self, vma: &Vma) -> bool {
        (self.st_dev, self.inode) == (vma.st_dev(), vma.inode)
    }
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

#[cfg(test)]
mod tests {
    use super::{field, offset_of_start};
    use crate::client::{BlockedThread, Clients};
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
        let find = || us.file_of(&vma, |link| link.starts_with(b"/memfd:test"), |_| true);
        let mut bytes = [0; 6];
        let found = File::from(find().expect("it is open"));
        found.read_exact_at(&mut bytes, 4_096).expect("its bytes");
        assert_eq!(&bytes, b"mapped");
        assert!(
            us.file_of(&vma, |_| true, |text| field(text, "exp_name").is_some())
                .is_none()
        );
        assert!(
            us.file_of(&vma, |link| link.starts_with(b"/dmabuf:"), |_| true)
                .is_none()
        );
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
