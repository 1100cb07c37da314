//! Where a framebuffer of ours is to be found.
//!
//! Beside a real `/dev/fbN` (that we serve, or whose card we show our own on) it is a side node, `/dev/fb(64+N)`, 29:256+N.
//! Where there is no such thing it is `/dev/fbN` itself, for that is the name that old programs have in them.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::FIRST_NUMBER;
use super::fb_source::{FbSource, NUMBERS};
use super::node::{Access, Node, NodeError};
use crate::cuse::NodeSpec;

/// The major of framebuffers (`FB_MAJOR`, linux/major.h): the kernel has minors 0 to 255 of it.
pub const FB_MAJOR: u32 = 29;
/// Of the side node of the real `/dev/fb0`.
pub const FB_FIRST_MINOR: u32 = 256;
/// Of ours where it is `/dev/fb0` itself.
pub const FB_FIRST_OWN_MINOR: u32 = 512;

/// Why there can be no such framebuffer. Each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum FbNodeError {
    /// No such file.
    #[error("{path}: there is no such device ({source})")]
    Missing {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something else.
    #[error("{0} is no framebuffer (/dev/fbN), which is what --fb takes; for a graphics card: --fb kms:{0}")]
    NotFb(PathBuf),
    /// Something else.
    #[error("{0} is no graphics card (/dev/dri/cardN), which is what --fb kms: takes")]
    NotCard(PathBuf),
    /// A wish.
    #[error("{0} exists already, so there can be no framebuffer as={1}")]
    Taken(PathBuf, u32),
    /// All of them.
    #[error("/dev/fb0 to /dev/fb{} exist already, so there is no name for another framebuffer", NUMBERS - 1)]
    NoName,
    /// The same thing twice.
    #[error("{0} is given twice; a card has one framebuffer of ours")]
    Twice(String),
    /// Our own node.
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// A framebuffer to serve, and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FbNode {
    /// What it is made of; paths are those of the nodes themselves, all links followed.
    pub source: FbSource,
    /// Ours.
    pub node: Node,
    /// The real node beside which it stands.
    pub beside: Option<PathBuf>,
}

impl FbNode {
    /// The nodes for `sources`. Changes nothing.
    ///
    /// # Errors
    /// See [`FbNodeError`].
    pub fn of_all(sources: &[FbSource]) -> Result<Vec<Self>, FbNodeError> {
        let mut nodes: Vec<Self> = Vec::new();
        for source in sources {
            let node = Self::of(source, &nodes)?;
            let same = |other: &Self| other.node == node.node || same_card(&other.source, &node.source);
            if nodes.iter().any(same) {
                return Err(FbNodeError::Twice(source.name()));
            }
            nodes.push(node);
        }
        Ok(nodes)
    }

    fn of(source: &FbSource, others: &[Self]) -> Result<Self, FbNodeError> {
        let (source, beside) = match source {
            FbSource::Real(path) => {
                let (real, number) = real_fb(path)?;
                (FbSource::Real(real.clone()), Some((real, number)))
            }
            FbSource::Own(own) => {
                let mut own = own.clone();
                let mut beside = None;
                if let Some(card) = &own.card {
                    let (card, minor) = card_of(card)?;
                    beside = fb_of_card(minor).filter(|_| own.number.is_none());
                    own.card = Some(card);
                }
                (FbSource::Own(own), beside)
            }
        };
        if let Some((real, number)) = beside {
            let node = side_node(&real, number);
            node.check_free(&real)?;
            let beside = Some(real);
            return Ok(Self { source, node, beside });
        }
        let wish = match &source {
            FbSource::Own(own) => own.number,
            FbSource::Real(_) => None,
        };
        let is_free = |node: &Node| {
            fs::symlink_metadata(node.path()).is_err() && others.iter().all(|other| other.node != *node)
        };
        let node = match wish {
            Some(number) => Some(own_node(number))
                .filter(is_free)
                .ok_or_else(|| FbNodeError::Taken(own_node(number).path(), number))?,
            None => (0..NUMBERS)
                .map(own_node)
                .find(is_free)
                .ok_or(FbNodeError::NoName)?,
        };
        Ok(Self {
            source,
            node,
            beside: None,
        })
    }
}

fn same_card(one: &FbSource, other: &FbSource) -> bool {
    one.card().is_some() && one.card() == other.card()
}

fn side_node(real: &Path, number: u32) -> Node {
    let spec = NodeSpec {
        name: format!("fb{}", FIRST_NUMBER + number),
        major: FB_MAJOR,
        minor: FB_FIRST_MINOR + number,
        unrestricted: true,
    };
    Node::new(spec, Access::Like(real.to_owned()))
}

