//! A folder with a file for each name, written whole or not at all, and a lock for each.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

/// See the module.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

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
        Ok(Self(path.to_owned()))
    }

    /// The lock for `name`. Its file stays: one that is removed could be locked twice.
    pub(super) fn lock(&self, name: &str) -> Result<Lock, LockError> {
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.0.join(format!("{name}.lock")));
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
        let new = self.0.join(format!("{name}.new"));
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.0.join(name))?;
        File::open(&self.0)?.sync_all()
    }

    /// What was written last; `None` where nothing was.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.0.join(name)).ok()
    }

    /// Afterwards nothing is written.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.0.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Folder, LockError};

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
}
