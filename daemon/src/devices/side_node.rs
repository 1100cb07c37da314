//! The side node of a real V4L2 node.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::backend::v4l2::RealNode;
use crate::cuse::NodeSpec;

/// The major of V4L2, so that programs that check it accept our node; minors from 256 up are free of videodev, which
/// owns 0 to 255 (KERNEL.md A1).
const MAJOR: u32 = 81;
const FIRST_MINOR: u32 = 256;
const FIRST_NUMBER: u32 = 64;

/// Why a device cannot be served. Each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum SideNodeError {
    /// No such file.
    #[error(
        "{path}: there is no such device ({source}); `v4l2-ctl --list-devices` shows those that there are"
    )]
    Missing {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not `/dev/videoN` after all links are followed.
    #[error("{0} is no /dev/videoN node, which is what --device takes")]
    NotVideo(PathBuf),
    /// One of ours, or too high a number.
    #[error("{0}: only video0 to video63 can have a side node; higher ones may be side nodes themselves")]
    Number(PathBuf),
    /// The node cannot be opened or is no V4L2 node.
    #[error("{path} does not answer as a V4L2 device ({source}); it is left alone")]
    NotV4l2 {
        /// The node.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing that this version serves.
    #[error("{path} ({card}) has no single-planar capture queue, which is all that this version serves")]
    NotCapture {
        /// The node.
        path: PathBuf,
        /// Its name.
        card: String,
    },
    /// Our name is in use.
    #[error(
        "{path} exists already, so {real} cannot have its side node there; is another vidcompatd running?"
    )]
    NameTaken {
        /// Our name.
        path: PathBuf,
        /// The real node.
        real: PathBuf,
    },
    /// The same device twice.
    #[error("{0} is given twice")]
    Twice(PathBuf),
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
    #[error("{path} could not be given the owner and mode of {real} ({source})")]
    Access {
        /// Our node.
        path: PathBuf,
        /// The real node.
        real: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A real node and the node of ours that stands beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideNode {
    real: PathBuf,
    number: u32,
}

impl SideNode {
    /// The side node for `path`, which may be a link such as `/dev/v4l/by-id/...`. Changes nothing.
    ///
    /// # Errors
    /// See [`SideNodeError`].
    pub fn of(path: &Path) -> Result<Self, SideNodeError> {
        let missing = |source| SideNodeError::Missing {
            path: path.to_owned(),
            source,
        };
        let real = fs::canonicalize(path).map_err(missing)?;
        let metadata = fs::metadata(&real).map_err(missing)?;
        let number = video_number(&real).filter(|_| metadata.file_type().is_char_device());
        let number = number.ok_or_else(|| SideNodeError::NotVideo(path.to_owned()))?;
        if number >= FIRST_NUMBER {
            return Err(SideNodeError::Number(real));
        }
        let node = Self { real, number };
        node.check_device()?;
        let side = node.path();
        if fs::symlink_metadata(&side).is_ok() {
            return Err(SideNodeError::NameTaken {
                path: side,
                real: node.real,
            });
        }
        Ok(node)
    }

    /// The side nodes for `paths`, none of them twice.
    ///
    /// # Errors
    /// See [`SideNodeError`].
    pub fn of_all(paths: &[PathBuf]) -> Result<Vec<Self>, SideNodeError> {
        let mut nodes: Vec<Self> = Vec::new();
        for path in paths {
            let node = Self::of(path)?;
            if nodes.contains(&node) {
                return Err(SideNodeError::Twice(path.clone()));
            }
            nodes.push(node);
        }
        Ok(nodes)
    }

    fn check_device(&self) -> Result<(), SideNodeError> {
        let not_v4l2 = |source| SideNodeError::NotV4l2 {
            path: self.real.clone(),
            source,
        };
        let node = RealNode::open(&self.real, libc::O_RDWR).map_err(not_v4l2)?;
        let capability = node.capability().map_err(not_v4l2)?;
        let captures = v4l2r::ioctl::Capabilities::VIDEO_CAPTURE
            | v4l2r::ioctl::Capabilities::VBI_CAPTURE
            | v4l2r::ioctl::Capabilities::SLICED_VBI_CAPTURE
            | v4l2r::ioctl::Capabilities::SDR_CAPTURE
            | v4l2r::ioctl::Capabilities::META_CAPTURE;
        tracing::info!(
            device = %self.real.display(), driver = capability.driver, card = capability.card, "found a device"
        );
        if capability.device_caps().intersects(captures) {
            Ok(())
        } else {
            Err(SideNodeError::NotCapture {
                path: self.real.clone(),
                card: capability.card,
            })
        }
    }

    /// The real node.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// Where ours is, or will be.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/{}", self.name()))
    }

    fn name(&self) -> String {
        format!("video{}", FIRST_NUMBER + self.number)
    }

    /// What CUSE is asked for.
    #[must_use]
    pub fn spec(&self) -> NodeSpec {
        NodeSpec {
            name: self.name(),
            major: MAJOR,
            minor: FIRST_MINOR + self.number,
        }
    }

    /// Is the node that stands at our name the one that we asked for? (A name that is taken does not fail the CUSE
    /// handshake: the old node stays.)
    ///
    /// # Errors
    /// [`SideNodeError::NotMade`].
    pub fn verify(&self) -> Result<(), SideNodeError> {
        let NodeSpec { major, minor, .. } = self.spec();
        let made = fs::metadata(self.path()).is_ok_and(|metadata| {
            nix::sys::stat::major(metadata.rdev()) == u64::from(major)
                && nix::sys::stat::minor(metadata.rdev()) == u64::from(minor)
        });
        if made {
            Ok(())
        } else {
            Err(SideNodeError::NotMade {
                path: self.path(),
                major,
                minor,
            })
        }
    }

    /// Gives our node the owner, group and mode of the real one.
    ///
    /// # Errors
    /// [`SideNodeError::Access`].
    pub fn copy_access(&self) -> Result<(), SideNodeError> {
        let side = self.path();
        let copy = || {
            let real = fs::metadata(&self.real)?;
            // The owner first: until then the mode is 0600.
            chown(&side, Some(real.uid()), Some(real.gid()))?;
            fs::set_permissions(&side, fs::Permissions::from_mode(real.mode() & 0o7777))
        };
        copy().map_err(|source| SideNodeError::Access {
            path: side.clone(),
            real: self.real.clone(),
            source,
        })
    }

    /// Ends the channel by the kernel's own switch: requests that are under way fail, and readers see the end. Only
    /// for a node that is known to be ours: the switch goes by the name.
    ///
    /// # Errors
    /// What sysfs says.
    pub fn abort(&self) -> io::Result<()> {
        fs::write(format!("/sys/class/cuse/{}/abort", self.name()), "1")
    }
}

fn video_number(path: &Path) -> Option<u32> {
    if path.parent() != Some(Path::new("/dev")) {
        return None;
    }
    let digits = path.file_name()?.to_str()?.strip_prefix("video")?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{SideNode, SideNodeError, video_number};
    use std::path::Path;

    #[test]
    fn only_video_nodes_have_a_number() {
        assert_eq!(video_number(Path::new("/dev/video0")), Some(0));
        assert_eq!(video_number(Path::new("/dev/video63")), Some(63));
        for other in [
            "/dev/video",
            "/dev/video+1",
            "/dev/videox",
            "/tmp/video0",
            "/dev/v4l/video0",
            "/dev/vbi0",
        ] {
            assert_eq!(video_number(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_missing_device_and_another_kind_of_file_are_told_apart() {
        assert!(matches!(
            SideNode::of(Path::new("/dev/video-none")),
            Err(SideNodeError::Missing { .. })
        ));
        assert!(matches!(
            SideNode::of(Path::new("/dev/null")),
            Err(SideNodeError::NotVideo(_))
        ));
    }
}
