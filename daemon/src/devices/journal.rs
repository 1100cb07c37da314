//! A folder with a file for each name, written whole or not at all, and a lock for each.
//!
//! No link is followed there: the folder is the daemon's user's, and `--give-back` may be run by root.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// Bytes of a file that are read: more than we write.
const LONGEST: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Folder(File);

/// Why a lock is not ours.
#[derive(Debug)]
pub(super) enum LockError {
    /// The process that has it, as far as it has said so.
    Taken(String),
    System(io::Error),
}

/// Held until it is dropped, or until the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closed when it is dropped, which unlocks it")] File);

impl Folder {
    /// Made if need be.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let folder = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        Ok(Self(folder))
    }

    /// Where `name` is in this folder, whatever has its path by now.
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }

    /// The lock for `name`. Its file stays: one that is removed could be locked twice.
    pub(super) fn lock(&self, name: &str) -> Result<Lock, LockError> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(self.path(&format!("{name}.lock")));
        let mut file = open.map_err(LockError::System)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let mut said = || -> io::Result<()> {
                    file.set_len(0)?;
                    write!(file, "{}", std::process::id())
                };
                said().map_err(LockError::System)?;
                Ok(Lock(file))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Nothing there yet: it has the lock since this very moment.
                let _ = file.read_to_string(&mut pid);
                Err(LockError::Taken(if pid.is_empty() {
                    "?".to_owned()
                } else {
                    pid
                }))
            }
            Err(errno) => Err(LockError::System(errno.into())),
        }
    }

    /// When this returns, the file is what `bytes` says, also after a loss of power.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = format!("{name}.new");
        self.remove(&unfinished)?;
        let new = self.path(&unfinished);
        // Nothing has the name, or it fails: not even a link is followed.
        let mut file = File::create_new(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.path(name))?;
        self.0.sync_all()
    }

    /// What was written last; `None` where nothing was.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let file = OpenOptions::new()
            .read(true)
            // Nor is a pipe waited for.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.path(name))
            .ok()?;
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Afterwards nothing is written.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Folder, LockError};
    use std::os::unix::fs::symlink;

    #[test]
    fn a_name_is_locked_once_and_read_as_it_was_written() {
        let path = std::env::temp_dir().join(format!("vidcompat-journal-{}", std::process::id()));
        let folder = Folder::open(&path).expect("a folder");
        let lock = folder.lock("a").expect("nobody has it");
        match folder.lock("a") {
            Err(LockError::Taken(pid)) => assert_eq!(pid, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        let _other = folder.lock("b").expect("another name");
        drop(lock);
        let _again = folder.lock("a").expect("nobody has it");
        assert_eq!(folder.read("a"), None);
        folder.write("a", b"one").expect("a file");
        folder.write("a", b"two").expect("a file");
        assert_eq!(folder.read("a").as_deref(), Some(&b"two"[..]));
        folder.remove("a").expect("a file");
        folder.remove("a").expect("nothing is left");
        assert_eq!(folder.read("a"), None);
        std::fs::remove_dir_all(&path).expect("ours");
    }

    #[test]
    fn a_link_is_not_followed() {
        let path = std::env::temp_dir().join(format!("vidcompat-journal-link-{}", std::process::id()));
        let folder = Folder::open(&path.join("folder")).expect("a folder");
        let other = path.join("other");
        std::fs::write(&other, "theirs").expect("a file");
        for name in ["a", "a.lock", "a.new"] {
            symlink(&other, path.join("folder").join(name)).expect("a link");
        }
        assert!(matches!(folder.lock("a"), Err(LockError::System(_))));
        assert_eq!(folder.read("a"), None);
        folder
            .write("a", b"ours")
            .expect("a file in the place of the links");
        assert_eq!(folder.read("a").as_deref(), Some(&b"ours"[..]));
        assert_eq!(std::fs::read(&other).expect("a file"), b"theirs");
        symlink(path.join("folder"), path.join("link")).expect("a link");
        assert!(Folder::open(&path.join("link")).is_err());
        std::fs::remove_dir_all(&path).expect("ours");
    }
}