fn own_node(number: u32) -> Node {
    let spec = NodeSpec {
        name: format!("fb{number}"),
        major: FB_MAJOR,
        minor: FB_FIRST_OWN_MINOR + number,
        unrestricted: true,
    };
    Node::new(spec, Access::Video)
}

fn followed(path: &Path) -> Result<(PathBuf, fs::Metadata), FbNodeError> {
    let missing = |source| FbNodeError::Missing {
        path: path.to_owned(),
        source,
    };
    let real = fs::canonicalize(path).map_err(missing)?;
    let metadata = fs::metadata(&real).map_err(missing)?;
    Ok((real, metadata))
}

/// The real framebuffer at `path`, and its number. By its device number: a link, or a node elsewhere, will do.
fn real_fb(path: &Path) -> Result<(PathBuf, u32), FbNodeError> {
    let (real, metadata) = followed(path)?;
    let number = u32::try_from(minor(metadata.rdev())).ok().filter(|number| {
        metadata.file_type().is_char_device()
            && major(metadata.rdev()) == u64::from(FB_MAJOR)
            && *number < NUMBERS
    });
    match number {
        Some(number) => Ok((real, number)),
        None => Err(FbNodeError::NotFb(path.to_owned())),
    }
}

/// The card at `path`, and its minor: a primary node of DRM (major 226, minors below 64).
fn card_of(path: &Path) -> Result<(PathBuf, u64), FbNodeError> {
    let (real, metadata) = followed(path)?;
    let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
    if !metadata.file_type().is_char_device() || major != 226 || minor >= 64 {
        return Err(FbNodeError::NotCard(path.to_owned()));
    }
    Ok((real, minor))
}

/// The real framebuffer that the kernel has made on this card, where programs can see it.
fn fb_of_card(minor: u64) -> Option<(PathBuf, u32)> {
    let folder = fs::read_dir(format!("/sys/dev/char/226:{minor}/device/graphics")).ok()?;
    folder.flatten().find_map(|entry| {
        let name = entry.file_name();
        let number: u32 = name.to_str()?.strip_prefix("fb")?.parse().ok()?;
        let path = Path::new("/dev").join(name);
        real_fb(&path).ok().filter(|(_, there)| *there == number)
    })
}

#[cfg(test)]
mod tests {
    use super::{FbNode, FbNodeError, own_node, side_node};
    use crate::devices::FbSource;
    use crate::devices::fb_source::NUMBERS;
    use std::path::Path;

    fn nodes(sources: &[&str]) -> Result<Vec<FbNode>, FbNodeError> {
        let sources: Vec<FbSource> = sources
            .iter()
            .map(|text| text.parse().expect("a source"))
            .collect();
        FbNode::of_all(&sources)
    }

    #[test]
    fn a_side_node_and_one_in_its_place_have_numbers_of_their_own() {
        let side = side_node(Path::new("/dev/fb1"), 1);
        assert_eq!(
            (side.path().as_path(), side.spec().minor),
            (Path::new("/dev/fb65"), 257)
        );
        let own = own_node(1);
        assert_eq!(
            (own.path().as_path(), own.spec().minor),
            (Path::new("/dev/fb1"), 513)
        );
        assert!(side.spec().unrestricted && own.spec().unrestricted);
    }

    #[test]
    fn each_headless_framebuffer_has_the_next_name() {
        // Whatever screens this machine has.
        let free: Vec<u32> = (0..NUMBERS)
            .filter(|number| !Path::new(&format!("/dev/fb{number}")).exists())
            .take(3)
            .collect();
        let [first, second, third] = *free else {
            panic!("no three free names: {free:?}")
        };
        let any = "memory:8x8x32";
        let wished = |number| format!("{any},as={number}");
        let three = nodes(&[any, &wished(third), any]).expect("nodes");
        let paths: Vec<_> = three
            .iter()
            .map(|fb| fb.node.path().display().to_string())
            .collect();
        assert_eq!(
            paths,
            [first, third, second].map(|number| format!("/dev/fb{number}"))
        );
        assert!(matches!(
            nodes(&[&wished(second), &wished(second)]),
            Err(FbNodeError::Taken(..))
        ));
    }

    #[test]
    fn what_is_no_framebuffer_and_no_card_is_told() {
        assert!(matches!(nodes(&["/dev/null"]), Err(FbNodeError::NotFb(_))));
        assert!(matches!(
            nodes(&["/dev/fb-none"]),
            Err(FbNodeError::Missing { .. })
        ));
        assert!(matches!(nodes(&["kms:/dev/null"]), Err(FbNodeError::NotCard(_))));
    }
}
