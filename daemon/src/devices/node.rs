//! A node of ours: its name and number, whether it was made, who may open it, and how it is ended.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::Group;

use super::access::carry;
use crate::cuse::NodeSpec;

/// What is wrong with a node of ours. Each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Our name is in use.
    #[error(
        "{path} exists already, so {real} cannot have its side node there; is another vidcompatd running?"
    )]
    NameTaken {
        /// Our name.
        path: PathBuf,
        /// What it was to stand for.
        real: PathBuf,
    },
    /// Another node got the name first.
    #[error("{path} is not the node {major}:{minor} that was asked for; is another vidcompatd running?")]
    NotMade {
        /// Our name.
        path: PathBuf,
        /// Device number.
        major: u32,
        /// Device number.
        minor: u32,
    },
    /// Owner or mode could not be set.
    #[error("{path} could not be given the owner and mode of {like} ({source})")]
    Access {
        /// Our node.
        path: PathBuf,
        /// Whose.
        like: String,
        /// Why.
        source: io::Error,
    },
}

/// Who may open a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever may open this one.
    Like(PathBuf),
    /// root and the group `video`, as Debian's udev rules say of every framebuffer and camera.
    Video,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    spec: NodeSpec,
    access: Access,
}

impl Node {
    pub(super) fn new(spec: NodeSpec, access: Access) -> Self {
        Self { spec, access }
    }

    /// What CUSE is asked for.
    pub fn spec(&self) -> &NodeSpec {
        &self.spec
    }

    /// Where it is, or will be.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/{}", self.spec.name))
    }

    /// Is its name free? It is to stand for `real`.
    pub(super) fn check_free(&self, real: &Path) -> Result<(), NodeError> {
        let path = self.path();
        if fs::symlink_metadata(&path).is_ok() {
            let real = real.to_owned();
            return Err(NodeError::NameTaken { path, real });
        }
        Ok(())
    }

    /// Is the node that stands at our name the one that we asked for? (A name that is taken does not fail the CUSE
    /// handshake: the old node stays.)
    ///
    /// # Errors
    /// [`NodeError::NotMade`].
    pub fn verify(&self) -> Result<(), NodeError> {
        let NodeSpec { major, minor, .. } = self.spec;
        let path = self.path();
        match self.stands() {
            true => Ok(()),
            false => Err(NodeError::NotMade { path, major, minor }),
        }
    }

    /// Is what stands at our name ours?
    #[must_use]
    pub fn stands(&self) -> bool {
        let NodeSpec { major, minor, .. } = self.spec;
        fs::symlink_metadata(self.path()).is_ok_and(|found| {
            nix::sys::stat::major(found.rdev()) == u64::from(major)
                && nix::sys::stat::minor(found.rdev()) == u64::from(minor)
        })
    }

    /// Can there not be both?
    #[must_use]
    pub fn is_in_the_way_of(&self, other: &Self) -> bool {
        let (one, other) = (&self.spec, &other.spec);
        one.name == other.name || (one.major, one.minor) == (other.major, other.minor)
    }

    /// Takes the name away: who has the node open keeps it, and nobody else comes. The kernel removes the name itself
    /// only when the node ends.
    pub fn hide(&self) {
        if self.stands()
            && let Err(error) = fs::remove_file(self.path())
        {
            tracing::warn!(node = %self.path().display(), %error, "the node of a device that is gone keeps its name");
        }
    }

    /// The node whose owner, mode and list it is to have.
    #[must_use]
    pub fn like(&self) -> Option<&Path> {
        match &self.access {
            Access::Like(real) => Some(real),
            Access::Video => None,
        }
    }

    /// Lets those open it who may.
    ///
    /// # Errors
    /// [`NodeError::Access`].
    pub fn grant(&self) -> Result<(), NodeError> {
        let path = self.path();
        let grant = || {
            let (uid, gid, mode) = match &self.access {
                Access::Like(real) => return carry(real, &path).map(drop),
                Access::Video => match Group::from_name("video")? {
                    Some(group) => (0, group.gid.as_raw(), 0o660),
                    None => (0, 0, 0o600),
                },
            };
            // The owner first: until then the mode is 0600.
            chown(&path, Some(uid), Some(gid))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        };
        grant().map_err(|source| NodeError::Access {
            path: path.clone(),
            like: match &self.access {
                Access::Like(real) => real.display().to_string(),
                Access::Video => "the group video".to_owned(),
            },
            source,
        })
    }

    /// Where the kernel's switch is that ends its channel.
    #[must_use]
    pub fn abort_switch(&self) -> PathBuf {
        PathBuf::from(format!("/sys/class/cuse/{}/abort", self.spec.name))
    }

    /// Ends the channel by the kernel's own switch: requests that are under way fail, and readers see the end. Only
    /// for a node that is known to be ours: the switch goes by the name.
    ///
    /// # Errors
    /// What sysfs says.
    pub fn abort(&self) -> io::Result<()> {
        fs::write(self.abort_switch(), "1")
    }
}
