//! Whether anybody else has a file open that could write to it: a lease tells (fcntl_locking(2), fs/locks.c).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

// libc has them for some targets only (asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;

/// An open file of ours that is asked about its inode's others.
#[derive(Debug)]
pub struct LeasedFile<F>(F);

impl<F: AsFd> LeasedFile<F> {
    /// `file` was opened by open(2) for reading and writing, of an inode of our own. Files that memfd_create has made are
    /// not counted by the kernel and do not do.
    ///
    /// # Errors
    /// What fcntl says.
    pub fn new(file: F) -> io::Result<Self> {
        // Somebody who opens the inode in the instant in which the lease is held is announced by a signal: one that is ignored
        // where SIGIO, the default, would end this process.
        fcntl(&file, F_SETSIG, libc::SIGURG)?;
        Ok(Self(file))
    }

    /// The file.
    pub fn file(&self) -> &F {
        &self.0
    }

    /// Has anybody else the inode open for writing? A mapping counts as long as it lives, also after its fd was closed. Yes,
    /// where the kernel does not tell.
    pub fn others_may_write(&self) -> bool {
        if fcntl(&self.0, libc::F_SETLEASE, libc::F_WRLCK).is_err() {
            return true;
        }
        // Whoever opens it meanwhile waits for this.
        if let Err(error) = fcntl(&self.0, libc::F_SETLEASE, libc::F_UNLCK) {
            tracing::error!(%error, "a lease of a file of ours cannot be given back");
        }
        false
    }
}

fn fcntl(file: impl AsFd, command: libc::c_int, argument: libc::c_int) -> Result<libc::c_int, Errno> {
    // SAFETY: the commands used here take a number and no pointer.
    Errno::result(unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, argument) })
}

#[cfg(test)]
mod tests {
    use super::LeasedFile;
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsRawFd;

    fn again(file: &File, write: bool) -> File {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        OpenOptions::new()
            .read(true)
            .write(write)
            .open(path)
            .expect("opened again")
    }

    #[test]
    fn another_writer_is_seen_until_its_last_mapping_is_gone() {
        let memfd = rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::empty()).expect("a memfd");
        let memfd = File::from(memfd);
        memfd.set_len(4096).expect("room");
        let ours = LeasedFile::new(again(&memfd, true)).expect("a signal");
        assert!(!ours.others_may_write());
        let other = again(&memfd, true);
        assert!(ours.others_may_write());
        let mapping =
            crate::sys::Mapping::shared(&other, 0, 4096, crate::sys::CpuUse::Write).expect("mapped");
        drop(other);
        assert!(ours.others_may_write());
        drop(mapping);
        assert!(!ours.others_may_write());
        // That the lease was given back: this would wait.
        drop(again(ours.file(), true));
    }
}
