//! The side node of a real V4L2 node.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::asking::ask;
use super::discovery::{Found, number_at};
use super::node::{Access, Node, NodeError};
use super::takeover::{Takeover, TakeoverError};
use crate::backend::v4l2::RealNode;
use crate::cuse::NodeSpec;

/// The major of V4L2, so that programs that check it accept our node; minors from 256 up are free of videodev, which
/// owns 0 to 255 (KERNEL.md A1).
pub(crate) const MAJOR: u32 = 81;
/// Ours is `/dev/videoN` with N this much higher than the real one's.
pub(crate) const FIRST_NUMBER: u32 = 64;

/// For a device of the command line to answer: longer than a camera takes that has to be woken.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kinds of V4L2 nodes (`VFL_TYPE_*`, v4l2-dev.c) by what their names begin with; metadata nodes are video nodes.
/// Programs take the kind from the name that `/sys/dev/char/MAJOR:MINOR/uevent` gives, so ours begins the same. Each has
/// its own minors, of which a device number has 20 bits.
const KINDS: [Kind; 5] = [
    Kind {
        prefix: "video",
        first_minor: 256,
    },
    Kind {
        prefix: "vbi",
        first_minor: 512,
    },
    Kind {
        prefix: "radio",
        first_minor: 768,
    },
    Kind {
        prefix: "swradio",
        first_minor: 1024,
    },
    Kind {
        prefix: "v4l-touch",
        first_minor: 1280,
    },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    prefix: &'static str,
    first_minor: u32,
}

impl Kind {
    /// Video first.
    pub(super) fn order(self) -> u32 {
        self.first_minor
    }
}

/// By what the names of V4L2 nodes begin, and the first minor of ours of this kind.
pub(crate) fn kinds() -> impl Iterator<Item = (&'static str, u32)> {
    KINDS.into_iter().map(|kind| (kind.prefix, kind.first_minor))
}

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
    /// No name of a V4L2 node after all links are followed.
    #[error(
        "{0} is no V4L2 node (/dev/videoN, vbiN, radioN, swradioN or v4l-touchN), which is what --device takes"
    )]
    NotV4l2Name(PathBuf),
    /// One of ours, or too high a number.
    #[error("{0}: only the numbers 0 to 63 can have a side node; higher ones may be side nodes themselves")]
    Number(PathBuf),
    /// Ours, or another daemon's.
    #[error("{0} is a node of vidcompatd itself; is another one running that has taken the real one over?")]
    Ours(PathBuf),
    /// The node cannot be opened or is no V4L2 node.
    #[error("{path} does not answer as a V4L2 device ({source}); it is left alone")]
    NotV4l2 {
        /// The node.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Our own node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The same device twice.
    #[error("{0} is given twice")]
    Twice(PathBuf),
}

/// A real node and the node of ours that stands beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideNode {
    real: PathBuf,
    node: Node,
    /// Driver and card, as QUERYCAP names them.
    names: (String, String),
}

impl SideNode {
    /// The side node for `path`, which may be a link such as `/dev/v4l/by-id/...`. Changes nothing. Its name is free, or it
    /// `is_ours` already.
    ///
    /// # Errors
    /// See [`SideNodeError`].
    pub fn of(path: &Path, is_ours: &dyn Fn(&str) -> bool) -> Result<Self, SideNodeError> {
        let missing = |source| SideNodeError::Missing {
            path: path.to_owned(),
            source,
        };
        let real = fs::canonicalize(path).map_err(missing)?;
        let metadata = fs::metadata(&real).map_err(missing)?;
        let named = kind_and_number(&real).filter(|_| metadata.file_type().is_char_device());
        let (kind, number) = named.ok_or_else(|| SideNodeError::NotV4l2Name(path.to_owned()))?;
        if number >= FIRST_NUMBER {
            return Err(SideNodeError::Number(real));
        }
        if number_at(&real) == our_number(&real) {
            return Err(SideNodeError::Ours(real));
        }
        let names = check_device(&real)?;
        let node = node_of(&real, kind, number);
        if !is_ours(&node.spec().name) {
            node.check_free(&real)?;
        }
        Ok(Self { real, node, names })
    }

