//! Who may open a node: owner, group, mode and access control list, carried from one node to another.
//!
//! logind gives the person at the screen a line in the list of each camera (udev's tag uaccess), so the list is carried whole.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The list as the kernel keeps it (acl(5), linux/posix_acl_xattr.h).
const LIST: &str = "system.posix_acl_access";
/// More entries than a list can usefully have.
const LONGEST_LIST: usize = 64 << 10;

/// Who may open a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rights {
    uid: u32,
    gid: u32,
    mode: u32,
    list: Option<Vec<u8>>,
}

/// Who may open the node at `path`.
pub(super) fn rights(path: &Path) -> io::Result<Rights> {
    let node = fs::metadata(path)?;
    let mut list = Vec::with_capacity(LONGEST_LIST);
    let list = match getxattr(path, LIST, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => Some(list),
        // A kernel or a file system without lists has none.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
        Err(errno) => return Err(errno.into()),
    };
    Ok(Rights {
        uid: node.uid(),
        gid: node.gid(),
        mode: node.mode() & 0o7777,
        list,
    })
}

/// Whoever may open `from` may open `to`, and nobody else. `false`: so it was already.
///
/// # Errors
/// One of them is gone, or we may not; `to` may then be opened by fewer than `from`.
pub fn carry(from: &Path, to: &Path) -> io::Result<bool> {
    apply(&rights(from)?, to)
}

/// Those whom `wanted` says may open `to`, and nobody else. `false`: so it was already.
pub(super) fn apply(wanted: &Rights, to: &Path) -> io::Result<bool> {
    let found = rights(to)?;
    if *wanted == found {
        return Ok(false);
    }
    if (found.uid, found.gid) != (wanted.uid, wanted.gid) {
        // Nobody but root meanwhile: the old mode may let in whom the new owner or group is.
        fs::set_permissions(to, Permissions::from_mode(0o600))?;
        chown(to, Some(wanted.uid), Some(wanted.gid))?;
    }
    // Otherwise from one state to the other at once: who may open both before and after is never refused.
    match &wanted.list {
        // The list has the mode in it.
        Some(list) => setxattr(to, LIST, list, XattrFlags::empty())?,
        None => {
            fs::set_permissions(to, Permissions::from_mode(wanted.mode))?;
            if found.list.is_some() {
                // The group's bits were its mask until now.
                removexattr(to, LIST)?;
            }
        }
    }
    if rights(to)?.mode != wanted.mode {
        fs::set_permissions(to, Permissions::from_mode(wanted.mode))?;
    }
    Ok(true)
}
