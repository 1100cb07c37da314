//! What is kept: files with names, as many as can be handed on.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

/// `LISTEN_FDNAMES=` and the names of all with a colon between them are one string of the environment, and the kernel takes
/// none that is longer than this (`MAX_ARG_STRLEN` in linux/binfmts.h, 32 pages).
const LONGEST_NAMES: usize = 131_072 - 64;
/// Of one name, as systemd has it (`FDNAME_MAX`).
const LONGEST_NAME: usize = 255;

/// Why a file is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// Not what sd_notify(3) allows.
    #[error("its name is none")]
    Name,
    /// There are too many.
    #[error("there are too many")]
    Full,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Files {
    files: BTreeMap<String, OwnedFd>,
    /// Bytes of all names, each with a colon.
    names: usize,
    most: usize,
}

impl Files {
    /// Room for `most`.
    pub(super) fn new(most: usize) -> Self {
        Self {
            files: BTreeMap::new(),
            names: 0,
            most,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// In the order in which they are handed on.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.files.iter().map(|(name, fd)| (name.as_str(), fd.as_fd()))
    }

    /// Keeps `fd` in the place of what has had this name.
    pub(super) fn put(&mut self, name: &str, fd: OwnedFd) -> Result<(), Refused> {
        let is_good = (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        if !is_good {
            close(fd);
            return Err(Refused::Name);
        }
        if let Some(kept) = self.files.get_mut(name) {
            close(std::mem::replace(kept, fd));
            return Ok(());
        }
        let names = self.names + name.len() + 1;
        if self.files.len() >= self.most || names > LONGEST_NAMES {
            close(fd);
            return Err(Refused::Full);
        }
        self.names = names;
        self.files.insert(name.to_owned(), fd);
        Ok(())
    }

    /// Lets go of the file of this name, if there is one.
    pub(super) fn remove(&mut self, name: &str) {
        if let Some(fd) = self.files.remove(name) {
            self.names -= name.len() + 1;
            close(fd);
        }
    }
}

/// Elsewhere: the last close of a device may have to wait for its driver, and the daemon waits for us.
fn close(fd: OwnedFd) {
    // Where there is no thread the closure is dropped, and the file with it.
    drop(
        thread::Builder::new()
            .name("close".into())
            .spawn(move || drop(fd)),
    );
}

#[cfg(test)]
mod tests {
    use super::{Files, Refused};
    use std::fs::File;
    use std::os::fd::OwnedFd;

    fn null() -> OwnedFd {
        File::open("/dev/null").expect("a null device").into()
    }

    #[test]
    fn a_name_has_one_file_and_what_is_removed_makes_room() {
        let mut files = Files::new(2);
        assert_eq!(files.put("a.b.1", null()), Ok(()));
        assert_eq!(files.put("c", null()), Ok(()));
        assert_eq!(files.put("a.b.1", null()), Ok(()), "in the place of the first");
        assert_eq!(files.put("d", null()), Err(Refused::Full));
        files.remove("nothing");
        files.remove("a.b.1");
        assert_eq!(files.put("d", null()), Ok(()));
        assert_eq!(files.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["c", "d"]);
        assert_eq!(files.names, 4);
    }

    #[test]
    fn names_that_the_environment_cannot_carry_are_refused() {
        let mut files = Files::new(100_000);
        for name in ["", "a:b", "a b", "a\nb", "\u{e4}", &"x".repeat(256)] {
            assert_eq!(files.put(name, null()), Err(Refused::Name), "{name}");
        }
        let long = |number: u32| format!("{number:0>255}");
        let kept = (0..)
            .take_while(|number| files.put(&long(*number), null()).is_ok())
            .count();
        assert_eq!(kept, 131_008 / 256);
        assert_eq!(files.len(), kept);
    }
}