    /// The side nodes for `paths`, none of them twice.
    ///
    /// # Errors
    /// See [`SideNodeError`].
    pub fn of_all(paths: &[PathBuf], is_ours: &dyn Fn(&str) -> bool) -> Result<Vec<Self>, SideNodeError> {
        let mut nodes: Vec<Self> = Vec::new();
        for path in paths {
            let node = Self::of(path, is_ours)?;
            if nodes.contains(&node) {
                return Err(SideNodeError::Twice(path.clone()));
            }
            nodes.push(node);
        }
        Ok(nodes)
    }

    /// The side node of a device of this machine, whose driver and card are `names`. `is_ours` is to make room for it, unless
    /// it is there and ours already.
    ///
    /// # Errors
    /// See [`SideNodeError`].
    pub fn beside(
        found: &Found,
        names: (String, String),
        is_ours: impl FnOnce(&Node) -> bool,
    ) -> Result<Self, SideNodeError> {
        let real = found.path.clone();
        let (kind, number) =
            kind_and_number(&real).ok_or_else(|| SideNodeError::NotV4l2Name(real.clone()))?;
        if number >= FIRST_NUMBER {
            return Err(SideNodeError::Number(real));
        }
        if number_at(&real) == our_number(&real) {
            return Err(SideNodeError::Ours(real));
        }
        let node = node_of(&real, kind, number);
        if !is_ours(&node) {
            node.check_free(&real)?;
        }
        Ok(Self { real, node, names })
    }

    /// Ours in the place of a device of this machine, which is moved aside when ours is made. `is_ours` is to make room for it,
    /// unless it is there and ours already.
    ///
    /// # Errors
    /// See [`SideNodeError`].
    pub fn in_place(
        found: &Found,
        names: (String, String),
        is_ours: impl FnOnce(&Node) -> bool,
    ) -> Result<Self, SideNodeError> {
        let (kind, number) =
            kind_and_number(&found.path).ok_or_else(|| SideNodeError::NotV4l2Name(found.path.clone()))?;
        if number >= FIRST_NUMBER {
            return Err(SideNodeError::Number(found.path.clone()));
        }
        let real = Path::new(super::ASIDE).join(found.name());
        let node = node_in_place(&found.path, &real, kind, number);
        let _ = is_ours(&node);
        Ok(Self { real, node, names })
    }

    /// Moves the real node aside, if ours is to have its name. With `goes_on` ours is there already, from a daemon before us.
    ///
    /// # Errors
    /// See [`TakeoverError`].
    pub fn take_over(&self, goes_on: bool) -> Result<Option<Takeover>, TakeoverError> {
        let name = &self.node.spec().name;
        if !self.real.starts_with(super::ASIDE) {
            return Ok(None);
        }
        if goes_on {
            return Takeover::resume(name).map(Some);
        }
        let mut takeover = Takeover::begin(name)?;
        takeover.move_aside()?;
        Ok(Some(takeover))
    }

    /// Driver and card, as QUERYCAP names them.
    pub fn names(&self) -> (&str, &str) {
        (&self.names.0, &self.names.1)
    }

    /// The real node.
    pub fn real(&self) -> &Path {
        &self.real
    }

    /// Ours.
    pub fn node(&self) -> &Node {
        &self.node
    }
}

/// What the side node of this device is called; `None` where there can be none.
#[must_use]
pub fn our_name(found: &Found) -> Option<String> {
    let (kind, number) = kind_and_number(&found.path)?;
    (number < FIRST_NUMBER).then(|| node_of(&found.path, kind, number).spec().name.clone())
}

/// The device number of ours for the real node that is called `path`, beside it or in its place.
pub(super) fn our_number(path: &Path) -> Option<(u32, u32)> {
    let (kind, number) = kind_and_number(path)?;
    (number < FIRST_NUMBER).then_some((MAJOR, kind.first_minor + number))
}

/// The node of ours that has the name of `real` itself, which is at `aside`.
fn node_in_place(real: &Path, aside: &Path, kind: Kind, number: u32) -> Node {
    let beside = node_of(real, kind, number);
    let spec = NodeSpec {
        name: format!("{}{number}", kind.prefix),
        ..beside.spec().clone()
    };
    Node::new(spec, Access::Like(aside.to_owned()))
}

