//! Our nodes in the place of the real ones, for this process and those that it starts: a mount namespace of its own, in
//! which each of ours is mounted over the real one.
//!
//! Nobody else sees it, and it ends with the last process in it. Only the mount that `/dev` belongs to is taken out of the
//! mounts that namespaces share: what the program mounts elsewhere is everybody's, as without us.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::nodes::{Pair, number_of};

/// Why there is no such namespace. Each message is the end of a sentence.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The kernel gives none: not to this user, not here, or no more of them.
    #[error("{what} is refused ({source})")]
    Refused {
        /// A mount namespace or a user namespace.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// There is a namespace, but not what we want in it.
    #[error("{} cannot stand at {} ({source})", ours.display(), real.display())]
    Mount {
        /// Our node.
        ours: PathBuf,
        /// The real one.
        real: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// In a mount namespace: for who has CAP_SYS_ADMIN.
///
/// # Errors
/// See [`PlaceError`]; of several nodes some may stand in place all the same, in a namespace that only this process is in.
pub fn in_mount_namespace(pairs: &[Pair]) -> Result<(), PlaceError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| PlaceError::Refused {
        what: "a mount namespace",
        source: errno.into(),
    })?;
    put(pairs)
}

/// In a user namespace with a mount namespace: for everybody, where the kernel allows it. User and group stay what they
/// are, and so does what may be opened (groups count in the kernel as before). But set-user-ID programs have no effect
/// in it, and the names of other users and groups cannot be seen.
///
/// # Errors
/// See [`PlaceError`]; the process cannot go back to where it was.
pub fn in_user_namespace(pairs: &[Pair]) -> Result<(), PlaceError> {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let refused = |source| PlaceError::Refused {
        what: "a user namespace",
        source,
    };
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(|errno| refused(errno.into()))?;
    // Who has no rights outside may map a group only after this (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("{user} {user} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("{group} {group} 1")))
        .map_err(refused)?;
    put(pairs)
}

fn put(pairs: &[Pair]) -> Result<(), PlaceError> {
    let nothing: Option<&str> = None;
    let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
    for Pair {
        real,
        ours,
        our_number,
        ..
    } in pairs
    {
        let failed = |source: io::Error| PlaceError::Mount {
            ours: ours.clone(),
            real: real.clone(),
            source,
        };
        if number_of(real) == Some(*our_number) {
            // `vidcompat run` inside `vidcompat run`.
            continue;
        }
        // What is mounted there lies behind symbolic links, in whose mount nothing is to be seen by others either.
        let target = fs::canonicalize(real).map_err(failed)?;
        let there = mount_of(&target, &mounts);
        mount(nothing, &there, nothing, MsFlags::MS_SLAVE, nothing).map_err(|errno| failed(errno.into()))?;
        mount(Some(ours), real, nothing, MsFlags::MS_BIND, nothing).map_err(|errno| failed(errno.into()))?;
        if number_of(real) != Some(*our_number) {
            return Err(failed(io::Error::other("something else stands there")));
        }
    }
    Ok(())
}

/// The mount that `path` lies in, by the lines of `/proc/self/mountinfo`.
fn mount_of(path: &Path, mounts: &[u8]) -> PathBuf {
    let mut best = PathBuf::from("/");
    for line in mounts.split(|byte| *byte == b'\n') {
        let Some(point) = line.split(|byte| *byte == b' ').nth(4) else {
            continue;
        };
        let point = PathBuf::from(OsString::from_vec(unescaped(point)));
        if path.starts_with(&point) && point.as_os_str().len() >= best.as_os_str().len() {
            best = point;
        }
    }
    best
}

/// `\040` is a blank (fs/proc_namespace.c, `mangle`).
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, more)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| more.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &more[3..] } else { more };
    }
    plain
}

/// May this process open the node at `path` for reading and writing?
#[must_use]
pub fn may_open(path: &Path) -> bool {
    use rustix::fs::{Access, AtFlags, CWD};
    let wanted = Access::READ_OK | Access::WRITE_OK;
    !path.as_os_str().as_bytes().is_empty()
        && rustix::fs::accessat(CWD, path, wanted, AtFlags::EACCESS).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{may_open, mount_of};
    use std::path::Path;

    const MOUNTS: &[u8] = b"22 1 0:21 / / rw - ext4 /dev/sda rw\n\
        23 22 0:5 / /dev rw shared:2 - devtmpfs udev rw\n\
        24 23 0:22 / /dev/pts rw shared:3 - devpts devpts rw\n\
        25 22 0:23 / /with\\040blank rw - tmpfs x rw\n\
        26 22 0:24 / /devices rw - tmpfs x rw\n";

    #[test]
    fn the_mount_of_a_path_is_the_longest_one_that_it_lies_in() {
        let of = |path: &str| mount_of(Path::new(path), MOUNTS);
        assert_eq!(of("/dev/video0"), Path::new("/dev"));
        assert_eq!(of("/dev/pts/0"), Path::new("/dev/pts"));
        assert_eq!(of("/with blank/x"), Path::new("/with blank"));
        assert_eq!(of("/home"), Path::new("/"));
        assert_eq!(mount_of(Path::new("/dev/video0"), b"nonsense"), Path::new("/"));
    }

    #[test]
    fn what_may_be_opened_is_told_without_opening() {
        assert!(may_open(Path::new("/dev/null")));
        assert!(!may_open(Path::new("/nowhere")) && !may_open(Path::new("")));
    }
}