fn node_of(real: &Path, kind: Kind, number: u32) -> Node {
    let spec = NodeSpec {
        name: format!("{}{}", kind.prefix, FIRST_NUMBER + number),
        major: MAJOR,
        minor: kind.first_minor + number,
        unrestricted: false,
    };
    Node::new(spec, Access::Like(real.to_owned()))
}

/// Driver and card of the node.
fn check_device(real: &Path) -> Result<(String, String), SideNodeError> {
    let not_v4l2 = |source| SideNodeError::NotV4l2 {
        path: real.to_owned(),
        source,
    };
    let path = real.to_owned();
    let (driver, card) = ask(PATIENCE, move || names_of(&path)).map_err(not_v4l2)?;
    tracing::info!(
        device = %real.display(), driver, card, "found a device"
    );
    Ok((driver, card))
}

/// Driver and card of the node at `path`, as QUERYCAP names them. This may take as long as the driver likes.
///
/// # Errors
/// It cannot be opened, or is no V4L2 node.
pub fn names_of(path: &Path) -> io::Result<(String, String)> {
    let capability = RealNode::open(path, libc::O_RDWR)?.capability()?;
    Ok((capability.driver, capability.card))
}

/// The kind and the number of a V4L2 node, by its path.
pub(super) fn kind_and_number(path: &Path) -> Option<(Kind, u32)> {
    if path.parent() != Some(Path::new("/dev")) {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    KINDS.into_iter().find_map(|kind| {
        let digits = name.strip_prefix(kind.prefix)?;
        let number = digits.parse().ok()?;
        // Exactly as the kernel writes it.
        (digits == format!("{number}")).then_some((kind, number))
    })
}

#[cfg(test)]
mod tests {
    use super::{FIRST_NUMBER, KINDS, SideNode, SideNodeError, kind_and_number, node_of};
    use std::collections::HashSet;
    use std::path::Path;

    fn number_of(path: &str) -> Option<(&'static str, u32)> {
        kind_and_number(Path::new(path)).map(|(kind, number)| (kind.prefix, number))
    }

    #[test]
    fn every_kind_of_v4l2_node_has_a_number_and_nothing_else_has() {
        assert_eq!(number_of("/dev/video0"), Some(("video", 0)));
        assert_eq!(number_of("/dev/video63"), Some(("video", 63)));
        assert_eq!(number_of("/dev/vbi1"), Some(("vbi", 1)));
        assert_eq!(number_of("/dev/radio2"), Some(("radio", 2)));
        assert_eq!(number_of("/dev/swradio3"), Some(("swradio", 3)));
        assert_eq!(number_of("/dev/v4l-touch4"), Some(("v4l-touch", 4)));
        for other in [
            "/dev/video",
            "/dev/video+1",
            "/dev/video01",
            "/dev/videox",
            "/tmp/video0",
            "/dev/v4l/video0",
            "/dev/v4l-subdev0",
            "/dev/media0",
            "/dev/vbi",
            "/dev/swradio-1",
            "/dev/video99999999999",
        ] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }

    #[test]
    fn no_two_nodes_share_a_name_or_a_minor_and_video_has_256() {
        let mut names = HashSet::new();
        let mut minors = HashSet::new();
        for kind in KINDS {
            for number in 0..FIRST_NUMBER {
                let node = node_of(Path::new("/dev/real"), kind, number);
                let spec = node.spec().clone();
                assert!(spec.minor > 255 && spec.minor < 1 << 20, "{spec:?}");
                assert!(minors.insert(spec.minor), "{spec:?}");
                assert!(names.insert(spec.name));
            }
        }
        let node = node_of(Path::new("/dev/v4l-touch7"), KINDS[4], 7);
        assert_eq!(node.path(), Path::new("/dev/v4l-touch71"));
        assert_eq!((node.spec().major, node.spec().minor), (81, 1287));
        assert_eq!(KINDS[0].first_minor, 256);
    }

    #[test]
    fn a_missing_device_and_another_kind_of_file_are_told_apart() {
        assert!(matches!(
            SideNode::of(Path::new("/dev/video-none"), &|_| false),
            Err(SideNodeError::Missing { .. })
        ));
        assert!(matches!(
            SideNode::of(Path::new("/dev/null"), &|_| false),
            Err(SideNodeError::NotV4l2Name(_))
        ));
    }
}
